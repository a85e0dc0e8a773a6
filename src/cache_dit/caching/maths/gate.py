"""When to skip: the contract of gates, and the limits that hold for every one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from cache_dit.caching.maths.moment import Moment


class Signal(Enum):
    """What a gate looks at in a forward, before it decides.

    `RESIDUAL` and `PROBE` need first blocks that always run: `Fn_compute_blocks` of 1 or more.
    """

    NONE = "nothing"
    RESIDUAL = "the change of the main stream over the first blocks"
    PROBE = "a `Probe`: what leaves the first blocks, and that change"
    ENTRY = "the main stream that enters the segment"
    MODULATED = "the main stream that enters the first block, normalised and modulated for this timestep"
    LATENT = "the first tensor that enters the transformer"


class Probe(NamedTuple):
    """What the first blocks return on the main stream, and their change to it; both of its shape."""

    output: Tensor
    residual: Tensor


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
    SCHEDULE = "schedule"
    NO_HISTORY = "nothing to forecast from"
    RESHAPED = "shape changed"
    FOLLOWS = "follows the first list"
    INCOMPLETE = "segment not run to its end"
    SWITCHED = "condition switched"
    UNCERTAIN = "run not yet told from a dropped one"
    REJECTED = "the forecast failed its check"
    AWAY = "the branch was skipped before"
    NOT_FINITE = "NaN or infinite values on an earlier step"


class Verdict(NamedTuple):
    """One decision: skip or compute, why, and the measured change if there was one."""

    skip: bool
    reason: Reason
    change: float | None = None


class Gate(ABC):
    """A rule that says of each step whether the segment may be skipped.

    A gate is immutable configuration; its state is a value that the engine keeps for each request, CFG branch
    and segment. In a step the engine asks `certain`; where that is None and `signal` is not `Signal.NONE` it
    takes the signal and asks `measure`; then `decide`; and `advance` in the end.
    """

    signal: ClassVar[Signal] = Signal.NONE
    needs_noise: ClassVar[bool] = False
    """Whether it needs the noise level of a step, `at.sigma`."""
    learns: ClassVar[bool] = False
    """Whether it wants to know, on computed steps, how far off the forecast would have been."""
    verifies: ClassVar[bool] = False
    """Whether it wants the first block behind a skipped segment to be compared with its own forecast."""
    looks_at_output: ClassVar[bool] = False
    """Whether it wants to see what left the segment on computed steps."""

    @property
    def looks_back(self) -> int:
        """How many of the latest signals it compares with."""
        return 1

    def certain(self, step: int) -> Reason | None:
        """Why a step is computed whatever is measured and whatever the state is; None: it may be skipped.

        Nothing is kept for a step that is certain, so be exact.
        """
        return None

    def init(self) -> Any:
        """The state before the first step."""
        return None

    def measure(self, state: Any, at: Moment, signal: Any) -> float | None:
        """One number from the signal, the one wait for the device in a step; None: nothing to compare."""
        return None

    @abstractmethod
    def decide(self, state: Any, at: Moment, change: float | None) -> Verdict | None:
        """Skip or compute; None where a change is needed and was not given (yet)."""

    def advance(self, state: Any, at: Moment, verdict: Verdict, signal: Any) -> Any:
        """The state after the step; `verdict` as carried out, `signal` None where it was not taken."""
        return state

    def learn(self, state: Any, at: Moment, error: float) -> Any:
        """The state after a computed step whose forecast was off by `error` (relative L1)."""
        return state

    def sees(self, state: Any, at: Moment, entry: Tensor, output: Tensor) -> Any:
        """The state after a computed step: the main stream as it entered the segment and as it left it."""
        return state

    def accepts(self, state: Any, at: Moment, error: float) -> bool:
        """Whether a skipped step stands whose check was off by `error` (relative L1), or is computed."""
        return True


class Counters(NamedTuple):
    """Skipped steps of the run and in a row, the sum of their changes in a row, and the gate's state."""

    cached: int
    continuous: int
    accumulated: float
    gate: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A gate within limits. Rules in order: warm-up or mask, the gate's certain steps, limits, the gate.

    Attributes:
        gate: The rule for steps that no limit decides.
        warmup: Number of first steps in which every `warmup_interval`-th is computed for certain.
        warmup_interval: See `warmup`.
        max_cached: Largest number of skipped steps in a run; -1 for no limit.
        max_continuous: Largest number of skipped steps in a row; -1 for no limit.
        max_accumulated: Largest sum of changes over skipped steps in a row; None for no limit.
        mask: 1 computes and 0 may skip, by step, in place of the warm-up; steps behind its end are computed.
    """

    gate: Gate
    warmup: int = 0
    warmup_interval: int = 1
    max_cached: int = -1
    max_continuous: int = -1
    max_accumulated: float | None = None
    mask: Sequence[int] | None = None

    def init(self) -> Counters:
        """The state before the first step."""
        return Counters(0, 0, 0.0, self.gate.init())

    def certain(self, step: int) -> Reason | None:
        """Why a step is computed for certain; None: it may be skipped."""
        if self.mask is not None:
            if step >= len(self.mask) or self.mask[step]:
                return Reason.MASK
        elif step < self.warmup and step % self.warmup_interval == 0:
            return Reason.WARMUP
        return self.gate.certain(step)

    def may_skip(self, step: int, horizon: int, total: int | None) -> bool:
        """Whether any of the next `horizon` steps may be skipped, as far as that is known beforehand."""
        stop = step + 1 + horizon if total is None else min(step + 1 + horizon, total)
        # The nearest step first: in most runs it is the answer.
        return any(self.certain(later) is None for later in range(step + 1, stop))

    def decide(self, state: Counters, at: Moment, change: float | None = None) -> Verdict | None:
        """Skip or compute; None where the gate needs a change and none was given."""
        certain = self.certain(at.step)
        if certain is not None:
            return Verdict(False, certain)
        if 0 <= self.max_cached <= state.cached:
            return Verdict(False, Reason.CACHED_LIMIT)
        if 0 <= self.max_continuous <= state.continuous:
            return Verdict(False, Reason.CONTINUOUS_LIMIT)
        verdict = self.gate.decide(state.gate, at, change)
        if self.max_accumulated is None or verdict is None or not verdict.skip or verdict.change is None:
            return verdict
        # Written so that a NaN is computed.
        if not state.accumulated + verdict.change <= self.max_accumulated:
            return Verdict(False, Reason.ACCUMULATED_LIMIT, verdict.change)
        return verdict

    def measure(self, state: Counters, at: Moment, signal: Any) -> float | None:
        """What the gate makes of the signal."""
        return self.gate.measure(state.gate, at, signal)

    def advance(self, state: Counters, at: Moment, verdict: Verdict, signal: Any) -> Counters:
        """The state after a step; all but the skipped steps of the run starts anew at a computed step."""
        gate = self.gate.advance(state.gate, at, verdict, signal)
        if not verdict.skip:
            return Counters(state.cached, 0, 0.0, gate)
        accumulated = state.accumulated + (verdict.change or 0.0)
        return Counters(state.cached + 1, state.continuous + 1, accumulated, gate)
