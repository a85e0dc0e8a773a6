"""Layers that hold one rank's share of a weight in plain local tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class Piece(NamedTuple):
    """A stretch of the divided side of a weight, handed out in units."""

    width: int
    units: int


def places(pieces: Sequence[Piece], rank: int, size: int) -> list[slice]:
    """Where the share of a rank lies in each piece; uneven where a piece has no multiple of `size` units."""
    found, start = [], 0
    for width, units in pieces:
        step = width // units
        first, last = (step * (units * edge // size) for edge in (rank, rank + 1))
        found.append(slice(start + first, start + last))
        start += width
    return found


def share_of(whole: Tensor, dim: int, pieces: Sequence[Piece], rank: int, size: int) -> Tensor:
    """One rank's share of a tensor, in memory of its own so that the whole can be freed."""
    parts = [whole[(slice(None),) * dim + (place,)] for place in places(pieces, rank, size)]
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0].clone(memory_format=torch.contiguous_format)


def whole_of(share: Tensor, dim: int, pieces: Sequence[Piece], group: dist.ProcessGroup) -> Tensor:
    """The tensor of which every rank of the group holds a share; bit for bit what was divided."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    shape = list(share.shape)
    shape[dim] = sum(piece.width for piece in pieces)
    whole = share.new_empty(shape)
    for source in range(size):
        found = places(pieces, source, size)
        shape[dim] = sum(place.stop - place.start for place in found)
        part = share.contiguous() if source == rank else share.new_empty(shape)
        dist.broadcast(part, dist.get_global_rank(group, source), group)
        chunks = part.split([place.stop - place.start for place in found], dim)
        for place, chunk in zip(found, chunks, strict=True):
            whole[(slice(None),) * dim + (place,)] = chunk
    return whole


class RowParallelLinear(nn.Linear):
    """A Linear that has some input channels; the ranks' outputs are added up, then the bias is added once.

    For inference: no gradient goes through the sum.

    Attributes:
        group: The ranks that have the other channels.
    """

    group: dist.ProcessGroup

    def forward(self, input: Tensor) -> Tensor:
        """Project this rank's channels and add up what all ranks have."""
        output = F.linear(input, self.weight)
        dist.all_reduce(output, group=self.group)
        return output if self.bias is None else output + self.bias


class RMSNormAcrossRanks(nn.Module):
    """A root-mean-square norm over channels that lie on several ranks: their sums of squares are added up.

    Attributes:
        weight: This rank's share of the scale; None where there is none.
        bias: This rank's share of the shift; None where there is none.
        eps: Added to the mean square; None: the smallest step of the input's type, as in `torch.nn.RMSNorm`.
        width: Channels on all ranks together.
        group: The ranks that have the other channels.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float | None
    width: int
    group: dist.ProcessGroup

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise over the channels of all ranks."""
        wide = hidden_states.float()
        squares = wide.square().sum(-1, keepdim=True)
        dist.all_reduce(squares, group=self.group)
        eps = torch.finfo(hidden_states.dtype).eps if self.eps is None else self.eps
        normed = (wide * torch.rsqrt(squares / self.width + eps)).to(hidden_states.dtype)
        scaled = normed if self.weight is None else normed * self.weight
        bias = getattr(self, "bias", None)
        return scaled if bias is None else scaled + bias
