"""Sums over whole streams, and who computes them: torch, or kernels that the caller has chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor


class Kernels(NamedTuple):
    """What a device may do in one pass where torch takes several.

    Attributes:
        distance: `sum |a - b|` and `sum |b|` of two tensors of one shape, in float32 at least.
        weighted_sum: As `maths.weights.weighted_sum`.
    """

    distance: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    weighted_sum: Callable[[Sequence[Tensor], Sequence[float]], Tensor]


chosen_kernels: ContextVar[Kernels | None] = ContextVar("cache_dit_kernels", default=None)
