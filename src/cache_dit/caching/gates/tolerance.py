"""A tolerance in place of a threshold: skip for as long as the forecast is expected to be near enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cache_dit.caching.config import CacheConfig, Place
from cache_dit.caching.maths.gate import Gate, Reason, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import flag, instance_of, option, options, real, whole


class Progress(NamedTuple):
    """The positions computed last, newest first; step, gap and remainder of the newest; error a remainder."""

    times: tuple[float, ...] = ()
    step: int = 0
    gap: int = 1
    remainder: float = 0.0
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class ToleranceGate(Gate):
    """The rule of `ToleranceConfig`, with its options."""

    learns: ClassVar[bool] = True
    tolerance: float
    order: int

    def init(self) -> Progress:
        return Progress()

    def decide(self, state: Progress, at: Moment, change: float | None) -> Verdict:
        if state.rate is None:
            return Verdict(False, Reason.NO_HISTORY)
        error, grown = state.rate * self._remainder(state, at), at.step + 1 - state.step > 2 * state.gap
        skip = error <= 0.9 * self.tolerance and not grown and at.step + 1 != at.total
        return Verdict(skip, Reason.SIMILAR if skip else Reason.CHANGED, error)

    def advance(self, state: Progress, at: Moment, verdict: Verdict, signal: object) -> Progress:
        if verdict.skip:
            return state
        gap, remainder = max(1, at.step - state.step), self._remainder(state, at)
        return Progress((at.time, *state.times[: self.order]), at.step, gap, remainder, state.rate)

    def learn(self, state: Progress, at: Moment, error: float) -> Progress:
        new = max(error, 1e-6) / state.remainder if state.remainder else math.nan
        return state._replace(rate=math.sqrt(new * (state.rate or new)) if math.isfinite(new) else None)

    def _remainder(self, state: Progress, at: Moment) -> float:
        return math.prod(at.time - time for time in state.times) if len(state.times) > self.order else 0.0


@options
class ToleranceConfig(CacheConfig):
    """Skip while the expected error of the forecast is within 9/10 of a tolerance (this project).

    Expected: `rate * prod_i (t - t_i)`, t_i computed, the rate as seen (Hairer et al., Solving ODEs I, II.4).

    Attributes:
        place: Default `Place.OUTPUT`.
        cfg_diff_compute_separate: Default False: errors of branches that skip the same steps cancel.
        tolerance: Relative L1 error of what is skipped; 0 never skips. Default 0.05.
        order: Degree of the forecast, 0 to 4 (of the estimate: 1); `order + 2` steps begin. Default 1.
    """

    method: ClassVar[str] = "Tolerance"
    place: Place = option(instance_of(Place), default=Place.OUTPUT)
    tolerance: float = option(real(0.0), default=0.05)
    order: int = option(whole(0, 4), default=1)
    cfg_diff_compute_separate: bool = option(flag, default=False)

    def gate(self) -> ToleranceGate:
        return ToleranceGate(self.tolerance, self.order)

    def label(self) -> str:
        return f"TOL{self.tolerance:g}O{self.order}"
