"""The interpreter of context plans: from a model and its plan to edges and attention."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from cache_dit.caching.attach.distribution import Edge
from cache_dit.caching.engine.ports import Arguments, Keywords
from cache_dit.caching.models.row import BlockList
from cache_dit.caching.models.rows import row_of
from cache_dit.errors import ConfigError
from cache_dit.parallelism.context.attention import SharedAttention
from cache_dit.parallelism.context.exchange import Arriving
from cache_dit.parallelism.context.overlap import OVERLAPS, Made, overlapping
from cache_dit.parallelism.context.plan import Along, ContextPlan, Cut, Mask
from cache_dit.parallelism.context.shards import Shards
from cache_dit.parallelism.context.sites import Attend, attending, attention_modules, caller_of
from cache_dit.parallelism.mesh import Sharing

Edges = dict[nn.Module, Edge]
_Streams = tuple[str, ...]
Enter = Callable[[Arguments, Keywords], tuple[Arguments, Keywords]]


def split(
    model: nn.Module, plan: ContextPlan, sharing: Sharing, undo: contextlib.ExitStack
) -> dict[nn.Module, Edge]:
    """Let attention in the blocks of a model look over the sequence of all ranks.

    Args:
        model: The transformer.
        plan: Of its class.
        sharing: The ranks.
        undo: Takes the way back.

    Returns:
        Where the sequence is to be cut and put together.

    Raises:
        ConfigError: The model has not the form that the plan is for.
    """
    assert sharing.context is not None  # the caller has looked
    config, shared = sharing.config, SharedAttention.of(sharing)
    shards = Shards(sharing.context, config.ulysses_anything)
    attends = _Attending(shards, shared, products=plan.products)
    undo.callback(attends.undo.close)
    edges: Edges = {}
    parts = plan.controls and not plan.runs_twice(model)
    if plan.residuals or plan.refused or parts:
        handed_out = functools.partial(tree_map_only, Tensor, shards.handed_out)
        edges[model] = Edge(_Arguments(model, plan, shards).residuals, handed_out if parts else None)
    groups = _groups(model, plan)
    if plan.ends is not None:
        end = model.get_submodule(plan.ends)
        gathering = Edge(_gathering(groups[-1][-1][0].main, plan.dim, shards))
        edges |= dict.fromkeys(end.values() if isinstance(end, nn.ModuleDict) else (end,), gathering)
    for lists in groups:
        first = True
        for flow, blocks in lists:
            streams = _streams(flow, plan)
            arguments = _Arguments(blocks[0], plan, shards)
            ends = (flow, blocks) == lists[-1] and (plan.ends is None or lists is not groups[-1])
            gathered = None if parts or not ends else _gathered(flow, streams, plan.dim, shards)
            for block in blocks:
                leave = gathered if block is blocks[-1] else None
                enter = attends.renewed(arguments.entering(streams)) if first else arguments.cut
                edges[block] = Edge(enter, leave)
                first = False
                _share_attention(block, plan, streams, attends)
    return edges


def _groups(model: nn.Module, plan: ContextPlan) -> list[list[tuple[BlockList, tuple[nn.Module, ...]]]]:
    """The block lists, in groups between which the streams are put together."""
    row = row_of(type(model))
    assert row is not None  # classes with a plan have one
    lists = [(flow, members) for flow in row.lists if (members := flow.members(model))]
    if not lists:
        raise ConfigError(f"{type(model).__name__} has no blocks, so there is no sequence to share.")
    return [lists] if row.joined or plan.controls else [[one] for one in lists]


def _streams(flow: BlockList, plan: ContextPlan) -> tuple[str, ...]:
    return tuple(name for name in flow.continues if name is not None and name not in plan.whole)


class _Arguments:
    """Arguments of a module by name, as the plan cuts them.

    Args:
        module: One of several with the same arguments.
        plan: Of the model.
        shards: Of the model.
    """

    def __init__(self, module: nn.Module, plan: ContextPlan, shards: Shards) -> None:
        self._places = {
            name: place for place, name in enumerate(inspect.signature(module.forward).parameters)
        }
        self._plan = plan
        self._shards = shards

    def cut(self, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        """What goes along the streams, which are cut already."""
        self._check(args, kwargs)
        for name, cut in self._plan.cuts.items():
            if name in self._shards.lengths:
                continue  # a stream of this list, and cut already
            args, kwargs = self._change(name, functools.partial(self._cut, cut), args, kwargs)
        for name in self._plan.fronts:
            args, kwargs = self._change(name, self._shards.count, args, kwargs)
        return args, kwargs

    def entering(self, streams: Sequence[str]) -> Enter:
        """Cut the streams too."""
        shards, dim = self._shards, self._plan.dim

        def enter(args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
            shards.begin()
            for name in streams:
                length = self._read(name, args, kwargs).shape[dim]
                shards.register(name, length, self._front(name, length, args, kwargs))
            for name in streams:
                take = functools.partial(shards.take, dim, (name,))
                args, kwargs = self._change(name, take, args, kwargs)
            return self.cut(args, kwargs)

        return enter

    def residuals(self, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        """What the model adds to the main stream between the blocks."""
        self._check(args, kwargs)
        own = functools.partial(tree_map_only, Tensor, self._shards.residual)
        for name in self._plan.residuals:
            args, kwargs = self._change(name, own, args, kwargs)
        return args, kwargs

    def _front(self, stream: str, length: int, args: Arguments, kwargs: Keywords) -> int:
        """Tokens at the beginning of a stream that its blocks tell from the rest."""
        for name, front in self._plan.fronts.items():
            count = self._read(name, args, kwargs)
            if front.stream == stream and count is not None:
                return length - count if front.rest else count
        return 0

    def _check(self, args: Arguments, kwargs: Keywords) -> None:
        for name, reason in self._plan.refused.items():
            if self._read(name, args, kwargs) is not None:
                raise ConfigError(f"{name} is given to {self._plan.name}, but {reason}; use tp_size for it.")

    def _cut(self, cut: Cut | tuple[Cut, ...], value: Any) -> Any:
        if isinstance(cut, (Along, Mask)):
            return self._shards.once(value, lambda whole: tree_map_only(Tensor, self._cutter(cut), whole))
        return type(value)(self._cut(own, one) for one, own in zip(value, cut, strict=True))

    def _cutter(self, cut: Cut) -> Callable[[Tensor], Tensor]:
        shards = self._shards
        if isinstance(cut, Along):
            along = cut

            def take(tensor: Tensor) -> Tensor:
                if along.ndim not in (None, tensor.ndim) or tensor.shape[along.dim] == 1:
                    return tensor
                return shards.take(along.dim, shards.known(along.streams), tensor)

            return take

        def order(mask: Tensor) -> Tensor:
            streams, shards.masked = shards.known(cut.streams), True
            mask = shards.ordered(mask, -1, streams)
            return shards.ordered(mask, -2, streams) if mask.ndim > 2 and mask.shape[-2] > 1 else mask

        return order

    def _read(self, name: str, args: Arguments, kwargs: Keywords) -> Any:
        place = self._places.get(name, len(args))
        return args[place] if place < len(args) else kwargs.get(name)

    def _change(
        self, name: str, change: Callable[[Any], Any], args: Arguments, kwargs: Keywords
    ) -> tuple[Arguments, Keywords]:
        value = self._read(name, args, kwargs)
        if value is None:
            return args, kwargs
        place = self._places.get(name, len(args))
        if place < len(args):
            return (*args[:place], change(value), *args[place + 1 :]), kwargs
        return args, {**kwargs, name: change(value)}


def _gathering(stream: str, dim: int, shards: Shards) -> Callable[..., tuple[Arguments, Keywords]]:
    def enter(args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        return (shards.whole(args[0], dim, stream), *args[1:]), kwargs

    return enter


def _gathered(flow: BlockList, streams: Sequence[str], dim: int, shards: Shards) -> Callable[[Any], Any]:
    dim += flow.stacks

    def leave(output: Any) -> Any:
        if flow.bare:
            return shards.whole(output, dim, flow.main)
        pairs = zip(flow.continues, output, strict=True)
        return tuple(
            one if one is None or name is None or name not in streams else shards.whole(one, dim, name)
            for name, one in pairs
        )

    return leave


def _share_attention(
    block: nn.Module, plan: ContextPlan, streams: tuple[str, ...], attends: _Attending
) -> None:
    for name, module in attention_modules(block):
        if name not in plan.local:
            seen = plan.looks_at.get(name, streams)
            attends.inside(module, plan.asks.get(name, seen), seen)


class _Attending:
    """Classes in the place of those that call attention: one for all blocks, which are compiled once then.

    Attributes:
        undo: What takes all of them off again.
    """

    def __init__(self, shards: Shards, shared: SharedAttention, *, products: bool) -> None:
        self.undo = contextlib.ExitStack()
        self._shards = shards
        self._shared = shared
        self._products = products
        self._made: dict[tuple[type, _Streams, _Streams], type] = {}
        self._modules: dict[nn.Module, tuple[_Streams, _Streams]] = {}

    def inside(self, module: nn.Module, asking: _Streams, seen: _Streams) -> None:
        """Let the tokens of some streams look at all those of some, in the attention of a module."""
        self._modules[module] = asking, seen
        caller: Any = caller_of(module)
        kind, thing = type(caller), caller
        if caller is not module:
            # Several modules may share a processor, and look at different streams.
            thing = copy.copy(caller)
            module.processor = thing
            self.undo.callback(_put_back, module, thing, caller)
        else:
            self.undo.callback(setattr, caller, "__class__", kind)
        if (kind, asking, seen) not in self._made:
            self._made[kind, asking, seen] = self._class(kind, asking, seen)
        thing.__class__ = self._made[kind, asking, seen]

    def renewed(self, enter: Enter) -> Enter:
        """The same, with processors that were set since the last forward taken in first."""

        def again(args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
            known = set(self._made.values())
            for module, streams in self._modules.items():
                if known.isdisjoint(map(type, (module, getattr(module, "processor", None)))):
                    self.inside(module, *streams)
            return enter(args, kwargs)

        return again

    def _class(self, kind: type, asking: _Streams, seen: _Streams) -> type:
        coming: list[Arriving] = []
        made = attending(kind, self._attend(asking, seen, coming))
        shards, shared, overlap = self._shards, self._shared, OVERLAPS.get(kind.__name__)
        if overlap is None or not shared.config.ulysses_async or shared.config.ulysses_size == 1:
            return made

        def send(ones: Iterator[Made]) -> list[Made]:
            # A call that broke off may have left some.
            coming.clear()
            taken, sizes = [], shards.sizes(shards.known(seen))
            for one, exact in zip(ones, (False, False, True), strict=True):
                coming.append(shared.send(one.joined(), sizes, exact=exact))
                taken.append(one)
            return taken

        return overlapping(made, overlap, send)

    def _attend(self, asking: _Streams, seen: _Streams, coming: list[Arriving]) -> Attend:
        shards, shared, products = self._shards, self._shared, self._products

        def attend(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            mask: Tensor | None,
            compute: Callable[..., Tensor],
            scale: float | None,
        ) -> Tensor:
            known = shards.known(seen)
            if mask is not None:
                mask = shards.mask(mask, known, products=products)
            sent = [coming.pop(0) for _ in range(3)] if coming else None
            sizes = shards.sizes(shards.known(asking)), shards.sizes(known)
            return shared(query, key, value, mask, *sizes, compute, scale, sent)

        uneven = shared.config.ulysses_anything or shared.config.ring_rotate_method == "p2p"
        # Sizes that differ between ranks, and what is handed on, cannot be traced.
        return torch.compiler.disable(attend) if uneven else attend


def _put_back(module: nn.Module, shared: Any, plain: Any) -> None:
    """The processor as it was, with the kernel chosen since; one that somebody else has set stays."""
    shared.__class__ = type(plain)
    if module.processor is shared:
        vars(plain).update(vars(shared))
        module.processor = plain
