"""One forward of the transformer: which blocks run, which are skipped, and what is learnt from it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, nn

from cache_dit.caching.engine.flow import FlowCheck
from cache_dit.caching.engine.plan import Segment, Slot
from cache_dit.caching.engine.ports import Call
from cache_dit.caching.engine.state import SegmentState, beside, detached
from cache_dit.caching.engine.tokens import is_tokenwise, on_tokens
from cache_dit.caching.maths.change import relative_l1
from cache_dit.caching.maths.gate import Probe, Reason, Signal, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.tokens import Tokens, put_rows
from cache_dit.errors import EngineError


class _Phase(Enum):
    WAITING = auto()
    COMPUTING = auto()
    SKIPPING = auto()
    CLOSED = auto()


@dataclass(slots=True, eq=False)
class SegmentRun:
    """One segment in one forward.

    Attributes:
        observes: The values of this step may be needed by a later one.
        keeps_signal: The signal of this step may be what that of the next one is compared with.
        flow: Present on the first forward, to check the declared data flow.
        latent: The first tensor that entered the transformer.
        guide: For a branch as a whole, what stands for its entry: the other branch's output in this step, one
            entry for each tensor; none where it is not known yet.
        change: Change taken over from another branch of the step; None: measured here.
        share: Of the tokens that were computed although the step is skipped.
        error: Of the forecast, where the gate has it measured.
        rejected: What was delivered failed its check.
        segment: Its plan.
        skipping: The blocks inside hand their inputs through; read by every block call.
        computing: The blocks inside run as they are and nothing is to be learnt from them; likewise.
        verdict: The decision, once the segment was entered.
    """

    _state: SegmentState
    _at: Moment
    _known: Verdict | None
    _leader: SegmentRun | None
    observes: bool
    keeps_signal: bool
    flow: FlowCheck | None
    latent: Tensor | None = None
    guide: tuple[Any, ...] | None = None
    change: float | None = None
    share: float = 0.0
    error: float | None = None
    rejected: bool = False
    segment: Segment = field(init=False)
    skipping: bool = False
    computing: bool = False
    verdict: Verdict | None = None
    _phase: _Phase = _Phase.WAITING
    _entry: tuple[Any, ...] = ()
    _result: tuple[Any, ...] = ()
    _head: Tensor | None = None
    _before: Any = field(init=False)
    # The values of this call, where one module is called several times in a forward.
    _values: SegmentState = field(init=False)

    def __post_init__(self) -> None:
        self.segment, self._before, self._values = self._state.segment, self._state.gate, self._state

    @property
    def idle(self) -> bool:
        """Whether the forward needs no interception here: it is computed and nothing of it is needed."""
        known = self._known if self._leader is None else self._leader._known
        needed = self.flow is not None or self.observes or self.keeps_signal
        return known is not None and not known.skip and not needed

    def visit(self, slot: Slot, call: Call) -> Any:
        """Run, skip or deliver at one block."""
        if self.flow is None:
            return self._visit(slot, call)
        self.flow.before(call)
        output = self._visit(slot, call)
        self.flow.after(output)
        return output

    def finish(self) -> bool:
        """End the forward; False if blocks were skipped but nothing was delivered, so the output is wrong.

        Or if what was delivered failed its check. A segment whose last block was not called is computed from
        now on, until it runs to its end.
        """
        if self._phase in (_Phase.WAITING, _Phase.CLOSED):
            return not self.rejected
        self._state.forget()
        return self._phase is not _Phase.SKIPPING

    def enters(self, call: Call) -> bool:
        """Decide ahead of the visit, where the segment is one module; whether that has to be computed."""
        self._enter(call)
        return not self.skipping

    def rewind(self) -> None:
        """Take back what this forward did to the counters."""
        self._state.gate = self._before

    def settle(self) -> Verdict:
        """The decision as carried out; brings the counters on where the forward was not intercepted."""
        if self.verdict is None:
            planned = self._known or Verdict(False, Reason.FOLLOWS)
            self.verdict = planned if self.idle else Verdict(False, Reason.INCOMPLETE)
            self._advance(self.verdict, None)
        return self.verdict

    def _visit(self, slot: Slot, call: Call) -> Any:
        segment = self.segment
        if not segment.start <= slot.index < segment.stop:
            return self._watch(slot.index, call)
        if self._phase is _Phase.CLOSED and segment.opaque:
            self._values, self._phase = self._values.further(), _Phase.WAITING
        if self._phase is _Phase.WAITING:
            self._enter(call)
        last = slot.index == segment.stop - 1
        if self._phase is _Phase.SKIPPING:
            if segment.tokens is not None:
                self._refresh(segment.tokens, call)
            return self._skip(slot.index, last, call)
        if self._phase is _Phase.CLOSED:
            raise EngineError(
                f"{segment.label}: block {slot.index} ran again after the end of the list, in one forward; "
                "caching needs lists that run once. Disable the cache for this model."
            )
        output = call.run()
        if self.observes and segment.sided:
            self._state.keep_sides(slot.index, output)
        if last:
            if self.observes:
                if self._values is self._state:
                    self._learn(output)
                self._values.observe(self._at, self._entry, output)
                if segment.tokens is not None and self._values.tokenwise is None:
                    self._values.tokenwise = segment.blank or is_tokenwise(call, output)
                self._state.grown |= self._values.grown
            self._phase, self.computing, self._entry = _Phase.CLOSED, False, ()
        return output

    def _refresh(self, tokens: Tokens, call: Call) -> None:
        """Compute some tokens of a skipped module after all."""
        values, frame, result = self._values, current_frame.get(), self._result[0]
        if not values.tokenwise or frame is None:
            return
        # One choice for all modules with as many tokens, so that what one passes on is computed in the next.
        shape = result.shape[:2]
        if shape not in frame.chosen:
            # What is blank has nothing to show, so what enters it does.
            seen = call.tensors()[0] if self.segment.blank else result
            frame.chosen[shape], values.ages = tokens.choose(values.ages, seen, self._at.step)
        index = frame.chosen[shape]
        if index is None:
            return
        rows = detached(on_tokens(call, shape, index))
        values.patch(index, rows, self._at.reduce)
        whole = result.new_zeros(result.shape) if self.segment.blank else result
        self._result, self.share = (put_rows(whole, index, rows),), index.shape[1] / shape[1]

    def _watch(self, index: int, call: Call) -> Any:
        """A block outside of the segment, which runs whatever is decided."""
        ports = self.segment.ports
        if index == 0 and self._measures():
            self._head = self._state.main(ports.read(call))
        output = call.run()
        if index == self.segment.stop and self.segment.verifies and self.verdict is not None:
            entry, values = ports.read(call), ports.unpack(output)
            if values is not None:
                self._check(detached(self._state.main(values)) - detached(self._state.main(entry)))
        return output

    def _check(self, change: Tensor) -> None:
        """Hold the first block behind the segment against its own forecast, or let it be learnt."""
        state, leading = self._state, self._leader or self
        policy = leading.segment.policy
        # There are none before the first step that was worth keeping.
        forecaster = state.forecasters[self.segment.ports.main] if state.forecasters else None
        if forecaster is None or self.verdict is None:
            return
        if not self.verdict.skip:
            known = forecaster.init() if state.check is None else state.check
            state.check = forecaster.observe(known, self._at, change)
        elif state.check is not None and policy is not None:
            draft = forecaster.predict(state.check, self._at)
            self.error = error = relative_l1(draft, change, reduce=self._at.reduce)
            self.rejected = not policy.gate.accepts(leading._state.gate.gate, self._at, error)

    def _learn(self, output: Any) -> None:
        """Tell the gate what it wants to know of a computed step."""
        policy, state = self.segment.policy, self._state
        if policy is None:
            return
        gate = policy.gate
        if gate.learns:
            error = self.error = state.error(self._at, self._entry, output)
            if error is not None:
                state.gate = state.gate._replace(gate=gate.learn(state.gate.gate, self._at, error))
        if gate.looks_at_output:
            left = state.main(state.values(output))
            known = gate.sees(state.gate.gate, self._at, state.main(self._entry), left)
            state.gate = state.gate._replace(gate=known)

    def _measures(self) -> bool:
        if self.segment.signal is Signal.NONE or self.change is not None:
            return False
        return self._known is None or (not self._known.skip and self.keeps_signal)

    def _enter(self, call: Call) -> None:
        values, known = self._values, self.verdict
        entry = self.segment.entry(call) if self.guide is None else self.guide
        if values.recover():
            self._known = Verdict(False, Reason.NOT_FINITE)
        fits = values.fits(entry)
        signal = self._signal(entry, call) if known is None and self._measures() else None
        if signal is not None or self._leader is not None:
            self._at = self._at._replace(signal=signal if self._leader is None else self._leader._at.signal)
        # One decision for all calls of a module in a forward.
        verdict = known or self._decide(signal)
        if verdict.skip and not values.ready:
            verdict = Verdict(False, Reason.NO_HISTORY if fits else Reason.RESHAPED, verdict.change)
        if known is None:
            self.verdict = verdict
            self._advance(verdict, signal if self.keeps_signal else None)
        if verdict.skip:
            self._phase, self.skipping = _Phase.SKIPPING, True
            # Made here and not at the exit: the model may write into the tensors that are handed through.
            self._result = values.forecast(self._at, entry)
        else:
            self._phase, self._entry, self.computing = _Phase.COMPUTING, entry, self.flow is None

    def _advance(self, verdict: Verdict, signal: Any) -> None:
        if self.segment.policy is not None:
            self._state.gate = self.segment.policy.advance(self._state.gate, self._at, verdict, signal)

    def _signal(self, entry: tuple[Any, ...], call: Call) -> Any:
        """What the gate looks at, or None where it cannot be had in this forward."""
        segment, kind = self.segment, self.segment.signal
        if kind is Signal.LATENT:
            return None if self.latent is None else detached(self.latent)
        if kind is Signal.MODULATED:
            assert segment.modulate is not None  # else planning has refused
            return detached(segment.modulate(call.model, call.named(segment.parameters)))
        tail = self._state.main(entry)
        tail = tail[-1] if segment.stacked else tail
        if kind is Signal.ENTRY:
            return detached(tail)
        if self._head is None or self._head.shape != tail.shape:
            return None
        residual: Tensor = detached(tail) - beside(detached(self._head), tail)
        return Probe(detached(tail), residual) if kind is Signal.PROBE else residual

    def _decide(self, signal: Any) -> Verdict:
        if self._known is not None:
            return self._known
        if self._leader is not None:
            # Where nothing is looked at it is known before the leader is reached, which may run later.
            leading = self._leader.verdict or self._leader._known
            return Verdict(leading is not None and leading.skip, Reason.FOLLOWS)
        policy, state, change = self.segment.policy, self._state.gate, self.change
        assert policy is not None  # only followers have none
        if change is None and signal is not None:
            change = policy.measure(state, self._at, signal)
        if change is not None and change != change:
            return Verdict(False, Reason.NOT_FINITE)
        if change is not None and isinstance(self._at.changes, list):
            self._at.changes.append(change)
        verdict = None if change is None else policy.decide(state, self._at, change)
        return verdict or Verdict(False, Reason.NO_HISTORY)

    def _skip(self, index: int, last: bool, call: Call) -> Any:
        values = self._result if last else self.segment.ports.read(call)
        if last:
            self._phase, self.skipping, self._result = _Phase.CLOSED, False, ()
        return self._values.pack(index, values)


@dataclass(slots=True)
class Frame:
    """The forward that is under way: what every block call looks itself up in.

    `chosen` are the tokens that skipped modules compute, by the number of samples and tokens.
    """

    slots: dict[nn.Module, Slot]
    runs: list[SegmentRun]
    chosen: dict[torch.Size, Tensor | None] = field(default_factory=dict)


current_frame: ContextVar[Frame | None] = ContextVar("cache_dit_frame", default=None)
