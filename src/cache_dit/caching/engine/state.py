"""What is kept between the steps of a run: one `SegmentState` for each branch and segment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cache_dit.caching.engine.flow import wrong_form
from cache_dit.caching.engine.plan import Segment
from cache_dit.errors import EngineError


class SegmentState:
    """Gate state, forecaster states and side outputs of one segment in one branch of one run.

    Attributes:
        grown: Memory was taken for a tensor that has to be kept since the bytes were counted last.
    """

    __slots__ = (
        "_absent",
        "_inference",
        "_shapes",
        "forecasts",
        "gate",
        "grown",
        "ready",
        "segment",
        "sides",
    )

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
        self._shapes: tuple[Any, ...] = ()
        self._inference = False

    def fits(self, entry: tuple[Any, ...]) -> bool:
        """Whether forecasts made so far can stand in for this entry; if not they are dropped.

        Tensors made under `inference_mode` cannot be updated in place outside of it, so a change of mode
        counts as a change of shape.
        """
        shapes = tuple(getattr(value, "shape", None) for value in entry)
        inference = torch.is_inference_mode_enabled()
        changed = self.ready and (shapes != self._shapes or inference != self._inference)
        if changed:
            self.forget()
        self._shapes, self._inference = shapes, inference
        return not changed

    def observe(self, step: int, entry: tuple[Any, ...], output: Any) -> None:
        """Take in what left the segment on a computed step.

        Raises:
            PatternError: The last block returned another number of values than declared.
            EngineError: A stream changed its shape within the segment.
        """
        values = self.segment.ports.unpack(output)
        if values is None:
            raise wrong_form(self.segment, output)
        for slot, forecaster in enumerate(self.segment.forecasters):
            value = values[slot]
            if forecaster is None or value is None:
                continue
            state = self.forecasts[slot]
            fresh = self._value(entry[slot], value, forecaster.spare(state))
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
        values = self.segment.ports.unpack(output)
        if values is None:
            raise wrong_form(self.segment, output)
        slots = self.segment.ports.slots
        self.sides[index] = tuple(
            detached(value) if port is None else None for port, value in zip(slots, values, strict=True)
        )

    def tensors(self) -> Any:
        """Everything that may hold tensors."""
        return (self.gate, self.forecasts, self.sides)

    def count(self) -> int:
        """Bytes of all tensors that are kept now."""
        self.grown = False
        return _tensor_bytes(self.tensors())

    def _value(self, entry: Any, value: Any, spare: Tensor | None) -> Tensor:
        if not isinstance(value, Tensor):
            raise wrong_form(self.segment, value)
        value = detached(value)
        if spare is None or not _reusable(spare, value):
            spare, self.grown = None, True
        if not self.segment.residual:
            # The model may write into its own tensor later, so a copy is kept.
            return value.clone() if spare is None else spare.copy_(value)
        if entry is None or entry.shape != value.shape:
            raise self._reshaped(entry, value)
        return torch.sub(value, detached(entry), out=spare)

    def _reshaped(self, entry: Any, value: Tensor) -> EngineError:
        segment = self.segment
        enters = "nothing" if entry is None else tuple(entry.shape)
        return EngineError(
            f"{segment.label}: {enters} enters block {segment.start} and {tuple(value.shape)} leaves block "
            f"{segment.stop - 1}; a change can only be kept between blocks with one layout. Choose "
            "Fn_compute_blocks and Bn_compute_blocks so that both ends have it, or calibrator_cache_type="
            "'hidden_states'."
        )


def _reusable(spare: Tensor, value: Tensor) -> bool:
    # Strides do not matter: a stream is often a part of a larger tensor, and what is kept of it is not.
    return spare.shape == value.shape and spare.dtype == value.dtype and spare.device == value.device


def detached(value: Any) -> Any:
    """The value without the graph that it is part of; most forwards make none, and then it is the value."""
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value


def _tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return 0
    return sum(_tensor_bytes(item) for item in value)
