"""Which tokens are whose: every stream is cut into one run of tokens for each rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cache_dit.errors import ConfigError, EngineError
from cache_dit.parallelism.context.exchange import Sizes, gather


@dataclass(slots=True, eq=False)
class Shards:
    """The streams of one model, as they are cut in the forward under way.

    A rank has its part of every stream, so what is put together of several streams (text and image in one
    attention) is in another order over all ranks than in one process: the first parts of all streams, then
    the second parts, and so on. Attention does not mind; masks are brought into that order.

    Attributes:
        group: The ranks that share the sequence.
        uneven: Streams may have any number of tokens; else a multiple of the ranks.
        lengths: Tokens of each stream over all ranks, by its name.
        masked: A mask over all tokens was brought into the order of the ranks.
    """

    group: dist.ProcessGroup
    uneven: bool
    lengths: dict[str, int] = field(default_factory=dict)
    masked: bool = False
    _made: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    _rank: int = field(init=False)
    _ranks: int = field(init=False)

    def __post_init__(self) -> None:
        self._rank, self._ranks = dist.get_rank(self.group), dist.get_world_size(self.group)

    def begin(self) -> None:
        """Forget the lengths and arguments of the forward before."""
        self.lengths.clear()
        self._made.clear()
        self.masked = False

    def register(self, name: str, length: int) -> None:
        """Take in the length of a stream.

        Raises:
            ConfigError: It cannot be cut.
        """
        if length < self._ranks:
            raise ConfigError(f"{name} has {length} tokens, fewer than the {self._ranks} ranks; use fewer.")
        if length % self._ranks and not self.uneven:
            raise ConfigError(
                f"{name} has {length} tokens, which {self._ranks} ranks cannot share evenly; give "
                "ParallelismConfig(ulysses_anything=True), or another size or padding."
            )
        self.lengths[name] = length

    def known(self, streams: Sequence[str]) -> Sequence[str]:
        """Those that the list of blocks has: text may have been put in front of the image before."""
        return [name for name in streams if name in self.lengths]

    def sizes(self, streams: Sequence[str]) -> Sizes:
        """Tokens on each rank of streams put together."""
        return [sum(self._size(self.lengths[name], rank) for name in streams) for rank in range(self._ranks)]

    def total(self, streams: Sequence[str]) -> int:
        """Tokens of streams put together, over all ranks."""
        return sum(self.lengths[name] for name in streams)

    def take(self, dim: int, streams: Sequence[str], tensor: Tensor) -> Tensor:
        """This rank's part of a tensor that has one entry for each token of some streams, one after another.

        Raises:
            EngineError: It has another number of entries.
        """
        self._check(tensor, dim, streams)
        parts, start = [], 0
        for name in streams:
            length = self.lengths[name]
            parts.append(self.own(tensor.narrow(dim, start, length), dim))
            start += length
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def own(self, tensor: Tensor, dim: int) -> Tensor:
        """This rank's part of a tensor with one entry for each token of one stream, whichever it is."""
        length = tensor.shape[dim]
        before = sum(self._size(length, rank) for rank in range(self._rank))
        return tensor.narrow(dim, before, self._size(length, self._rank))

    def ordered(self, tensor: Tensor, dim: int, streams: Sequence[str]) -> Tensor:
        """All of such a tensor, in the order of the ranks."""
        self._check(tensor, dim, streams)
        return tensor if len(streams) == 1 else tensor.index_select(dim, self._order(streams, tensor.device))

    def whole(self, tensor: Tensor, dim: int, stream: str) -> Tensor:
        """A stream of which every rank has its part."""
        return gather(tensor, dim, self.group, self.sizes([stream]))

    def mask(self, mask: Tensor, streams: Sequence[str], *, products: bool) -> Tensor:
        """A mask over all tokens in the order of the ranks, from the one that an attention was given.

        Args:
            mask: (..., queries, keys), over all keys already, or over those of this rank.
            streams: What the attention looks at.
            products: It is a product of a mask over queries and one over keys.

        Raises:
            ConfigError: It cannot be told what it says of other ranks' tokens.
        """
        sizes = self.sizes(streams)
        mine, square = sizes[self._rank], mask.shape[-2] > 1
        if mask.shape[-1] == sum(sizes) and self.masked:
            return mask
        if mask.shape[-1] == mine and not square:
            return gather(mask, -1, self.group, sizes)
        if mask.shape[-2:] == (mine, mine) and products:
            keys = gather(mask.diagonal(dim1=-2, dim2=-1), -1, self.group, sizes)
            return keys.unsqueeze(-1) * keys.unsqueeze(-2)
        raise ConfigError(
            f"An attention was given a mask of shape {tuple(mask.shape)}, of which the plan does not say how "
            "it goes over the ranks; leave the mask out where nothing is padded, use tp_size, or give "
            "another cp_plan."
        )

    def once(self, value: Any, make: Any) -> Any:
        """`make(value)`, made once in a forward for an argument that all blocks are given."""
        known = self._made.get(id(value))
        if known is None:
            # The value is kept too, so that no other one gets its number.
            known = self._made[id(value)] = (value, make(value))
        return known[1]

    def _size(self, length: int, rank: int) -> int:
        return length // self._ranks + (rank < length % self._ranks)

    def _check(self, tensor: Tensor, dim: int, streams: Sequence[str]) -> None:
        if tensor.shape[dim] != self.total(streams):
            raise EngineError(
                f"A tensor of shape {tuple(tensor.shape)} has {tensor.shape[dim]} entries in dimension "
                f"{dim}, but {' and '.join(streams)} have {self.total(streams)} tokens; this input is not "
                "covered by the plan of the model. Give another cp_plan."
            )

    def _order(self, streams: Sequence[str], device: torch.device) -> Tensor:
        starts = [0]
        for name in streams:
            starts.append(starts[-1] + self.lengths[name])
        cuts = [
            (start, [self._size(self.lengths[name], rank) for rank in range(self._ranks)])
            for start, name in zip(starts, streams, strict=False)
        ]
        runs = [
            torch.arange(start + sum(sizes[:rank]), start + sum(sizes[: rank + 1]), device=device)
            for rank in range(self._ranks)
            for start, sizes in cuts
        ]
        return torch.cat(runs)
