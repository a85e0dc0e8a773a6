"""What is kept between the steps of a run: one `SegmentState` for each branch and segment."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from cache_dit.caching.engine.finite import all_finite
from cache_dit.caching.engine.flow import unpack, wrong_form
from cache_dit.caching.engine.plan import Segment
from cache_dit.caching.forecasters.reuse import Reuse
from cache_dit.caching.maths.change import relative_l1
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.moment import Moment, Reduce
from cache_dit.caching.maths.tokens import Ages
from cache_dit.errors import EngineError

_layout = attrgetter("shape", "device")


class SegmentState:
    """Gate state, forecaster states and side outputs of one segment in one branch of one run.

    Attributes:
        grown: Memory was taken for a tensor that has to be kept since the bytes were counted last.
        ages: How long tokens were repeated, where this segment chooses them; None: a step was computed.
        tokenwise: Whether the module was seen to compute every token by itself; None: it was not tried yet.
        again: The values of the next call of the same module in one forward; None: there was no further call.
    """

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.gate: Any = None if segment.policy is None else segment.policy.init()
        self.grown = False
        self._within: int | None = None
        self.forget()

    def forget(self) -> None:
        """Drop everything that forecasts are made of; the gate's counters stay."""
        self.forecasters: list[Forecaster | None] = []
        self.forecasts: list[Any] = []
        self.sides: dict[int, tuple[Any, ...]] = {}
        self.check: Any = None
        self.ages: Ages | None = None
        self.tokenwise: bool | None = None
        self.again: SegmentState | None = None
        self.ready = False
        self._constants: dict[int, Any] = {}
        self._dtypes: dict[int, torch.dtype] = {}
        self._sizes: dict[int, int] = {}
        self._form: tuple[Any, ...] = ()
        self._spec: TreeSpec | None = None
        self._finite = all_finite(())

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

    def recover(self) -> bool:
        """Begin anew if a NaN or an infinite value is among what was kept, and in that case return True."""
        if self._finite():
            return False
        self.forget()
        if self.segment.policy is not None:
            self.gate = self.gate._replace(gate=self.segment.policy.gate.init())
        return True

    def observe(self, at: Moment, entry: tuple[Any, ...], output: Any) -> None:
        """Take in what left the segment on a computed step.

        Raises:
            PatternError: The last block returned another number of values than declared.
            EngineError: A stream changed its shape within the segment.
        """
        values = self.values(output)
        if len(self.forecasters) != len(values):
            made = self.segment.forecasters
            self.forecasters = [self._limited(one) for one in (made * len(values) if self._spec else made)]
            self.forecasts = [None if one is None else one.init() for one in self.forecasters]
        self._constants.clear()
        self.ages, kept = None, []
        for slot, (forecaster, value) in enumerate(zip(self.forecasters, values, strict=True)):
            if forecaster is None:
                continue
            if not self._is_stream(value):
                self._constants[slot] = value
                continue
            if self.segment.blank:
                self._constants[slot] = value.new_zeros(()).expand(value.shape)
                continue
            state = self.forecasts[slot]
            kept.append(self._value(slot, entry, value, forecaster.spare(state)))
            self.forecasts[slot] = forecaster.observe(state, at, kept[-1])
        self.ready, self._finite = True, all_finite(kept, at.reduce)

    def forecast(self, at: Moment, entry: tuple[Any, ...]) -> tuple[Any, ...]:
        """What leaves the segment on a skipped step; every forecast tensor is the caller's own."""
        return tuple([self._forecast(slot, at, entry) for slot in range(len(self.forecasters))])

    def error(self, at: Moment, entry: tuple[Any, ...], output: Any) -> float | None:
        """Relative L1 error that a forecast of the main stream would have had; waits for the device."""
        slot = self.segment.ports.main
        value = self.values(output)[slot]
        if not self.ready or self.forecasters[slot] is None or not self._is_stream(value):
            return None
        return relative_l1(self._forecast(slot, at, entry), value, reduce=at.reduce)

    def pack(self, index: int, values: tuple[Any, ...]) -> Any:
        """The output of block `index` from one value a slot."""
        if self.segment.opaque:
            assert self._spec is not None  # set by the computed step before
            return tree_unflatten(values, self._spec)
        return self.segment.ports.pack(self.with_sides(index, values))

    def patch(self, index: Tensor, rows: Tensor, reduce: Reduce | None) -> None:
        """Take in some tokens that the module has computed on a skipped step; `reduce` as in `Moment`."""
        forecaster = self.forecasters[0]
        if forecaster is not None and not self.segment.blank:
            self.forecasts[0] = forecaster.patched(self.forecasts[0], index, rows)
            self._finite = all_finite((rows,), reduce)

    def limit(self, memory: int) -> None:
        """From now on keep at most so many tensors for each stream, with a forecaster that makes do."""
        self._within = memory
        self.forget()

    def main(self, values: tuple[Any, ...]) -> Tensor:
        """The main stream among the values of the slots."""
        return values[self.segment.ports.main]  # type: ignore[no-any-return]  # that slot holds one

    def _limited(self, forecaster: Forecaster | None) -> Forecaster | None:
        if forecaster is None or self._within is None:
            return forecaster
        return forecaster.within(self._within) or Reuse()

    def further(self) -> SegmentState:
        """What is kept of the next call of the same module in one forward, mostly with another stream."""
        if self.again is None:
            self.again = SegmentState(self.segment)
            self.again._within = self._within
        return self.again

    @property
    def longest(self) -> int:
        """Most tensors that one of the forecasters keeps for its stream, as far as streams are known."""
        return max((made.memory for made in self.forecasters if made is not None), default=0)

    @property
    def once(self) -> int:
        """Bytes of one value of every stream, as it is kept."""
        return sum(self._sizes.values()) + (0 if self.again is None else self.again.once)

    def values(self, output: Any) -> tuple[Any, ...]:
        """What left the segment, one value a slot."""
        if not self.segment.opaque:
            return unpack(self.segment, output)
        leaves, self._spec = tree_flatten(output)
        return tuple(leaves)

    def _is_stream(self, value: Any) -> bool:
        return isinstance(value, Tensor) if self.segment.opaque else value is not None

    def _is_change(self, slot: int, entry: tuple[Any, ...], shape: torch.Size) -> bool:
        """Whether a change is kept for this slot; of an opaque block, for outputs with the entry's shape."""
        if not self.segment.residual or not self.segment.opaque:
            return self.segment.residual
        return slot < len(entry) and isinstance(entry[slot], Tensor) and entry[slot].shape == shape

    def _forecast(self, slot: int, at: Moment, entry: tuple[Any, ...]) -> Any:
        forecaster = self.forecasters[slot]
        if forecaster is None:
            # A side output, which is replayed, or a stream that is handed through.
            return entry[slot]
        if slot in self._constants:
            return self._constants[slot]
        value = forecaster.predict(self.forecasts[slot], at)
        if torch.float16 in (value.dtype, self._dtypes[slot]):
            # An extrapolation may leave the range of float16, which nothing that was computed has left.
            value = value.clamp(-65504.0, 65504.0)
        if self._is_change(slot, entry, value.shape):
            enters = beside(entry[slot], value)
            return _cast(torch.add(enters, _cast(value, enters.dtype)), self._dtypes[slot])
        return value.clone() if value.dtype == self._dtypes[slot] else value.to(self._dtypes[slot])

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
        again = None if self.again is None else self.again.tensors()
        return (self.gate, self.forecasts, self.check, self.sides, self.ages, again)

    def count(self) -> int:
        """Bytes of all tensors that are kept now."""
        part: SegmentState | None = self
        while part is not None:
            part.grown, part = False, part.again
        return sum(leaf.nbytes for leaf in tree_leaves(self.tensors()) if isinstance(leaf, Tensor))

    def _value(self, slot: int, entry: tuple[Any, ...], value: Any, spare: Tensor | None) -> Tensor:
        if not isinstance(value, Tensor):
            raise wrong_form(self.segment, value)
        value = detached(value)
        self._dtypes[slot] = value.dtype
        dtype = self.segment.dtype or value.dtype
        self._sizes[slot] = value.numel() * dtype.itemsize
        # Strides do not matter: a stream is often a part of a larger tensor, and what is kept of it is not.
        if spare is None or _layout(spare) != _layout(value) or spare.dtype != dtype:
            spare, self.grown = None, True
        if not self._is_change(slot, entry, value.shape):
            # The model may write into its own tensor later, so a copy is kept.
            return torch.empty_like(value, dtype=dtype).copy_(value) if spare is None else spare.copy_(value)
        enters = entry[slot]
        if enters is None or enters.shape != value.shape:
            segment, shape = self.segment, "nothing" if enters is None else tuple(enters.shape)
            raise EngineError(
                f"{segment.label}: {shape} enters block {segment.start} and {tuple(value.shape)} leaves "
                f"block {segment.stop - 1}; a change can only be kept between blocks with one layout. Choose "
                "Fn_compute_blocks and Bn_compute_blocks so that both ends have it, or "
                "calibrator_cache_type='hidden_states'."
            )
        if spare is None and dtype != torch.promote_types(value.dtype, enters.dtype):
            spare = torch.empty_like(value, dtype=dtype)
        return torch.sub(value, beside(detached(enters), value), out=spare)


def detached(value: Any) -> Any:
    """The value without the graph that it is part of; most forwards make none, and then it is the value."""
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value


def beside(value: Tensor, other: Tensor) -> Tensor:
    """The value on the device of another one: a model may go on to the next device between two blocks."""
    return value if value.device == other.device else value.to(other.device)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value if value.dtype == dtype else value.to(dtype)
