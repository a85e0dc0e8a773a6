"""The form of a context plan: which arguments of the blocks of a class go along the sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

HIDDEN, ENCODER = "hidden_states", "encoder_hidden_states"


class Along(NamedTuple):
    """An argument with one entry for each token of some streams, one stream after another.

    Attributes:
        dim: The dimension of its tensors, which may lie in tuples, lists and dicts; a size of 1 there is
            broadcast, and left alone.
        streams: Names of the streams; those that a list of blocks does not have are left out.
        ndim: Dimensions of those that are meant, where it has two forms; None: all.
    """

    dim: int
    streams: tuple[str, ...]
    ndim: int | None = None


class Mask(NamedTuple):
    """A mask (..., queries, keys), with 1 or all queries, over the tokens of some streams.

    Attributes:
        streams: Names of the streams, as for `Along`.
    """

    streams: tuple[str, ...]


Cut = Along | Mask


class Front(NamedTuple):
    """A number of tokens that blocks are given, to tell the front of a stream from its rest.

    Every rank has a part of the front and a part of the rest, and gets the number for its parts.

    Attributes:
        stream: Its name.
        rest: The number is that of the rest, and not that of the front.
    """

    stream: str
    rest: bool = False


def never(model: nn.Module) -> bool:
    """Of no model."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPlan:
    """How the blocks of one transformer class work on a part of the sequence.

    Streams are cut where they enter the first block of a list, and gathered where they leave the last one;
    what is before and behind runs on every rank. Which arguments are streams, the row of the class tells
    (`caching/models/rows.py`). Attention modules of the blocks look at all streams of their list.

    Attributes:
        name: Class name in diffusers.
        cuts: Other arguments of the blocks that have one entry for each token; one tuple for an argument
            that is a tuple with a cut for each of its entries.
        local: Names of attention modules that look at something that every rank has whole, as the text.
        whole: Streams that are not cut, since only such modules look at them.
        looks_at: Names of attention modules with the streams that they look at, where those are not all.
        asks: Names of attention modules with the streams whose tokens look, where those are others.
        products: Masks that the attention modules make are products of a mask over queries and one over keys.
        ends: Path of the module, or of a dict with it, that is given the main stream first behind the last
            block, to gather it there, where something of its size is added before; None: where it leaves the
            last block.
        residuals: Arguments of the transformer with tensors (B, tokens, C) that are added to the main stream
            between the blocks, as of ControlNets.
        fronts: Numbers of tokens that the blocks are given.
        controls: It is a ControlNet: what leaves its blocks is not gathered, since a transformer that has the
            same part of the sequence adds it.
        runs_twice: Whether a ControlNet runs its list twice, so that what leaves it is gathered after all.
        refused: Arguments of the transformer or its blocks with which this is not possible, and why.
        dim: Dimension of the tokens in a stream.
    """

    name: str
    cuts: Mapping[str, Cut | tuple[Cut, ...]] = field(default_factory=dict)
    local: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    looks_at: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    asks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    products: bool = False
    ends: str | None = None
    residuals: tuple[str, ...] = ()
    fronts: Mapping[str, Front] = field(default_factory=dict)
    controls: bool = False
    runs_twice: Callable[[nn.Module], bool] = never
    refused: Mapping[str, str] = field(default_factory=dict)
    dim: int = 1
