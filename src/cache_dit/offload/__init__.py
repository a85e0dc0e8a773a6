"""Weights that wait in main memory or on disk, beside the cache. diffusers and accelerate do the work."""

from cache_dit.offload.check import check_offload

__all__ = ["check_offload"]
