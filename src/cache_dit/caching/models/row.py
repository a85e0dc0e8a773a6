"""The form of a model row: what caching must know of a transformer class, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockList:
    """One list of blocks that the forward runs through in order.

    Attributes:
        path: Attribute of the transformer.
        continues: For each output slot of a block the argument of the next block that it continues; None for
            a side output.
        bare: The block returns its one output as it is, not in a tuple.
        main: The stream whose residual is the signal.
    """

    path: str
    continues: tuple[str | None, ...]
    bare: bool
    main: str


def returns_one(path: str, stream: str = "hidden_states") -> BlockList:
    """A list whose blocks return one tensor."""
    return BlockList(path, (stream,), bare=True, main=stream)


def returns(path: str, *streams: str | None, main: str = "hidden_states") -> BlockList:
    """A list whose blocks return a tuple."""
    return BlockList(path, streams, bare=False, main=main)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A transformer class.

    Attributes:
        name: Class name in diffusers; subclasses are found by it too.
        lists: In the order in which the forward runs them.
        blocks: Class names of the blocks, for regional compilation.
        timestep: Argument of the forward that tells the time.
        joined: The streams keep their layout from each list to the next, so that one forecast spans all lists
            that decide together: half the memory of one forecast a list.
        last_within_first: `Bn_compute_blocks` must not exceed `Fn_compute_blocks`, because the second half
            of the list reads what the first half left behind.
    """

    name: str
    lists: tuple[BlockList, ...]
    blocks: tuple[str, ...]
    timestep: str = "timestep"
    joined: bool = False
    last_within_first: bool = False
