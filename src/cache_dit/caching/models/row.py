"""The form of a model row: what caching must know of a transformer class, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

LISTS = (nn.ModuleList, nn.Sequential)  # what may hold the blocks of a model


@dataclass(frozen=True, slots=True)
class BlockList:
    """One list of blocks that the forward runs through in order.

    Attributes:
        path: Attribute of the transformer, with dots where the list lies deeper.
        continues: For each output slot of a block the argument of the next block that it continues; None for
            a side output.
        bare: The block returns its one output as it is, not in a tuple.
        main: The stream whose residual is the signal.
        along: A second list whose blocks take turns with those of the first, which begin; the layout of the
            streams may differ between the two. Blocks are counted in pairs then.
        start: Entry of the model's config, the first block that belongs here; with "-" in front it is counted
            from the end. None: from the beginning.
        stop: Entry of the model's config, one behind the last block; likewise. None: to the end.
        each_counts: The model uses the output of every block by itself, as ControlNets do, so every block
            is forecast on its own.
        stacks: Every block puts one more output in front of the stream and hands on all of them in one
            tensor; what leaves the list is forecast, since there is no change between two layouts.
        made_of: Class name of the blocks, where models of one class differ in it: meant are those with these.
    """

    path: str
    continues: tuple[str | None, ...]
    bare: bool
    main: str
    along: str | None = None
    start: str | None = None
    stop: str | None = None
    each_counts: bool = False
    stacks: bool = False
    made_of: str | None = None

    @property
    def label(self) -> str:
        """The path with the part of the list that is meant, unique within a model."""
        whole = self.path if self.along is None else f"{self.path}/{self.along}"
        return whole if self.start is self.stop else f"{whole}[{self.start or ''}:{self.stop or ''}]"

    @property
    def period(self) -> int:
        """Blocks from one place in the layout to the same place again."""
        return 1 if self.along is None else 2

    def members(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The blocks of a model in the order in which they run; none where the model has no such list."""
        blocks = modules_at(model, self.path)
        if self.made_of is not None and any(type(block).__name__ != self.made_of for block in blocks):
            return ()
        if self.along is not None:
            pairs = zip(blocks, modules_at(model, self.along), strict=True)
            return tuple(block for pair in pairs for block in pair)
        return blocks[_place(model, self.start, len(blocks)) : _place(model, self.stop, len(blocks))]


def returns_one(path: str, stream: str = "hidden_states", **details: Any) -> BlockList:
    """A list whose blocks return one tensor."""
    return BlockList(path, (stream,), bare=True, main=stream, **details)


def returns(path: str, *streams: str | None, main: str = "hidden_states", **details: Any) -> BlockList:
    """A list whose blocks return a tuple."""
    return BlockList(path, streams, bare=False, main=main, **details)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A transformer class.

    Attributes:
        name: Class name in diffusers; subclasses are found by it too.
        lists: In the order in which the forward runs them.
        pipelines: Beginnings of the class names of the pipelines that are made for it.
        timestep: Argument of the forward that tells the time; None where it has none.
        joined: The streams keep their layout from each list to the next, so that one forecast spans all lists
            that decide together: half the memory of one forecast a list.
        last_within_first: `Bn_compute_blocks` must not exceed `Fn_compute_blocks`, because the second half
            of the list reads what the first half left behind.
        bypass: From the arguments of a forward by name, whether it is no denoising step (it fills a KV
            cache, say) and runs as if there were no caching.
        controls: Arguments of a forward with what a ControlNet adds: a tensor, or tensors in a tuple, list or
            dict. When one appears, disappears, or turns from or to zero, the step is computed.
        muted: Paths of modules between the blocks (or lists of them) whose output is added to a stream; on
            skipped steps it is part of the forecast, so they return a zero instead of computing.
        modulated: From the first block and its arguments by name to its input, modulated for the timestep, as
            TeaCache compares it; None: found where the block begins like FLUX's.
        on_request: A pipeline may have it beside its transformer, as a ControlNet; cached only when given
            by itself.
    """

    name: str
    lists: tuple[BlockList, ...]
    pipelines: tuple[str, ...] = ()
    timestep: str | None = "timestep"
    joined: bool = False
    last_within_first: bool = False
    bypass: Callable[[Mapping[str, Any]], bool] | None = None
    controls: tuple[str, ...] = ()
    muted: tuple[str, ...] = ()
    modulated: Callable[[nn.Module, Mapping[str, Any]], Tensor] | None = None
    on_request: bool = False


def row(
    name: str,
    *lists: BlockList,
    pipelines: str | None = None,
    controls: str = "",
    muted: str = "",
    **details: Any,
) -> Row:
    """`Row` in short form: several names stand in one string.

    Where no pipelines are said, their names begin like that of the class, up to "Transformer".
    """
    if pipelines is None:
        pipelines, _, _ = name.rpartition("Transformer")
    return Row(
        name=name,
        lists=lists,
        pipelines=tuple(pipelines.split()),
        controls=tuple(controls.split()),
        muted=tuple(muted.split()),
        **details,
    )


def modules_at(model: nn.Module, path: str) -> tuple[nn.Module, ...]:
    """The module at a path, or the members of the list there; none where the model has neither."""
    try:
        found = model.get_submodule(path)
    except AttributeError:
        return ()
    return tuple(found) if isinstance(found, LISTS) else (found,)


def _place(model: Any, name: str | None, count: int) -> int | None:
    """Index in a list of `count` blocks that the entry of the model's config means."""
    if name is None:
        return None
    place: int = model.config[name.removeprefix("-")]
    return count - place if name.startswith("-") else place
