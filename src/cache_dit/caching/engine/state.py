"""What is kept between the steps of a run: one `SegmentState` for each branch and segment."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cache_dit.caching.engine.flow import unpack, wrong_form
from cache_dit.caching.engine.plan import Segment
from cache_dit.errors import EngineError

_layout = attrgetter("shape", "dtype", "device")


class SegmentState:
    """Gate state, forecaster states and side outputs of one segment in one branch of one run.

    Attributes:
        grown: Memory was taken for a tensor that has to be kept since the bytes were counted last.
    """

    __slots__ = ("_absent", "_form", "forecasts", "gate", "grown", "ready", "segment", "sides")

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.gate: Any = None if segment.gate is None else segment.gate.init()
        self.grown = False
        self.forget()

    def forget(self) -> None:
        """Drop everything that forecasts are made of; the gate's counters stay."""
        self.forecasts: list[Any] = [None if f is None else f.init() for f in self.segment.forecasters]
        self.sides: dict[int, tuple[Any, ...]] = {}
        self.ready = False
        self._absent: tuple[bool, ...] = ()
        self._form: tuple[Any, ...] = ()

    def fits(self, entry: tuple[Any, ...]) -> bool:
        """Whether forecasts made so far can stand in for this entry; if not they are dropped.

        Tensors made under `inference_mode` cannot be updated in place outside of it, so a change of mode
        counts as a change of shape.
        """
        form = (torch.is_inference_mode_enabled(), *[getattr(value, "shape", None) for value in entry])
        changed = self.ready and form != self._form
        if changed:
            self.forget()
        self._form = form
        return not changed

    def observe(self, step: int, entry: tuple[Any, ...], output: Any) -> None:
        """Take in what left the segment on a computed step.

        Raises:
            PatternError: The last block returned another number of values than declared.
            EngineError: A stream changed its shape within the segment.
        """
        values = unpack(self.segment, output)
        for slot, forecaster in enumerate(self.segment.forecasters):
            if forecaster is not None and values[slot] is not None:
                state = self.forecasts[slot]
                fresh = self._value(entry[slot], values[slot], forecaster.spare(state))
                self.forecasts[slot] = forecaster.observe(state, step, fresh)
        self._absent = tuple(value is None for value in values)
        self.ready = True

    def forecast(self, step: int, entry: tuple[Any, ...]) -> tuple[Any, ...]:
        """What leaves the segment on a skipped step; every tensor is the caller's own."""
        values: list[Any] = []
        for slot, forecaster in enumerate(self.segment.forecasters):
            if forecaster is None or self._absent[slot]:
                values.append(None)
                continue
            value = forecaster.predict(self.forecasts[slot], step)
            values.append(torch.add(entry[slot], value) if self.segment.residual else value.clone())
        return tuple(values)

    def with_sides(self, index: int, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """`values` with the side outputs that block `index` returned on the last computed step."""
        kept = self.sides.get(index)
        if kept is None:
            return values
        slots = self.segment.ports.slots
        return tuple(kept[i] if slots[i] is None else values[i] for i in range(len(slots)))

    def keep_sides(self, index: int, output: Any) -> None:
        """Remember the side outputs of a block."""
        pairs = zip(self.segment.ports.slots, unpack(self.segment, output), strict=True)
        self.sides[index] = tuple(detached(value) if port is None else None for port, value in pairs)

    def tensors(self) -> Any:
        """Everything that may hold tensors."""
        return (self.gate, self.forecasts, self.sides)

    def count(self) -> int:
        """Bytes of all tensors that are kept now."""
        self.grown = False
        return sum(leaf.nbytes for leaf in tree_leaves(self.tensors()) if isinstance(leaf, Tensor))

    def _value(self, entry: Any, value: Any, spare: Tensor | None) -> Tensor:
        if not isinstance(value, Tensor):
            raise wrong_form(self.segment, value)
        value = detached(value)
        # Strides do not matter: a stream is often a part of a larger tensor, and what is kept of it is not.
        if spare is None or _layout(spare) != _layout(value):
            spare, self.grown = None, True
        if not self.segment.residual:
            # The model may write into its own tensor later, so a copy is kept.
            return value.clone() if spare is None else spare.copy_(value)
        if entry is None or entry.shape != value.shape:
            segment, enters = self.segment, "nothing" if entry is None else tuple(entry.shape)
            raise EngineError(
                f"{segment.label}: {enters} enters block {segment.start} and {tuple(value.shape)} leaves "
                f"block {segment.stop - 1}; a change can only be kept between blocks with one layout. Choose "
                "Fn_compute_blocks and Bn_compute_blocks so that both ends have it, or "
                "calibrator_cache_type='hidden_states'."
            )
        return torch.sub(value, detached(entry), out=spare)


def detached(value: Any) -> Any:
    """The value without the graph that it is part of; most forwards make none, and then it is the value."""
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value
