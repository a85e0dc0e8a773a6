"""Exponential modes of a row of snapshots (dynamic mode decomposition), found from their inner products.

Every mode lies in the span of the snapshots, so a forecast is a weighted sum of them, and all that the fit
needs are their inner products: a small matrix, in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cache_dit.caching.maths.moment import Reduce
from cache_dit.caching.maths.weights import weighted_sum

FEWEST_SNAPSHOTS = 4
"""Evenly spaced snapshots without which no modes are fitted."""

_SMALLEST_SINGULAR_VALUE = 1e-4
_ELEMENTS_AT_ONCE = 2**20


class Modes(NamedTuple):
    """Modes of one row of snapshots; without any, the newest snapshot is repeated.

    Attributes:
        growth: What each mode is multiplied by from one snapshot to the next, `[modes]`, complex.
        shares: Part of each mode in the newest snapshot, as weights of all but the oldest one, oldest first:
            `[snapshots - 1, modes]`, complex.
    """

    growth: Tensor
    shares: Tensor

    def weights(self, ahead: float) -> list[float]:
        """Weights of the snapshots, newest first, for a forecast `ahead` of the newest, in spacings."""
        change = [*(self.shares @ (self.growth**ahead - 1)).real.flip(0).tolist(), 0.0]
        if not all(map(math.isfinite, change)):
            change = [0.0] * len(change)
        return [change[0] + 1, *change[1:]]


def evenly_spaced(times: Sequence[float]) -> int:
    """How many of the newest positions, newest first, are evenly spaced."""
    gaps = [newer - older for newer, older in itertools.pairwise(times)]
    odd = (at for at, gap in enumerate(gaps) if not math.isclose(gap, gaps[0], rel_tol=1e-6))
    return next(odd, len(gaps)) + 1


def find_modes(
    times: Sequence[float], snapshots: Sequence[Tensor], max_growth: float, reduce: Reduce | None = None
) -> tuple[Modes, ...]:
    """Fit the modes of each item of the batch to the newest snapshots that are evenly spaced.

    Args:
        times: Positions of the snapshots, newest first.
        snapshots: `[batch, ...]` each, on a device with float64.
        max_growth: See `fit_modes`.
        reduce: Adds the inner products up over the ranks that have parts of the snapshots; None: they are
            whole.

    Returns:
        One for each item; empty where less than `FEWEST_SNAPSHOTS` are evenly spaced.
    """
    even = evenly_spaced(times)
    if even < FEWEST_SNAPSHOTS:
        return ()
    products = inner_products(snapshots[even - 1 :: -1])
    products = products if reduce is None else reduce(products)
    return tuple(fit_modes(one, max_growth) for one in products.cpu())


def forecast(snapshots: Sequence[Tensor], modes: Sequence[Modes], ahead: float) -> Tensor:
    """Return the snapshot that follows, each item of the batch by its own modes.

    Args:
        snapshots: The fitted ones and perhaps older ones, newest first, `[batch, ...]` each.
        modes: Those of each item.
        ahead: Distance from the newest snapshot in spacings; may be fractional.
    """
    rows = [one.weights(ahead) for one in modes]
    items = zip(*(snapshot.unbind() for snapshot in snapshots[: len(rows[0])]), strict=True)
    return torch.stack([weighted_sum(item, row) for item, row in zip(items, rows, strict=True)])


def inner_products(snapshots: Sequence[Tensor]) -> Tensor:
    """Return the inner products of the snapshots for each item of the batch.

    Args:
        snapshots: `[batch, ...]` each, on a device with float64.

    Returns:
        `[batch, snapshots, snapshots]`, float64.
    """
    flat = [snapshot.flatten(1) for snapshot in snapshots]
    batch, length = flat[0].shape
    total = torch.zeros(batch, len(flat), len(flat), dtype=torch.float64, device=flat[0].device)
    size = max(1, _ELEMENTS_AT_ONCE // batch)
    for start in range(0, length, size):
        part = torch.stack([row[:, start : start + size] for row in flat], 1).double()
        total.baddbmm_(part, part.mT)
    return total


def fit_modes(products: Tensor, max_growth: float) -> Modes:
    """Fit the modes of evenly spaced snapshots: exact DMD (Tu et al., arXiv 1312.0041) from inner products.

    With the snapshots `Y` as columns, `X` all but the newest and `X'` all but the oldest: `X = U S V^T`,
    cut to singular values over 1e-4 of the largest; `A = U^T X' V S^-1 = W growth W^-1`; the modes are `X'
    V S^-1 W`, and their amplitudes those that come nearest to the newest snapshot.

    Args:
        products: `Y^T Y`, oldest first, `[snapshots, snapshots]`.
        max_growth: A mode that grows faster than by this from one snapshot to the next is slowed to it.

    Returns:
        The modes; none where the snapshots are 0 or not finite.
    """
    if not products.isfinite().all():
        products = torch.zeros_like(products)
    # X^T X, X^T X' and X'^T X' are parts of Y^T Y; S^2 and V are the eigenvalues and vectors of the first.
    squares, vectors = torch.linalg.eigh(products[:-1, :-1])
    large = squares > _SMALLEST_SINGULAR_VALUE**2 * squares[-1]
    inverse = vectors[:, large] * squares[large].rsqrt()
    growth, mixed = torch.linalg.eig(inverse.mT @ products[:-1, 1:] @ inverse)
    # The newest snapshot in the basis first, then its modes: those of a line are nearly parallel, and their
    # own inner products would say nothing of what sets them apart.
    newer = inverse.mT @ products[1:, 1:]
    newest = torch.linalg.lstsq(newer @ inverse, newer[:, -1:]).solution
    amplitudes = torch.linalg.lstsq(mixed, newest.to(mixed.dtype)).solution
    modes = inverse.to(mixed.dtype) @ mixed
    slowed = growth * (max_growth / growth.abs().clamp(min=max_growth))
    return Modes(slowed, modes * amplitudes.mT)
