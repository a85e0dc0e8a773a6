"""FORA and TaylorSeer: compute every n-th step, whatever the picture does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cache_dit.caching.config import CacheConfig
from cache_dit.caching.maths.gate import Gate, Reason, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import flag, option, options, whole


class Window(NamedTuple):
    """The step computed last, None before the first, and how far the next one may be behind it."""

    computed: int | None
    length: float


@dataclass(frozen=True, slots=True)
class IntervalGate(Gate):
    """Compute a step when it is `interval`, rounded down, steps behind the one computed last.

    A step that something else has computed (the warm-up, a limit, a mask) counts like one of its own.

    Attributes:
        interval: Steps from a computed step to the next; 1 skips nothing.
        growth: What is added to the interval each time this rule computes a step.
        last_step: Also compute the last step, where the length of the run is known.
    """

    interval: float
    growth: float = 0.0
    last_step: bool = False

    def init(self) -> Window:
        return Window(None, self.interval)

    def decide(self, state: Window, at: Moment, change: float | None) -> Verdict:
        last = self.last_step and at.total is not None and at.step >= at.total - 1
        due = state.computed is None or at.step - state.computed >= math.floor(state.length)
        return Verdict(not (last or due), Reason.SCHEDULE)

    def advance(self, state: Window, at: Moment, verdict: Verdict, signal: object) -> Window:
        if verdict.skip:
            return state
        own = verdict.reason is Reason.SCHEDULE and state.computed is not None
        return Window(at.step, state.length + self.growth if own else state.length)


@options
class IntervalConfig(CacheConfig):
    """Compute the warm-up, then every n-th step.

    The schedule of FORA (arXiv 2407.01425) and TaylorSeer (arXiv 2503.06923): see `place` and the calibrators
    for what is cached. The interval counts from the step computed last: behind a warm-up of 3 steps an
    interval of 5 computes the steps 7, 12, 17 and so on. (diffusers' TaylorSeer computes 4, 9, 14.)

    Attributes:
        interval: Every how many steps one is computed; 1 skips nothing. Default 3.
        max_warmup_steps: First steps that are computed. Default 3, as in TaylorSeer's code.
        last_step_computed: Compute the last step too, where the length of the run is known. Default False.
    """

    method: ClassVar[str] = "Interval"

    interval: int = option(whole(1), default=3)
    max_warmup_steps: int = option(whole(0), default=3)
    last_step_computed: bool = option(flag, default=False)

    def gate(self) -> IntervalGate:
        """The rule of this method, for steps that no limit decides."""
        return IntervalGate(self.interval, last_step=self.last_step_computed)

    def label(self) -> str:
        """`N` and the interval; `L` where the last step is computed."""
        return f"N{self.interval}{'L' if self.last_step_computed else ''}"
