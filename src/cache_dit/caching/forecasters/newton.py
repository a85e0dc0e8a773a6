"""Polynomial extrapolation through the last computed values at their true positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache_dit.caching.forecasters.history import Computed, Ordered
from cache_dit.caching.maths.moment import Moment


@dataclass(frozen=True, slots=True)
class Newton(Ordered):
    """Extrapolate with the polynomial through the last `order + 1` computed values.

    The idea to forecast a feature instead of reusing it is TaylorSeer's (arXiv 2503.06923, eq. 7). The
    published ladder of differences divides every one by the latest gap, which is not exact on a quadratic
    even at uniform spacing. The polynomial through the values at their true positions (Newton's, evaluated by
    Neville's scheme) is exact up to degree `order` at any gaps; order 1 is the same in both. The memory is
    the same too, and all work is left to the skipped steps: a computed one only hands over its value. With
    fewer values than that seen, the order is what the values allow.
    """

    def predict(self, state: Computed, at: Moment) -> Tensor:
        return neville(state.times, state.values, at.time)


def neville(times: tuple[float, ...], values: tuple[Tensor, ...], time: float) -> Tensor:
    """The polynomial through the values, evaluated at one position; with one value, that value itself."""
    # p[i..j](t) is p[i..j-1] and p[i+1..j], joined linearly to fit at t_i and t_j.
    row = values
    for width in range(1, len(times)):
        row = tuple(
            torch.lerp(row[i], row[i + 1], (time - times[i]) / (times[i + width] - times[i]))
            for i in range(len(times) - width)
        )
    return row[0]
