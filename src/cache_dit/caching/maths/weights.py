"""Forecasts that are weighted sums of kept values: the sum, and the differences that weights are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def blend(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return `sum_i weights[i] * values[i]`, a new tensor of the values' dtype.

    Weights of a forecast have both signs and sizes over 1, so half-precision values are summed in float32.

    Args:
        values: One shape and dtype, at least one.
        weights: One for each value.
    """
    wide = torch.promote_types(values[0].dtype, torch.float32)
    total = values[0].to(wide) * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value, alpha=weight)
    return total.to(values[0].dtype)


def combine(rows: Iterable[Sequence[float]], factors: Iterable[float]) -> list[float]:
    """Return `sum_i factors[i] * rows[i]`, entry by entry, over as many as the shorter of both has."""
    pairs = list(zip(rows, factors, strict=False))
    return [sum(factor * row[at] for row, factor in pairs) for at in range(len(pairs[0][0]))]


def ladder(times: Sequence[float]) -> list[list[float]]:
    """Differences of order 0, 1, ... at the newest value, each as weights of the values.

    The published ladder of TaylorSeer (arXiv 2503.06923) and HiCache (arXiv 2508.16984): `F^0 = F` and
    `F^{i+1} = (F^i_new - F^i_old) / (t_new - t_old)`, every order divided by the gap to the computed step
    before. Order i estimates the i-th derivative, with an error that is of the first order in the gaps.

    Args:
        times: Positions of the values, newest first.
    """
    rows = [[float(row == column) for column in range(len(times))] for row in range(len(times))]
    newest = [rows[0]]
    for order in range(1, len(times)):
        rows = [
            [
                (new - old) / (times[at] - times[at + 1])
                for new, old in zip(rows[at], rows[at + 1], strict=True)
            ]
            for at in range(len(times) - order)
        ]
        newest.append(rows[0])
    return newest
