"""The rule that TeaCache, SeaCache, EasyCache and DiCache share; each adds what it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from cache_dit.caching.maths.change import l1_norm, relative_l1
from cache_dit.caching.maths.gate import Gate, Reason, Verdict
from cache_dit.caching.maths.moment import Moment


class Sum(NamedTuple):
    """What has added up since the last computed step; what was seen on the step before, with its L1 norm; and
    what else a gate has learnt.
    """

    total: float = 0.0
    previous: Tensor | None = None
    norm: Tensor | None = None
    learnt: Any = None


@dataclass(frozen=True, slots=True)
class AccumulatedGate(Gate):
    """Add up `mean|x_t - x_{t-1}| / mean|x_{t-1}|` over the steps; skip while the sum is below the threshold.

    Each step is compared with the step before it, skipped or not; a computed step sets the sum to zero. The
    last step is computed, where the length of the run is known, and so is one that has nothing to compare
    with.

    Attributes:
        threshold: 0 or less never skips.
    """

    threshold: float

    def seen(self, at: Moment, signal: Any) -> Tensor:
        """What of the signal is compared."""
        tensor: Tensor = signal
        return tensor

    def weight(self, change: float) -> float:
        """What one change adds to the sum."""
        return change

    def certain(self, step: int) -> Reason | None:
        return Reason.OFF if self.threshold <= 0.0 else None

    def init(self) -> Sum:
        return Sum()

    def measure(self, state: Sum, at: Moment, signal: Any) -> float | None:
        if state.previous is None:
            return None
        current = self.seen(at, signal)
        if current.shape != state.previous.shape:
            return None
        return relative_l1(current, state.previous, state.norm, at.reduce)

    def decide(self, state: Sum, at: Moment, change: float | None) -> Verdict | None:
        if at.total is not None and at.step >= at.total - 1:
            return Verdict(False, Reason.SCHEDULE)
        if change is None:
            return None
        # A NaN is computed.
        similar = state.total + self.weight(change) < self.threshold
        return Verdict(similar, Reason.SIMILAR if similar else Reason.ACCUMULATED_LIMIT, change)

    def advance(self, state: Sum, at: Moment, verdict: Verdict, signal: Any) -> Sum:
        change = verdict.change if verdict.skip else None
        total = 0.0 if change is None else state.total + self.weight(change)
        if signal is None:
            return Sum(total, learnt=state.learnt)
        # The model may write into its own tensor later, so a copy is kept.
        kept = self.seen(at, signal).clone()
        return Sum(total, kept, l1_norm(kept), state.learnt)
