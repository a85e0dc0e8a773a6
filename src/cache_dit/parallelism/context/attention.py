"""Attention over a sequence that is shared by several ranks: Ulysses, ring, or both.

Shapes: B batch, s tokens of this rank, S of all ranks, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from cache_dit.errors import ConfigError
from cache_dit.parallelism.config import ParallelismConfig
from cache_dit.parallelism.context.exchange import (
    Arriving,
    Sizes,
    gather,
    padded,
    sent_as_float8,
    sent_to_heads,
    to_tokens,
)
from cache_dit.parallelism.context.ring import ring_attention
from cache_dit.parallelism.mesh import Sharing

Compute = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention on one process, of (B, S, H, D) queries, keys and values and a mask."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedAttention:
    """The exchange around attention, for the ranks of one mesh.

    Attributes:
        ulysses: Those that exchange tokens for heads.
        ring: Those that hand keys and values around; a part of the sequence is that of a whole `ulysses`.
        config: Of the user.
    """

    ulysses: dist.ProcessGroup
    ring: dist.ProcessGroup
    config: ParallelismConfig

    @classmethod
    def of(cls, sharing: Sharing) -> SharedAttention:
        """The groups of a mesh."""
        return cls(sharing.part("ulysses"), sharing.part("ring"), sharing.config)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        asking: Sizes,
        sizes: Sizes,
        compute: Compute,
        scale: float | None = None,
        coming: Sequence[Arriving] | None = None,
    ) -> Tensor:
        """Attention of this rank's queries over all keys.

        Args:
            query: (B, s, H, D).
            key: (B, s, H, D), of these or other tokens, or with fewer heads that queries share in turn.
            value: As `key`.
            mask: Over all S keys in the order of the ranks, and over 1 or all S queries; None: all count.
            asking: Tokens with queries on each rank, ring by ring.
            sizes: Likewise with keys.
            compute: Attention on one process.
            scale: Of the scores, for `ring_rotate_method="p2p"`, which does not call `compute`.
            coming: Values, queries and keys that `send` has sent off already; None: they are sent now.

        Raises:
            ConfigError: The tensors do not fit the sizes.
        """
        across, around = dist.get_world_size(self.ulysses), dist.get_world_size(self.ring)
        place, turn = dist.get_rank(self.ulysses), dist.get_rank(self.ring)
        near = asking[turn * across : (turn + 1) * across]
        for tensor, expected in ((query, asking), (key, sizes)):
            own = expected[turn * across + place]
            if tensor.shape[1] != own:
                raise ConfigError(
                    f"An attention got {tensor.shape[1]} tokens on this rank where the plan says {own}; this "
                    "input is not covered by it. Give another cp_plan."
                )
        heads = query.shape[2]
        if across > 1:
            if coming is None:
                coming = self._sent(query, key, value, asking, sizes)
            value, query, key = (arriving() for arriving in coming)
        if mask is not None:
            rows = (sum(asking[: turn * across]), sum(near))
            mask = _part_of_mask(mask, heads, place, across, rows)
        if around > 1:
            far = [sum(sizes[start * across : (start + 1) * across]) for start in range(around)]
            out = self._around(query, key, value, mask, far, compute, scale)
        else:
            out = compute(query, key, value, mask)
        return to_tokens(out, self.ulysses, near)[:, :, :heads] if across > 1 else out

    def send(self, tensor: Tensor, sizes: Sizes, *, exact: bool) -> Arriving:
        """Send some tokens of all heads off, to become all tokens of some heads.

        Args:
            tensor: (B, s, H, D).
            sizes: Tokens on each rank, ring by ring.
            exact: It does not travel as float8: an error in a key acts through the exponential of a score.
        """
        across, turn = dist.get_world_size(self.ulysses), dist.get_rank(self.ring)
        # Heads of zeros make up the number; what comes of them is dropped.
        tensor = padded(tensor, 2, across)
        near = sizes[turn * across : (turn + 1) * across]
        small = self.config.ulysses_float8 and not exact
        return (sent_as_float8 if small else sent_to_heads)(tensor, self.ulysses, near)

    def _sent(self, query: Tensor, key: Tensor, value: Tensor, asking: Sizes, sizes: Sizes) -> list[Arriving]:
        ranks, heads = dist.get_world_size(self.ulysses), query.shape[2]
        if key.shape[2] != heads and (heads % ranks or key.shape[2] % ranks):
            # Shared heads that cannot be shared out are written out.
            key, value = (one.repeat_interleave(heads // one.shape[2], 2) for one in (key, value))
        return [
            self.send(value, sizes, exact=False),
            self.send(query, asking, exact=False),
            self.send(key, sizes, exact=True),
        ]

    def _around(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        far: Sizes,
        compute: Compute,
        scale: float | None,
    ) -> Tensor:
        if key.shape[2] != query.shape[2] and self.config.ring_rotate_method == "p2p":
            key, value = (one.repeat_interleave(query.shape[2] // one.shape[2], 2) for one in (key, value))
        if self.config.ring_rotate_method == "p2p":
            return ring_attention(query, key, value, self.ring, far, mask, scale)
        return compute(query, gather(key, 1, self.ring, far), gather(value, 1, self.ring, far), mask)


def _part_of_mask(mask: Tensor, heads: int, place: int, ranks: int, rows: tuple[int, int]) -> Tensor:
    """The heads and the queries of a mask (..., [B], [H], queries, keys) that are computed on this rank."""
    if mask.ndim >= 2 and mask.shape[-2] > 1:
        mask = mask.narrow(-2, *rows)
    if mask.ndim == 4 and mask.shape[1] == heads > 1:
        share = -(-heads // ranks)
        mask = functional.pad(mask, (0, 0, 0, 0, 0, share * ranks - heads))[:, place * share :][:, :share]
    return mask
