"""Decisions for every sample of a batch: those that must be computed are gathered, the others wait.

A sample then goes through its run as if it were alone: it has a gate, forecasts and an estimate of its own,
and what its neighbours do decides only how many rows the transformer gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from cache_dit.caching.engine.forward import SegmentRun
from cache_dit.caching.engine.plan import Slot
from cache_dit.caching.engine.ports import Call
from cache_dit.errors import EngineError

_SHARED = ("ids", "rotary_emb")
"""Ends of names of arguments that a batch shares where they have two dimensions, tokens and coordinates."""


def batch_of(call: Call) -> int:
    """Samples in a forward.

    Raises:
        EngineError: The forward has no tensor to tell.
    """
    first = next(iter(call.tensors()), None)
    if first is None or not first.ndim:
        raise EngineError(
            "per_sample is True, but no argument of the forward is a tensor with a first dimension of "
            "samples (a list of pictures is none); leave per_sample out for this model."
        )
    return first.shape[0]


def call_samples(runs: Sequence[SegmentRun], slot: Slot, call: Call, parameters: Sequence[str]) -> Any:
    """The output of one forward of the whole transformer, with one run for each sample.

    Args:
        runs: In the order of the samples.
        slot: The transformer's.
        call: That of the transformer with the whole batch.
        parameters: Names of the arguments of its forward, in order.

    Raises:
        EngineError: The output has not as many rows as were computed.
    """
    count = len(runs)

    def of(places: Sequence[int]) -> Call:
        def rows(name: str, value: Any) -> Any:
            return _rows(value, count, places, shared=name.endswith(_SHARED))

        args = tuple(map(rows, parameters, call.args))
        return call._replace(
            args=args, kwargs={name: rows(name, value) for name, value in call.kwargs.items()}
        )

    single = [of([place]) for place in range(count)]
    going = [place for place, run in enumerate(runs) if run.enters(single[place])]
    made: dict[int, Any] = {}
    if going:
        made = dict(zip(going, split(of(going).run(), len(going)), strict=True))

    def delivered(place: int) -> Any:
        return runs[place].visit(slot, single[place]._replace(function=lambda *_, **__: made[place]))

    return joined(list(map(delivered, range(count))))


def split(output: Any, count: int) -> list[Any]:
    """One output for each of `count` samples; tensors are views.

    Raises:
        EngineError: A tensor in it has another number of rows.
    """
    rows = [leaf.shape[:1] for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if any(row != (count,) for row in rows):
        raise EngineError(
            f"per_sample is True, but a forward of {count} samples returned {[*map(tuple, rows)]} rows; the "
            "samples of this model do not go through it side by side, so leave per_sample out."
        )
    return [_rows(output, count, [place]) for place in range(count)]


def joined(outputs: Sequence[Any]) -> Any:
    """The output of all samples from that of each; what is no tensor is taken from the first."""
    if len(outputs) == 1:
        return outputs[0]
    spec = tree_flatten(outputs[0])[1]
    columns = zip(*map(tree_leaves, outputs), strict=True)
    return tree_unflatten(
        [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns], spec
    )


def _rows(tree: Any, count: int, places: Sequence[int], *, shared: bool = False) -> Any:
    """The tree with the rows of some of `count` samples alone, in every tensor that has one for each."""
    if len(places) == count:
        return tree

    def rows(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.shape[:1] != (count,) or (shared and leaf.ndim < 3):
            return leaf
        return leaf[places[0] : places[0] + 1] if len(places) == 1 else leaf[list(places)]

    return tree_map(rows, tree)
