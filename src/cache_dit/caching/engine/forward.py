"""One forward of the transformer: which blocks run, which are skipped, and what is learnt from it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from torch import Tensor, nn

from cache_dit.caching.engine.flow import FlowCheck
from cache_dit.caching.engine.plan import Segment, Slot
from cache_dit.caching.engine.ports import Arguments, Keywords
from cache_dit.caching.engine.state import SegmentState, detached
from cache_dit.caching.maths.gates import Reason, Verdict
from cache_dit.errors import EngineError

BlockCall = Callable[..., Any]


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
        keeps_signal: The signal of this step is the reference of the next one if the step is computed.
        flow: Present on the first forward, to check the declared data flow.
        change: Change taken over from another branch of the step; None: measured here.
        segment: Its plan.
        skipping: The blocks inside hand their inputs through; read by every block call.
        computing: The blocks inside run as they are and nothing is to be learnt from them; likewise.
        verdict: The decision, once the segment was entered.
    """

    _state: SegmentState
    _step: int
    _known: Verdict | None
    _leader: SegmentRun | None
    observes: bool
    keeps_signal: bool
    flow: FlowCheck | None
    change: float | None = None
    segment: Segment = field(init=False)
    skipping: bool = False
    computing: bool = False
    verdict: Verdict | None = None
    _phase: _Phase = _Phase.WAITING
    _entry: tuple[Any, ...] = ()
    _result: tuple[Any, ...] = ()
    _head: Tensor | None = None
    _before: Any = field(init=False)

    def __post_init__(self) -> None:
        self.segment, self._before = self._state.segment, self._state.gate

    @property
    def idle(self) -> bool:
        """Whether the forward needs no interception here: it is computed and nothing of it is needed."""
        known = self._known if self._leader is None else self._leader._known
        needed = self.flow is not None or self.observes or self.keeps_signal
        return known is not None and not known.skip and not needed

    def visit(self, slot: Slot, call: BlockCall, block: nn.Module, args: Arguments, kwargs: Keywords) -> Any:
        """Run, skip or deliver at one block; `call` is the block's own `__call__`."""
        if self.flow is None:
            return self._visit(slot, call, block, args, kwargs)
        self.flow.before(args, kwargs)
        output = self._visit(slot, call, block, args, kwargs)
        self.flow.after(output)
        return output

    def finish(self) -> bool:
        """End the forward; False if blocks were skipped but nothing was delivered, so the output is wrong.

        A segment whose last block was not called is computed from now on, until it runs to its end.
        """
        if self._phase in (_Phase.WAITING, _Phase.CLOSED):
            return True
        self._state.forget()
        return self._phase is not _Phase.SKIPPING

    def rewind(self) -> None:
        """Take back what this forward did to the counters."""
        self._state.gate = self._before

    def settle(self) -> Verdict:
        """The decision as carried out; brings the counters on where the forward was not intercepted."""
        if self.verdict is None:
            planned = self._known or Verdict(False, Reason.FOLLOWS)
            self.verdict = planned if self.idle else Verdict(False, Reason.INCOMPLETE)
            if self.segment.gate is not None:
                self._state.gate = self.segment.gate.advance(self._state.gate, self.verdict, None)
        return self.verdict

    def _visit(self, slot: Slot, call: BlockCall, block: nn.Module, args: Arguments, kwargs: Keywords) -> Any:
        segment = self.segment
        if not segment.start <= slot.index < segment.stop:
            if slot.index == 0 and self._measures():
                self._head = segment.ports.read(args, kwargs)[segment.ports.main]
            return call(block, *args, **kwargs)
        if self._phase is _Phase.WAITING:
            self._enter(args, kwargs)
        last = slot.index == segment.stop - 1
        if self._phase is _Phase.SKIPPING:
            return self._skip(slot.index, last, args, kwargs)
        if self._phase is _Phase.CLOSED:
            raise EngineError(
                f"{segment.label}: block {slot.index} ran again after the end of the list, in one forward; "
                "caching needs lists that run once. Disable the cache for this model."
            )
        output = call(block, *args, **kwargs)
        if self.observes and segment.sided:
            self._state.keep_sides(slot.index, output)
        if last:
            if self.observes:
                self._state.observe(self._step, self._entry, output)
            self._phase, self.computing, self._entry = _Phase.CLOSED, False, ()
        return output

    def _measures(self) -> bool:
        if not self.segment.prefixed or self.change is not None:
            return False
        return self._known is None or (not self._known.skip and self.keeps_signal)

    def _enter(self, args: Arguments, kwargs: Keywords) -> None:
        entry = self.segment.ports.read(args, kwargs)
        fits = self._state.fits(entry)
        signal = self._signal(entry) if self._measures() else None
        verdict = self._decide(signal)
        if verdict.skip and not self._state.ready:
            verdict = Verdict(False, Reason.NO_HISTORY if fits else Reason.RESHAPED, verdict.change)
        self.verdict = verdict
        if self.segment.gate is not None:
            kept = signal if self.keeps_signal else None
            self._state.gate = self.segment.gate.advance(self._state.gate, verdict, kept)
        if verdict.skip:
            self._phase, self.skipping = _Phase.SKIPPING, True
            # Made here and not at the exit: the model may write into the tensors that are handed through.
            self._result = self._state.forecast(self._step, entry)
        else:
            self._phase, self._entry, self.computing = _Phase.COMPUTING, entry, self.flow is None

    def _signal(self, entry: tuple[Any, ...]) -> Tensor | None:
        tail: Tensor = entry[self.segment.ports.main]
        if self.segment.stacked:
            tail = tail[-1]
        if self._head is None or self._head.shape != tail.shape:
            return None
        signal: Tensor = detached(tail) - detached(self._head)
        return signal

    def _decide(self, signal: Tensor | None) -> Verdict:
        if self._leader is not None:
            leading = self._leader.verdict
            return Verdict(leading is not None and leading.skip, Reason.FOLLOWS)
        if self._known is not None:
            return self._known
        gate, state, change = self.segment.gate, self._state.gate, self.change
        assert gate is not None  # only followers have none
        if change is None and signal is not None:
            change = gate.measure(state, signal)
        verdict = None if change is None else gate.decide(state, self._step, change)
        return verdict or Verdict(False, Reason.NO_HISTORY)

    def _skip(self, index: int, last: bool, args: Arguments, kwargs: Keywords) -> Any:
        ports = self.segment.ports
        values = self._result if last else ports.read(args, kwargs)
        if last:
            self._phase, self.skipping, self._result = _Phase.CLOSED, False, ()
        return ports.pack(self._state.with_sides(index, values))


@dataclass(slots=True)
class Frame:
    """The forward that is under way: what every block call looks itself up in."""

    slots: dict[nn.Module, Slot]
    runs: list[SegmentRun]


current_frame: ContextVar[Frame | None] = ContextVar("cache_dit_frame", default=None)
