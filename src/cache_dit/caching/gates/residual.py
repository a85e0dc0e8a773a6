"""DBCache and FBCache: skip while the first blocks do much the same as on the last computed step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from cache_dit.caching.maths.change import l1_norm, relative_l1
from cache_dit.caching.maths.gate import Gate, Reason, Signal, Verdict
from cache_dit.caching.maths.moment import Moment


class Reference(NamedTuple):
    """The signal of the last computed step with its L1 norm."""

    signal: Tensor
    norm: Tensor


@dataclass(frozen=True, slots=True)
class ResidualGate(Gate):
    """Skip while `mean|r_s - r_t| / mean|r_s|` is below the threshold, with `s` the last computed step.

    The signal is the residual of the first `Fn` blocks, `h_Fn - h_0`. FBCache (ParaAttention) is the same
    rule with one first block.

    Attributes:
        threshold: 0 or less never skips, 1 or more always.
    """

    signal: ClassVar[Signal] = Signal.RESIDUAL
    threshold: float

    def certain(self, step: int) -> Reason | None:
        return Reason.OFF if self.threshold <= 0.0 else None

    def measure(self, state: Reference | None, at: Moment, signal: Tensor) -> float | None:
        if state is None or state.signal.shape != signal.shape:
            return None
        return relative_l1(signal, state.signal, state.norm, at.reduce)

    def decide(self, state: Reference | None, at: Moment, change: float | None) -> Verdict | None:
        if change is None:
            return None
        # A NaN is computed; and at threshold 1 an infinite change is skipped.
        similar = change < self.threshold or (self.threshold >= 1.0 and change == change)
        return Verdict(similar, Reason.SIMILAR if similar else Reason.CHANGED, change)

    def advance(
        self, state: Reference | None, at: Moment, verdict: Verdict, signal: Tensor | None
    ) -> Reference | None:
        if verdict.skip:
            return state
        return None if signal is None else Reference(signal, l1_norm(signal))
