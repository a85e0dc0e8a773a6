"""When to skip: gates.

A gate is immutable configuration; its state is a value that the engine keeps for each (request, CFG
branch, segment). The contract:

    measures                                    whether it ever looks at a signal
    init() -> state
    must_compute(step) -> bool                  certain from the step alone: nothing is kept for it
    decide(state, step, change) -> verdict      None where a change is needed and not given
    measure(state, signal) -> change            one number from the signal tensor, the one sync of a step;
                                                None where there is nothing to compare with
    advance(state, verdict, signal) -> state    the verdict as carried out; `signal` only if it was wanted
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from cache_dit.caching.maths.change import l1_norm, relative_l1


class Reason(Enum):
    """Why a step was computed or skipped."""

    WARMUP = "warm-up"
    MASK = "steps mask"
    OFF = "threshold 0"
    CACHED_LIMIT = "max_cached_steps reached"
    CONTINUOUS_LIMIT = "max_continuous_cached_steps reached"
    ACCUMULATED_LIMIT = "accumulated change too large"
    CHANGED = "change at or over threshold"
    SIMILAR = "change under threshold"
    ALWAYS = "threshold 1"
    NO_HISTORY = "nothing to forecast from"
    RESHAPED = "shape changed"
    FOLLOWS = "follows the first list"
    INCOMPLETE = "segment not run to its end"
    SWITCHED = "condition switched"
    UNCERTAIN = "run not yet told from a dropped one"


class Verdict(NamedTuple):
    """One decision: skip or compute, why, and the measured change if there was one."""

    skip: bool
    reason: Reason
    change: float | None = None


class Gate(Protocol):
    """The contract of this module."""

    @property
    def measures(self) -> bool: ...
    def init(self) -> Any: ...
    def must_compute(self, step: int) -> bool: ...
    def decide(self, state: Any, step: int, change: float | None = None) -> Verdict | None: ...
    def measure(self, state: Any, signal: Tensor) -> float | None: ...
    def advance(self, state: Any, verdict: Verdict, signal: Tensor | None) -> Any: ...


class GateState(NamedTuple):
    """Counters of a run, and the signal of the last computed step with its L1 norm."""

    cached: int = 0
    continuous: int = 0
    accumulated: float = 0.0
    reference: Tensor | None = None
    norm: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualGate:
    """DBCache's rule: skip while the first blocks' residual is near that of the last computed step.

    The signal is the residual of the first `Fn` blocks, `h_Fn - h_0`, and the change
    `mean|r_s - r_t| / mean|r_s|` with `s` the last computed step; FBCache is the same rule with one first
    block. Rules in order: warm-up, mask, limits on skipped steps, limit on the sum of changes since the
    last computed step, threshold. A mask replaces the warm-up.

    Attributes:
        threshold: Skip while the change is below; 0 or less never skips, 1 or more always.
        warmup: Number of first steps in which every `warmup_interval`-th is computed for certain.
        warmup_interval: See `warmup`.
        max_cached: Largest number of skipped steps in a run; -1 for no limit.
        max_continuous: Largest number of skipped steps in a row; -1 for no limit.
        max_accumulated: Largest sum of changes over skipped steps in a row; None for no limit.
        mask: 1 computes and 0 may skip, by step; steps behind its end are computed.
        static: The mask alone decides; nothing is measured.
    """

    threshold: float
    warmup: int = 0
    warmup_interval: int = 1
    max_cached: int = -1
    max_continuous: int = -1
    max_accumulated: float | None = None
    mask: tuple[int, ...] | None = None
    static: bool = False

    @property
    def measures(self) -> bool:
        return not self.static and (self.threshold < 1.0 or self.max_accumulated is not None)

    def init(self) -> GateState:
        return GateState()

    def must_compute(self, step: int) -> bool:
        return self._certain(step) is not None

    def decide(self, state: GateState, step: int, change: float | None = None) -> Verdict | None:
        certain = self._certain(step)
        if certain is not None:
            return Verdict(False, certain)
        if self.static:
            return Verdict(True, Reason.MASK)
        if 0 <= self.max_cached <= state.cached:
            return Verdict(False, Reason.CACHED_LIMIT)
        if 0 <= self.max_continuous <= state.continuous:
            return Verdict(False, Reason.CONTINUOUS_LIMIT)
        if not self.measures:
            return Verdict(True, Reason.ALWAYS)
        if change is None:
            return None
        # Both comparisons are written so that a NaN is computed.
        if self.max_accumulated is not None and not state.accumulated + change <= self.max_accumulated:
            return Verdict(False, Reason.ACCUMULATED_LIMIT, change)
        similar = change < self.threshold or self.threshold >= 1.0
        return Verdict(similar, Reason.SIMILAR if similar else Reason.CHANGED, change)

    def measure(self, state: GateState, signal: Tensor) -> float | None:
        if state.reference is None or state.reference.shape != signal.shape:
            return None
        return relative_l1(signal, state.reference, state.norm)

    def advance(self, state: GateState, verdict: Verdict, signal: Tensor | None) -> GateState:
        if not verdict.skip:
            norm = None if signal is None else l1_norm(signal)
            return GateState(cached=state.cached, reference=signal, norm=norm)
        accumulated = state.accumulated + (verdict.change or 0.0)
        return GateState(state.cached + 1, state.continuous + 1, accumulated, state.reference, state.norm)

    def _certain(self, step: int) -> Reason | None:
        if self.mask is not None:
            if step >= len(self.mask) or self.mask[step]:
                return Reason.MASK
        elif step < self.warmup and step % self.warmup_interval == 0:
            return Reason.WARMUP
        if self.threshold <= 0.0 and not self.static:
            return Reason.OFF
        return None
