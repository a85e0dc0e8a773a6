"""The unconditional branch of classifier-free guidance: computed at an interval, within a window of noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from cache_dit.caching.config import CacheConfig
from cache_dit.caching.gates.interval import IntervalGate
from cache_dit.caching.maths.gate import Gate, Policy, Reason, Verdict
from cache_dit.caching.maths.moment import Moment


@dataclass(frozen=True, slots=True)
class WindowGate(Gate):
    """A rule that holds strictly between two noise levels; elsewhere compute.

    Where nothing tells the noise level, the share of the run still to come stands for it, and where the
    length of the run is unknown too, every step is computed.
    """

    needs_noise: ClassVar[bool] = True
    rule: Gate
    low: float
    high: float

    def init(self) -> Any:
        return self.rule.init()

    def decide(self, state: Any, at: Moment, change: float | None) -> Verdict | None:
        sigma = at.sigma
        if sigma is None:
            sigma = 1.0 if at.total is None else 1.0 - at.step / at.total
        if self.low < sigma < self.high:
            return self.rule.decide(state, at, change)
        return Verdict(False, Reason.SCHEDULE)

    def advance(self, state: Any, at: Moment, verdict: Verdict, signal: Any) -> Any:
        return self.rule.advance(state, at, verdict, signal)


def uncond_policy(cache: CacheConfig) -> Policy:
    """When the branch is computed: by its interval and window, and by the warm-up or mask of all."""
    assert cache.uncond_interval is not None  # the caller has looked
    limits, gate = cache.policy(), WindowGate(IntervalGate(cache.uncond_interval), *cache.uncond_window)
    return Policy(gate=gate, warmup=limits.warmup, warmup_interval=limits.warmup_interval, mask=limits.mask)
