"""Forecasts that are weighted sums of kept values: the sum, and the differences that weights are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cache_dit.caching.maths.kernels import chosen_kernels


def weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return `sum_i weights[i] * values[i]`, a new tensor of the values' dtype.

    Weights of a forecast have both signs and sizes over 1, so half-precision values are summed in float32.

    Args:
        values: One shape and dtype, at least one.
        weights: One for each value. One of 0 leaves its value out, even if that is not finite.
    """
    kernels = chosen_kernels.get()
    return (plain_weighted_sum if kernels is None else kernels.weighted_sum)(values, weights)


def plain_weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`weighted_sum` by torch, whatever kernels were chosen."""
    wide = torch.promote_types(values[0].dtype, torch.float32)
    # `type` and not `to`: it casts and never moves, so it cannot wait for the device.
    total = values[0].type(wide) * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        if weight:
            total.add_(value, alpha=weight)
    return total.type(values[0].dtype)


def combine(rows: Iterable[Sequence[float]], factors: Iterable[float]) -> list[float]:
    """Return `sum_i factors[i] * rows[i]`, entry by entry, over as many as the shorter of both has."""
    pairs = list(zip(rows, factors, strict=False))
    return [sum(factor * row[at] for row, factor in pairs) for at in range(len(pairs[0][0]))]


def lagrange(times: Sequence[float], time: float) -> list[float]:
    """Return the weights of values at `times` in the polynomial through them, evaluated at `time`."""
    return [math.prod((time - other) / (own - other) for other in times if other != own) for own in times]


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


def scaled_hermite(x: float, sigma: float, order: int) -> list[float]:
    """Return `sigma^n H_n(sigma x)` for n from 0 to `order`, with the physicists' Hermite polynomials.

    The dual-scaled basis of HiCache (arXiv 2508.16984).
    """
    terms = [1.0, 2 * sigma**2 * x]
    for n in range(1, order):
        # H_{n+1}(y) = 2 y H_n(y) - 2 n H_{n-1}(y), at y = sigma x and times sigma^{n+1}.
        terms.append(2 * sigma**2 * (x * terms[n] - n * terms[n - 1]))
    return terms[: order + 1]


def chebyshev(tau: float, degree: int) -> list[float]:
    """Return the Chebyshev polynomials `T_0` to `T_degree` at `tau`, by `T_{n+1} = 2 tau T_n - T_{n-1}`."""
    terms = [1.0, tau]
    for _ in range(1, degree):
        terms.append(2 * tau * terms[-1] - terms[-2])
    return terms[: degree + 1]


def chebyshev_fit(taus: Sequence[float], tau: float, degree: int, ridge: float) -> list[float]:
    """Return the weights of values at `taus` in a ridge fit of Chebyshev polynomials, evaluated at `tau`.

    With `P` the polynomials at `taus`, one row each, and `p` those at `tau`: `P (P^T P + ridge I)^-1 p`,
    solved in float64 on the host (Spectrum, arXiv 2603.01623).
    """
    basis = torch.tensor([chebyshev(node, degree) for node in taus], dtype=torch.float64, device="cpu")
    target = torch.tensor(chebyshev(tau, degree), dtype=torch.float64, device="cpu")
    normal = basis.mT @ basis + ridge * torch.eye(degree + 1, dtype=torch.float64, device="cpu")
    weights: list[float] = (basis @ torch.linalg.solve(normal, target)).tolist()
    return weights
