"""Check of the declared data flow against the one seen in the first forward, by object identity."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cache_dit.caching.engine.plan import Segment
from cache_dit.caching.engine.ports import Call
from cache_dit.caching.forward_pattern import ENCODER, HIDDEN, matching
from cache_dit.errors import PatternError


class FlowCheck:
    """Watches the blocks of the list of one segment during one computed forward."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._previous: tuple[Any, ...] = ()
        self._entered: list[tuple[str, Tensor, int]] = []

    def before(self, call: Call) -> None:
        """Compare what the previous block returned with what this block receives, and mark that.

        Nothing is concluded about an output that reaches no argument as the same object.

        Raises:
            PatternError: An output is seen to continue another argument than declared.
        """
        self._entered = []
        for port in filter(None, self._segment.ports.slots):
            value = port.read(call.args, call.kwargs)
            # Under inference_mode writes are not counted.
            if isinstance(value, Tensor) and not value.is_inference():
                self._entered.append((port.name, value, value._version))
        if self._previous:
            self._compare(call)

    def _compare(self, call: Call) -> None:
        names = self._segment.parameters
        received = call.named(names)
        declared = [None if port is None else port.name for port in self._segment.ports.slots]
        shown: dict[int, str] = {}
        for slot, output in enumerate(self._previous):
            reached = [name for name, value in received.items() if value is output]
            if isinstance(output, Tensor) and reached:
                shown[slot] = next((name for name in reached if name == declared[slot]), reached[0])
        # An argument that is seen to continue one output continues no other.
        rest = [None if name in shown.values() else name for name in declared]
        seen = [shown.get(slot, name) for slot, name in enumerate(rest)]
        if seen != declared:
            meant = {} if HIDDEN in names else dict(zip(names, (HIDDEN, ENCODER), strict=False))
            pattern = matching(tuple(None if name is None else meant.get(name, name) for name in seen))
            fit = f"give ForwardPattern.{pattern}" if pattern else "leave forward_pattern out, with auto=True"
            raise PatternError(
                f"{self._segment.label}: outputs were declared to continue {_tuple(declared)} but the first "
                f"forward shows {_tuple(seen)}; {fit}."
            )

    def after(self, output: Any) -> None:
        """Remember what a block returned.

        Raises:
            PatternError: It is another number of values than declared, or the block wrote into a stream.
        """
        values = unpack(self._segment, output)
        for name, value, version in self._entered:
            if value._version != version:
                raise PatternError(
                    f"{self._segment.label}: a block writes into its argument {name}, so what entered is "
                    "lost and no change can be measured; let it return a new tensor, see "
                    "cache_dit.PatchFunctor."
                )
        self._previous, self._entered = values, []


def unpack(segment: Segment, output: Any) -> tuple[Any, ...]:
    """What a block returned, one value a slot.

    Raises:
        PatternError: It is another number of values than declared.
    """
    values = segment.ports.unpack(output)
    if values is None:
        raise wrong_form(segment, output)
    return values


def wrong_form(segment: Segment, output: Any) -> PatternError:
    """The error for a block that returns another number of values than declared."""
    declared = _tuple([None if port is None else port.name for port in segment.ports.slots])
    if isinstance(output, (tuple, list)):
        got, fit = f"a tuple of {len(output)}", "Pattern_0, Pattern_1, Pattern_4 or Pattern_5"
    else:
        got, fit = f"one {type(output).__name__}", "Pattern_2 or Pattern_3"
    return PatternError(
        f"{segment.label}: blocks were declared to return {declared} but "
        f"{type(segment.blocks[0]).__name__} returned {got}; give ForwardPattern.{fit}."
    )


def _tuple(names: list[str | None]) -> str:
    return "(" + ", ".join(name or "a side output" for name in names) + ")"
