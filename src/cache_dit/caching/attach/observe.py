"""The block lists of a model that nobody declared, and their data flow, as its first forward shows them.

They are tried at once: does a skipped forward give what the computed one gave?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from cache_dit.caching.attach.attachment import attachment
from cache_dit.caching.attach.declared import Lists, Setting, parameters_of
from cache_dit.caching.config import CalibratorConfig, DBCacheConfig
from cache_dit.caching.engine.forward import Frame, current_frame
from cache_dit.caching.engine.plan import Slot
from cache_dit.caching.engine.ports import Arguments, Call, Keywords
from cache_dit.caching.engine.requests import Request
from cache_dit.caching.forward_pattern import HIDDEN
from cache_dit.caching.models.row import LISTS, BlockList
from cache_dit.errors import ConfigError, UnsupportedModelError

DECLARE = """Declare its blocks:
    cache_dit.enable_cache(
        cache_dit.BlockAdapter(
            transformer=transformer,
            blocks=transformer.{path},
            forward_pattern=cache_dit.ForwardPattern.{pattern},  # see its docstring
        )
    )"""
_ALWAYS = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0, enable_separate_cfg=False
)
_TOLERANCE = 0.05
"""Relative error of the output: bfloat16 rounds to less, and a stream that was missed makes more."""


def _way_out(path: str, *, bare: bool) -> str:
    """What can be done about a list that cannot be cached as it is."""
    declare = DECLARE.format(path=path, pattern="Pattern_3" if bare else "Pattern_1")
    return (
        "A patch_functor can change what stands in the way, see cache_dit.PatchFunctor; where you know the "
        f"streams, say them. {declare}"
    )


def undeclared(model: nn.Module, chosen: tuple[tuple[nn.Module, ...], ...] = ()) -> Lists:
    """Lists whose data flow is still to be seen: those chosen, or all that may be block lists."""
    blocks = chosen or tuple(_candidates(model))
    if not blocks:
        raise UnsupportedModelError(
            f"auto found no block list in {type(model).__name__}: no ModuleList or Sequential of two or more "
            "blocks that take the same arguments. Name the lists with BlockAdapter(blocks=...)."
        )
    return Lists(model=model, blocks=blocks, flows=())


def observe(lists: Lists, call: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Lists:
    """The lists that can be cached, one at least, with their flow as one uncached forward shows it."""
    trace: list[_Watch] = []
    watches = [_Watch(path_of(lists.model, members), members, trace) for members in lists.blocks]
    slots = {
        block: Slot(number, index, None)
        for number, members in enumerate(lists.blocks)
        for index, block in enumerate(members)
    }
    runs: list[Any] = [*watches]
    token = current_frame.set(Frame(slots, runs))
    try:
        _undisturbed(lists.model, partial(call, lists.model), args, kwargs)
    finally:
        current_frame.reset(token)
    flows = _flows(list(dict.fromkeys(trace)))
    if not flows:
        raise _nothing_to_cache(lists, watches)
    seen = [(watch.members, flows[watch]) for watch in sorted(flows, key=trace.index)]
    found = Lists(
        model=lists.model,
        blocks=tuple(flow.members(lists.model) if flow.along else members for members, flow in seen),
        flows=tuple(flow for _, flow in seen),
    )
    _rehearse(found, call, args, kwargs)
    return found


def _rehearse(lists: Lists, call: Callable[..., Any], args: Arguments, kwargs: Keywords) -> None:
    """Compute one forward and skip the same once more, as in a real run: both must give the same."""
    session = attachment(lists, (Setting(_ALWAYS, CalibratorConfig()),), shares_run=False).session
    request = Request()

    def forward(*given: Any, **named: Any) -> Any:
        return session.forward(request, call, lists.model, given, named)

    computed, skipped = (_floats(_undisturbed(lists.model, forward, args, kwargs)) for _ in range(2))
    error = max(
        (float((a - b).norm() / b.norm()) for a, b in zip(skipped, computed, strict=True) if bool(b.any())),
        default=0.0,
    )
    if not error <= _TOLERANCE:
        paths = " and ".join(flow.label for flow in lists.flows)
        raise UnsupportedModelError(
            f"auto found {paths} in {lists.name}, but a forward that skips their blocks differs by "
            f"{error:.0%} from the computed one on the same input: the forward carries more from block to "
            f"block than they return. {_way_out(lists.flows[0].path, bare=lists.flows[0].bare)}"
        )


def _floats(output: Any) -> list[Tensor]:
    leaves = tree_leaves(output)
    return [leaf.float() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _undisturbed(model: nn.Module, call: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Any:
    """A forward that will be run again: what it draws or takes out of a container is there once more."""
    given: tuple[Arguments, Keywords] = tree_map(lambda value: value, (args, kwargs))
    devices = {part.device for part in model.parameters() if part.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices):
        return call(*given[0], **given[1])


def path_of(model: nn.Module, members: tuple[nn.Module, ...]) -> str:
    """The attribute path of the list that has these blocks."""
    path: str
    for path, part in model.named_modules():
        if isinstance(part, LISTS) and any(child is members[0] for child in part):
            return path
    raise ConfigError(
        f"BlockAdapter: {type(members[0]).__name__} is no part of {type(model).__name__}; give the blocks of "
        "the transformer that is given."
    )


def _flows(reached: list[_Watch]) -> dict[_Watch, BlockList]:
    """The data flow of the lists that are worth caching, the largest first."""
    flows: dict[_Watch, BlockList] = {}
    for watch in sorted(reached, key=lambda watch: -watch.weight):
        flow = watch.flow()
        around = next((other for other in flows if watch.overlaps(other)), None)
        # The first list decides for all, and a short one that refines a prompt would see no change at all.
        if flow is None or watch.weight * 4 < max(other.weight for other in [*flows, watch]):
            continue
        if around is None:
            flows[watch] = flow
        elif around.alternates(watch) and dataclasses.replace(flow, path=around.path) == flows[around]:
            flows[around] = dataclasses.replace(flows[around], along=flow.path)
    return flows


def _candidates(module: nn.Module) -> Iterator[tuple[nn.Module, ...]]:
    """The outermost lists of blocks; what lies within a block is a part of it."""
    for child in module.children():
        if isinstance(child, LISTS) and _is_block_list(tuple(child)):
            yield tuple(child)
        else:
            yield from _candidates(child)


def _is_block_list(members: tuple[nn.Module, ...]) -> bool:
    # Linear and SiLU may take the same argument too, but a block has parts.
    distinct = len(set(members)) == len(members) > 1 and all(any(block.children()) for block in members)
    return distinct and len(set(map(parameters_of, members))) == 1


class _Watch:
    """Sees the calls of one list; stands where a `SegmentRun` stands in a cached forward.

    Nothing of a block's values is kept for longer than until the next one is called.
    """

    skipping = False

    def __init__(self, path: str, members: tuple[nn.Module, ...], trace: list[_Watch]) -> None:
        self.path = path
        self.members = members
        self.fact: str | None = None
        self.bare: bool | None = None
        self.weight = sum(part.numel() for block in members for part in block.parameters())
        self._names = parameters_of(members[0])
        self._trace = trace
        self._count = 0
        self._received: Keywords = {}
        self._returned: tuple[Any, ...] = ()
        # For each output slot that held a tensor, the arguments that it may continue after every block: those
        # that it reached as the same object (seen of `_firm` slots), else those of its shape that change.
        self._options: dict[int, set[str]] = {}
        self._firm: set[int] = set()
        self._shapes: dict[str, set[torch.Size]] = {}
        self._written: set[str] = set()
        self._outputs: list[tuple[ref[Any] | None, ...]] = []
        self._kept: set[int] = set()

    def visit(self, slot: Slot, call: Call) -> Any:
        """Call one block."""
        self._trace.append(self)
        if self._count >= len(self.members):
            self._rule_out("they run more than once in a forward")
        elif slot.index != self._count:
            self._rule_out(f"block {slot.index} ran where block {self._count} was expected")
        named = call.named(self._names)
        received = {name: value for name, value in named.items() if name in self._names}
        self._compare(received)
        self._received, self._count = received, self._count + 1
        # The second block: some models give the first one no residual yet.
        streams = received if slot.index == 1 else {}
        before = {name: value.clone() for name, value in streams.items() if _is_stream(value)}
        output = call.run()
        self._written |= {
            name
            for name, value in before.items()
            if not torch.allclose(received[name], value, rtol=0, atol=0, equal_nan=True)
        }
        self._take(output)
        return output

    def flow(self) -> BlockList | None:
        """The data flow of a list that was reached, or None where none can be told; `fact` says why."""
        if self._count < len(self.members):
            self._rule_out(f"{self._count} of them ran in the forward")
        continues = self._continues() if self.fact is None else {}
        if not continues:
            self._rule_out("no output of a block is an argument of the next one")
        for slot, name in continues.items():
            shapes, delivered = self._shapes.get(name, set()), self._returned[slot]
            if not _is_stream(self._received.get(name)):
                self._rule_out(f"{name}, which an output continues, holds no floating point numbers")
            elif len(shapes) > 1 or (isinstance(delivered, Tensor) and delivered.shape not in shapes):
                self._rule_out(f"{name} changes its shape from block to block")
            elif name in self._written:
                self._rule_out(f"a block writes into its argument {name}")
        if self.fact is not None or self.bare is None:
            return None
        slots = tuple(map(continues.get, range(len(self._returned))))
        streams = sorted(continues.values(), key=self._names.index)
        largest = max(streams, key=lambda name: int(self._received[name].numel()))
        main = HIDDEN if HIDDEN in streams else largest
        each_counts = not self._kept.isdisjoint(continues)
        return BlockList(self.path, slots, bare=self.bare, main=main, each_counts=each_counts)

    def overlaps(self, other: _Watch) -> bool:
        """Whether blocks of one list run between those of the other."""
        places = [number for number, watch in enumerate(self._trace) if watch is self]
        others = [number for number, watch in enumerate(self._trace) if watch is other]
        return places[0] < others[-1] and others[0] < places[-1]

    def alternates(self, other: _Watch) -> bool:
        """Whether the lists take turns, this one first."""
        turns = [watch for watch in self._trace if watch in (self, other)]
        return turns == [self, other] * len(self.members)

    def _rule_out(self, fact: str) -> None:
        self.fact = self.fact or fact

    def _compare(self, received: Keywords) -> None:
        for slot, value in enumerate(self._returned):
            if not isinstance(value, Tensor):
                continue
            same = {name for name, got in received.items() if got is value}
            options = same or {
                name
                for name, got in received.items()
                if isinstance(got, Tensor)
                and (got.shape, got.dtype) == (value.shape, value.dtype)
                and got is not self._received.get(name)
            }
            self._firm |= {slot} if same else set()
            self._options[slot] = self._options.get(slot, options) & options
        for name, value in received.items():
            if isinstance(value, Tensor) and self._count:
                self._shapes.setdefault(name, set()).add(value.shape)

    def _take(self, output: Any) -> None:
        if type(output) not in (tuple, list) and not isinstance(output, Tensor):
            self._rule_out(f"a block returns an object of type {type(output).__name__}, no Tensor or tuple")
            return
        bare = isinstance(output, Tensor)
        values = (output,) if bare else tuple(output)
        if self.bare is not None and (bare, len(values)) != (self.bare, len(self._returned)):
            self._rule_out("the blocks differ in how many values they return")
        self.bare, self._returned = bare, values
        self._outputs.append(tuple(ref(value) if isinstance(value, Tensor) else None for value in values))
        if self._count == len(self.members):
            # What left the blocks before the last two is gone by now, unless the model keeps it to use it.
            self._kept = {
                slot
                for output in self._outputs[:-2]
                for slot, one in enumerate(output)
                if one is not None and one() is not None
            }

    def _continues(self) -> dict[int, str]:
        """The argument that each slot continues; a slot without one is a side output."""
        found: dict[int, str] = {}
        for slot in sorted(self._firm):
            free = [name for name in self._names if name in self._options[slot] - set(found.values())]
            if not free:
                self._rule_out(f"output {slot} is an argument of some of them only")
            else:
                found[slot] = free[0]
        rest = {
            slot: [name for name in self._names if name in names - set(found.values())]
            for slot, names in self._options.items()
            if slot not in self._firm
        }
        for slot, options in rest.items():
            rivals = [other for other in rest if other != slot and set(rest[other]) & set(options)]
            if len(options) > 1:
                self._rule_out(f"output {slot} may continue {' or '.join(options)}, which have one shape")
            elif rivals:
                self._rule_out(f"outputs {slot} and {rivals[0]} may both continue {options[0]}")
            elif options:
                found[slot] = options[0]
        return found


def _is_stream(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _nothing_to_cache(lists: Lists, watches: list[_Watch]) -> UnsupportedModelError:
    seen = "\n".join(
        f"    {watch.path}, {len(watch.members)} x {type(watch.members[0]).__name__}"
        f"({', '.join(parameters_of(watch.members[0]))}): {watch.fact or 'not run by the forward'}"
        for watch in watches
    )
    return UnsupportedModelError(
        f"auto found no block list in {lists.name} that can be cached. Its first forward showed:\n{seen}\n"
        f"{_way_out(watches[0].path, bare=bool(watches[0].bare))}"
    )
