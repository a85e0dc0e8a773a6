"""Where a run is when a gate decides or a forecaster observes and predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over the ranks that share a sample, each of which has a part of it."""


class Moment(NamedTuple):
    """One forward of a run, as gates and forecasters see it.

    Attributes:
        step: Number of the step since the run began or was refreshed, from 0.
        time: Position on the axis that forecasts are made along: the step, or `1 - sigma` if that was chosen.
        end: The position of the last step on that axis; None where the length of the run is not known.
        total: Steps of the run; None where that is not known.
        sigma: Noise level of the step, 1 for pure noise and 0 for none; None where nothing tells it.
        signal: What the gate has looked at in this forward, if it did.
        changes: What the gates of this forward have measured so far, in the order of the blocks.
        reduce: What a gate or a forecaster passes its sums over tokens through, where several ranks share the
            sample; None: there is one. All ranks call it together, or all hang.
    """

    step: int
    time: float
    end: float | None = None
    total: int | None = None
    sigma: float | None = None
    signal: Any = None
    changes: tuple[float, ...] | list[float] = ()
    reduce: Reduce | None = None
