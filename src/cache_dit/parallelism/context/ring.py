"""Ring attention with hand-over: attention over one part of the keys while the next part is on its way.

Parts are put together by their log-sum-exp (Liu et al., arXiv 2310.01889; Rabe and Staats, arXiv 2112.05682).
Shapes: B batch, s tokens of one rank, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from cache_dit.errors import ConfigError
from cache_dit.parallelism.context.exchange import padded


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    group: dist.ProcessGroup,
    sizes: Sequence[int],
    mask: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attention of this rank's queries over the keys of all ranks.

    Args:
        query: (B, s, H, D) of this rank, as `key` and `value`.
        key: Likewise.
        value: Likewise.
        group: The ring.
        sizes: Tokens on each of its ranks.
        mask: Broadcasts to (B, H, s, S) with all S tokens of the ring; None: all keys count.
        scale: Of the scores; None: `D ** -0.5`.
    """
    ranks, mine = len(sizes), dist.get_rank(group)
    starts = [sum(sizes[:rank]) for rank in range(ranks)]
    kept = torch.stack((key, value))
    out: Tensor | None = None
    total: Tensor | None = None
    for turn in range(ranks):
        source = (mine - turn) % ranks
        coming, work = None, []
        if turn + 1 < ranks:
            coming = kept.new_empty((*kept.shape[:2], sizes[(source - 1) % ranks], *kept.shape[3:]))
            work = _hand_on(kept, coming, group, mine, ranks)
        columns = None if mask is None else mask[..., starts[source] : starts[source] + sizes[source]]
        part, lse = partial_attention(query, kept[0], kept[1], columns, scale)
        out, total = (part, lse) if out is None or total is None else _joined(out, total, part, lse)
        for one in work:
            one.wait()
        if coming is not None:
            kept = coming
    assert out is not None  # there is one rank at least
    return out.to(query.dtype)


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attention (B, s, H, D) in float32 and the log-sum-exp of its scores (B, s, H, 1).

    Raises:
        ConfigError: PyTorch has no kernel that tells the log-sum-exp on this device.
    """
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    bias = None if mask is None else _bias(mask, q.dtype)
    if q.device.type == "cpu":
        whole = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=whole, scale=scale
        )
    elif q.device.type == "cuda" and bias is None and q.dtype in (torch.float16, torch.bfloat16):
        out, lse = _flash(q, k, v, scale)
    elif q.device.type == "cuda":
        out, lse = _efficient(q, k, v, bias, scale)
    else:
        raise ConfigError(
            f"ring_rotate_method is 'p2p' but no attention on {q.device.type} tells its log-sum-exp; give "
            "ring_rotate_method='allgather'."
        )
    out, lse = out.float(), lse.unsqueeze(-1)
    if bias is not None or key.shape[1] == 0:
        # A query that may look at none of these keys.
        seen = lse.isfinite()
        out, lse = out.where(seen, 0.0), lse.where(seen, -torch.inf)
    return out.transpose(1, 2), lse.transpose(1, 2)


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    width = q.shape[-1]
    # The kernel wants a multiple of 8; zeros change nothing but the default scale.
    q, k, v = (padded(tensor, -1, 8) for tensor in (q, k, v))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, scale=width**-0.5 if scale is None else scale
    )
    return out[..., :width], lse


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    if bias is not None:
        # Rows have to begin at a multiple of 16 bytes: those of a copy do, and it is of the mask as it was
        # given, mostly one row for all heads and queries.
        keys = k.shape[2]
        copied = functional.pad(bias.expand(-1, -1, -1, keys), (0, -keys % 8))
        bias = copied.expand(*q.shape[:3], -1)[..., :keys]
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, scale=scale)
    # It is padded to a multiple of 32 queries.
    return out, lse[..., : q.shape[2]]


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores; broadcasts to (B, H, s, S) as the mask does."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
    return mask.to(dtype)


def _joined(out: Tensor, total: Tensor, part: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.logaddexp(total, lse)
    # Where neither has seen a key, the difference is NaN.
    first, second = ((one - both).exp().nan_to_num(0.0) for one in (total, lse))
    return out * first + part * second, both


def _hand_on(kept: Tensor, coming: Tensor, group: dist.ProcessGroup, mine: int, ranks: int) -> list[Any]:
    after, before = (dist.get_global_rank(group, (mine + way) % ranks) for way in (1, -1))
    work: list[Any] = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, kept.contiguous(), after, group),
            dist.P2POp(dist.irecv, coming, before, group),
        ]
    )
    return work
