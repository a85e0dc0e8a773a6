"""Surprise: skip while the first blocks do what was to be expected of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cache_dit.caching.config import CacheConfig
from cache_dit.caching.forecasters.history import Computed
from cache_dit.caching.forecasters.newton import extrapolate
from cache_dit.caching.gates.residual import ResidualGate
from cache_dit.caching.maths.change import l1_norm, relative_l1
from cache_dit.caching.maths.gate import Gate, Reason, Signal, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import option, options, real, whole


@dataclass(frozen=True, slots=True)
class SurpriseGate(Gate):
    """Skip while `mean|r_t - forecast of r_t| / mean|r_s|` is small, with `s` the last computed step."""

    signal: ClassVar[Signal] = Signal.RESIDUAL
    rule: ResidualGate
    order: int

    @property
    def looks_back(self) -> int:
        return self.order + 1

    def certain(self, step: int) -> Reason | None:
        return self.rule.certain(step)

    def init(self) -> Computed:
        return Computed((), ())

    def measure(self, state: Computed, at: Moment, signal: Tensor) -> float | None:
        if not state.values or state.values[0].shape != signal.shape:
            return None
        return relative_l1(signal, extrapolate(*state, at.time), l1_norm(state.values[0]), at.reduce)

    def decide(self, state: Computed, at: Moment, change: float | None) -> Verdict | None:
        return self.rule.decide(None, at, change)

    def advance(self, state: Computed, at: Moment, verdict: Verdict, signal: Tensor | None) -> Computed:
        if verdict.skip or signal is None:
            return state
        same = state.values and state.values[0].shape == signal.shape
        return (state if same else self.init()).with_value(at.time, signal, self.order + 1)


@options
class SurpriseConfig(CacheConfig):
    """Skip while the first blocks' residual is near its forecast.

    DBCache asks whether the first blocks do the same as on the last computed step; where the skipped part is
    forecast that asks too much. So their residual is forecast too, and the error decides (this project).

    Attributes:
        threshold: Skip while the error relative to the residual (L1) is below; 0 never skips. Default 0.05.
        order: Degree of the forecast, 0 to 4, as in the calibrator. Costs one tensor each. Default 1.
        Fn_compute_blocks: First blocks, which are always computed. Default 1.
        max_warmup_steps: First steps that are computed. Default 4.
    """

    method: ClassVar[str] = "Surprise"

    threshold: float = option(real(0.0), default=0.05)
    order: int = option(whole(0, 4), default=1)
    Fn_compute_blocks: int = option(whole(1), default=1)
    max_warmup_steps: int = option(whole(0), default=4)

    def gate(self) -> SurpriseGate:
        return SurpriseGate(ResidualGate(self.threshold), self.order)

    def label(self) -> str:
        return f"SUR{self.threshold:g}O{self.order}"
