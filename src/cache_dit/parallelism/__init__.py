"""One sample on several processes: the sequence, the layers, and the modules around the transformer."""

from cache_dit.parallelism.config import ParallelismBackend, ParallelismConfig

__all__ = ["ParallelismBackend", "ParallelismConfig"]
