"""Which tokens are whose: every stream is cut into one run of tokens for each rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cache_dit.errors import ConfigError, EngineError
from cache_dit.parallelism.context.exchange import Sizes, gather


class Part(Tensor):
    """One rank's tokens of what a ControlNet adds to its transformer; what is computed from it is one too.

    Attributes:
        group: The ranks that have the others.
    """

    group: dist.ProcessGroup

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            made: Any = super().__torch_function__(func, types, args, kwargs)
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise  # no memory, say
            raise ConfigError(
                "What a ControlNet returned for the tokens of this process was added to something else; "
                "spread its transformer with it: ParallelismConfig(extra_parallel_modules=['controlnet']) in "
                f"one enable_cache of the pipeline. PyTorch says: {error}"
            ) from error
        known = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Part)]
        for leaf in tree_leaves(made):
            if isinstance(leaf, Part):
                leaf.group = known[0].group
        return made

    def any(self) -> Tensor:  # type: ignore[override]  # over all tokens alone
        """Whether a rank has a value that is not zero; all have to ask, and get one answer."""
        found = self.plain().any().float()
        dist.all_reduce(found, group=self.group)
        return found.bool()

    def plain(self) -> Tensor:
        """The same tokens in a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)


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
        fronts: Tokens at the beginning of some streams that are cut by themselves; of others 0.
        masked: A mask over all tokens was brought into the order of the ranks.
    """

    group: dist.ProcessGroup
    uneven: bool
    lengths: dict[str, int] = field(default_factory=dict)
    fronts: dict[str, int] = field(default_factory=dict)
    masked: bool = False
    _made: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    _rank: int = field(init=False)
    _ranks: int = field(init=False)

    def __post_init__(self) -> None:
        self._rank, self._ranks = dist.get_rank(self.group), dist.get_world_size(self.group)

    def begin(self) -> None:
        """Forget the lengths and arguments of the forward before."""
        self.lengths.clear()
        self.fronts.clear()
        self._made.clear()
        self.masked = False

    def register(self, name: str, length: int, front: int = 0) -> None:
        """Take in the length of a stream, and of what is cut by itself at its beginning.

        Raises:
            ConfigError: It cannot be cut.
        """
        self.lengths[name], self.fronts[name] = length, front
        if self._size(front, self._ranks - 1) + self._size(length - front, self._ranks - 1) == 0:
            raise ConfigError(f"{name} has {length} tokens, too few for {self._ranks} ranks; use fewer.")
        for piece in self._pieces(name):
            if piece % self._ranks and not self.uneven:
                raise ConfigError(
                    f"{name} has {piece} tokens, which {self._ranks} ranks cannot share evenly; give "
                    "ParallelismConfig(ulysses_anything=True), or another size or padding."
                )

    def known(self, streams: Sequence[str]) -> Sequence[str]:
        """Those that the list of blocks has: text may have been put in front of the image before."""
        return [name for name in streams if name in self.lengths]

    def sizes(self, streams: Sequence[str]) -> Sizes:
        """Tokens on each rank of streams put together."""
        pieces = [piece for name in streams for piece in self._pieces(name)]
        return [sum(self._size(piece, rank) for piece in pieces) for rank in range(self._ranks)]

    def count(self, length: int) -> int:
        """Tokens of this rank, of so many that are cut by themselves."""
        return self._size(length, self._rank)

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
        for piece in (piece for name in streams for piece in self._pieces(name)):
            parts.append(self.own(tensor.narrow(dim, start, piece), dim))
            start += piece
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def own(self, tensor: Tensor, dim: int) -> Tensor:
        """This rank's part of a tensor with one entry for each token of one stream, whichever it is."""
        length = tensor.shape[dim]
        before = sum(self._size(length, rank) for rank in range(self._rank))
        return tensor.narrow(dim, before, self._size(length, self._rank))

    def ordered(self, tensor: Tensor, dim: int, streams: Sequence[str]) -> Tensor:
        """All of such a tensor, in the order of the ranks."""
        self._check(tensor, dim, streams)
        order = self._order(streams, tensor.device)
        return tensor if order is None else tensor.index_select(dim, order)

    def whole(self, tensor: Tensor, dim: int, stream: str) -> Tensor:
        """A stream of which every rank has its part."""
        made, order = (
            gather(tensor, dim, self.group, self.sizes([stream])),
            self._order([stream], tensor.device),
        )
        return made if order is None else made.index_select(dim, order.argsort())

    def handed_out(self, tensor: Tensor) -> Part:
        """This rank's part of what a ControlNet returns, known as such."""
        part = tensor.as_subclass(Part)
        part.group = self.group
        return part

    def residual(self, tensor: Tensor) -> Tensor:
        """This rank's part of what is added to a stream (B, tokens, C), from all of it or from that part.

        Raises:
            ConfigError: It is the part of another rank.
        """
        if not isinstance(tensor, Part):
            return self.own(tensor, 1) if tensor.ndim == 3 else tensor
        if tensor.group is not self.group:
            raise ConfigError(
                "A ControlNet is spread over other ranks than its transformer; give both to one "
                "enable_cache, with ParallelismConfig(extra_parallel_modules=['controlnet'])."
            )
        return tensor.plain()

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

    def _pieces(self, name: str) -> tuple[int, ...]:
        """What a stream is cut into before each piece is cut for the ranks."""
        front = self.fronts[name]
        return (front, self.lengths[name] - front) if front else (self.lengths[name],)

    def _size(self, length: int, rank: int) -> int:
        return length // self._ranks + (rank < length % self._ranks)

    def _check(self, tensor: Tensor, dim: int, streams: Sequence[str]) -> None:
        if tensor.shape[dim] != self.total(streams):
            raise EngineError(
                f"A tensor of shape {tuple(tensor.shape)} has {tensor.shape[dim]} entries in dimension "
                f"{dim}, but {' and '.join(streams)} have {self.total(streams)} tokens; this input is not "
                "covered by the plan of the model. Give another cp_plan."
            )

    def _order(self, streams: Sequence[str], device: torch.device) -> Tensor | None:
        """Places of the tokens in the order of the ranks; None where they are in it."""
        pieces = [piece for name in streams for piece in self._pieces(name)]
        if len(pieces) == 1:
            return None
        shares = torch.arange(sum(pieces), device=device).split(pieces)
        runs = (self._shares(share) for share in shares)
        return torch.cat([share for of_rank in zip(*runs, strict=True) for share in of_rank])

    def _shares(self, places: Tensor) -> tuple[Tensor, ...]:
        return places.split([self._size(len(places), rank) for rank in range(self._ranks)])
