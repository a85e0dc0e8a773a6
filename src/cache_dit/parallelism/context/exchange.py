"""Collectives of context parallelism. Shapes: B batch, s tokens of one rank, S of all, H heads, D width."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.nn import functional

Sizes = Sequence[int]
"""Tokens on each rank of a group, in its order."""

Arriving = Callable[[], Tensor]
"""Waits for a tensor that is on its way."""

_LARGEST_FLOAT8 = 448.0

# Renamed in torch 2.13.
_all_gather = getattr(funcol, "all_gather_single", None) or funcol.all_gather_tensor


def padded(tensor: Tensor, dim: int, multiple: int) -> Tensor:
    """Zeros behind a dimension up to a multiple; where none are missing the tensor itself, uncopied."""
    missing = -tensor.shape[dim] % multiple
    if not missing:
        return tensor
    return functional.pad(tensor, [0, 0] * (tensor.ndim - 1 - dim % tensor.ndim) + [0, missing])


def sent_to_heads(tensor: Tensor, group: dist.ProcessGroup, sizes: Sizes) -> Arriving:
    """All tokens of some heads from some tokens of all heads: (B, s, H, D) -> (B, S, H / ranks, D)."""
    batch, mine, heads, width = tensor.shape
    ranks = len(sizes)
    parts = tensor.reshape(batch, mine, ranks, heads // ranks, width).permute(2, 1, 0, 3, 4)
    arriving = _sent(parts.flatten(0, 1), group, sizes, [mine] * ranks)
    return lambda: funcol.wait_tensor(arriving).transpose(0, 1)


def to_tokens(tensor: Tensor, group: dist.ProcessGroup, sizes: Sizes) -> Tensor:
    """The way back: (B, S, H / ranks, D) -> (B, s, H, D)."""
    ranks, mine = len(sizes), sizes[dist.get_rank(group)]
    got = funcol.wait_tensor(_sent(tensor.transpose(0, 1), group, [mine] * ranks, sizes))
    batch, heads, width = got.shape[1:]
    return got.view(ranks, mine, batch, heads, width).permute(2, 1, 0, 3, 4).reshape(batch, mine, -1, width)


def sent_as_float8(tensor: Tensor, group: dist.ProcessGroup, sizes: Sizes) -> Arriving:
    """`sent_to_heads` with half of the bytes: float8 with one float32 scale for each token and head."""
    scale = tensor.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / _LARGEST_FLOAT8
    small = (tensor / scale).to(torch.float8_e4m3fn)
    # Backends know no float8, and one exchange is cheaper than two.
    packed = torch.cat((small.view(torch.uint8), scale.view(torch.uint8)), -1)
    arriving, width, dtype = sent_to_heads(packed, group, sizes), tensor.shape[-1], tensor.dtype

    def arrived() -> Tensor:
        values, scales = (part.contiguous() for part in arriving().split((width, 4), -1))
        return (values.view(torch.float8_e4m3fn).float() * scales.view(torch.float32)).to(dtype)

    return arrived


def gather(tensor: Tensor, dim: int, group: dist.ProcessGroup, sizes: Sizes) -> Tensor:
    """The parts of all ranks along a dimension, in the order of the ranks; they may differ in length."""
    longest = max(sizes)
    rows = tensor.movedim(dim, 0)
    if len(rows) < longest:
        # Backends gather parts of one length only.
        rows = torch.cat((rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])))
    whole = funcol.wait_tensor(_all_gather(rows.contiguous(), 0, group))
    if min(sizes) < longest:
        whole = torch.cat([part[:size] for part, size in zip(whole.split(longest), sizes, strict=True)])
    return whole.movedim(0, dim)


def _sent(tensor: Tensor, group: dist.ProcessGroup, received: Sizes, sent: Sizes) -> Tensor:
    """All to all along the first dimension, `sent[r]` rows to rank r and `received[r]` rows from it."""
    arriving: Tensor = funcol.all_to_all_single(tensor.contiguous(), list(received), list(sent), group)
    return arriving
