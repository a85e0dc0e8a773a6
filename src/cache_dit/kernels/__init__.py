"""Triton kernels for what the cache itself computes: gate signals and forecasts, when asked for."""

from cache_dit.kernels.choice import triton_kernels

__all__ = ["triton_kernels"]
