"""Attention kernels of diffusers, chosen for one model and not for others."""

from cache_dit.attention.backends import attn_backends, checked_attn_backend, set_attn_backend

__all__ = ["attn_backends", "checked_attn_backend", "set_attn_backend"]
