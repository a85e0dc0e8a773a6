"""What is alive in this process, and whether it grows from run to run."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

BLOCKS, STUDENT = 10, 2.306  # means of ten stretches; 97.5 % of Student's t with 8 degrees of freedom


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33."""

    _fields_ = [
        *((f"others{place}", ctypes.c_size_t) for place in range(4)),
        ("mapped", ctypes.c_size_t),
        *((f"more{place}", ctypes.c_size_t) for place in range(2)),
        ("used", ctypes.c_size_t),
        *((f"rest{place}", ctypes.c_size_t) for place in range(2)),
    ]


def in_heap() -> int:
    """Bytes that malloc has handed out and not got back, in all threads: exact, unlike the process's size."""
    told = ctypes.CDLL(None).mallinfo2
    told.restype = _Mallinfo
    found = told()
    return int(found.used + found.mapped)


def tensor_bytes() -> int:
    """Bytes of all tensors that anything refers to."""
    gc.collect()
    with_storage = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in _tensors()}
    return sum(with_storage.values())


def _tensors() -> Iterator[Tensor]:
    return (one for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter))


def slope(places: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Least squares: the slope and its standard error, as if the residuals were independent."""
    count = len(places)
    mid, mean = sum(places) / count, sum(values) / count
    spread = sum((place - mid) ** 2 for place in places)
    found = sum((p - mid) * (v - mean) for p, v in zip(places, values, strict=True)) / spread
    rest = sum((v - mean - found * (p - mid)) ** 2 for p, v in zip(places, values, strict=True))
    return found, math.sqrt(rest / max(1, count - 2) / spread)


def rise(values: Sequence[int]) -> tuple[float, float]:
    """What each value adds: the slope over means of ten stretches, and half its 95 % interval.

    Neighbours share memory, so they are no independent values; means of long stretches nearly are.
    """
    size = len(values) // BLOCKS
    starts = range(0, size * BLOCKS, size)
    found, error = slope(
        [start + (size - 1) / 2 for start in starts],
        [statistics.fmean(values[start : start + size]) for start in starts],
    )
    return found, STUDENT * error
