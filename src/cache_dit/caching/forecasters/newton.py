"""Polynomial extrapolation through the last computed values at their true positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache_dit.caching.forecasters.history import Computed, Ordered
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.weights import lagrange, weighted_sum


@dataclass(frozen=True, slots=True)
class Newton(Ordered):
    """Extrapolate with the polynomial through the last `order + 1` computed values.

    The idea to forecast a feature instead of reusing it is TaylorSeer's (arXiv 2503.06923, eq. 7). The
    published ladder of differences divides every one by the latest gap, which is not exact on a quadratic
    even at uniform spacing. The polynomial through the values at their true positions (Newton's divided
    differences; here by Lagrange's weights, which is the same) is exact up to degree `order` at any gaps;
    order 1 is the same in both. The memory is the same too, and all work is left to the skipped steps: a
    computed one only hands over its value. With fewer values than that seen, the order is what they allow.
    """

    def predict(self, state: Computed, at: Moment) -> Tensor:
        return extrapolate(state.times, state.values, at.time)


def extrapolate(times: Sequence[float], values: Sequence[Tensor], time: float) -> Tensor:
    """The polynomial through the values, evaluated at one position; with one value, that value itself."""
    if len(values) == 1:
        return values[0]
    if len(values) == 2:
        return torch.lerp(values[0], values[1], (time - times[0]) / (times[1] - times[0]))
    return weighted_sum(values, lagrange(times, time))
