"""Which tokens are computed where the others repeat what they had: scores, the choice, gather and scatter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d


class Ages(NamedTuple):
    """Repeated steps since all tokens were computed, and those of every token since it was, [B, S]."""

    steps: int
    ages: Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """Choose the share of the tokens with the highest scores; a score is a weighted sum of what follows.

    Parts of the score are scaled to at most 1. Published scores from attention maps (how much a token is
    attended to, ToCa, arXiv 2410.05317) are not among them: flash attention makes no maps.

    Attributes:
        share: Of the tokens of every sample, rounded.
        age: Weight of the steps since the token was computed.
        norm: Weight of the L2 norm of its kept value.
        random: Weight of a random number, the same for the same step in every run.
        spatial: What is added for the best token of every 2 x 2 tokens, where their number is a square.
        alternate: On every other step, the first one included, no token is computed.
    """

    share: float
    age: float = 0.0
    norm: float = 0.0
    random: float = 0.0
    spatial: float = 0.0
    alternate: bool = False

    def choose(self, known: Ages | None, kept: Tensor, step: int) -> tuple[Tensor | None, Ages]:
        """The places of the tokens to be computed, [B, K], None for no token; and the ages behind the step.

        Args:
            known: The ages, None where all tokens were computed on the step before.
            kept: What is repeated, [B, S, C], or what it is made of.
            step: Number of the step.
        """
        steps = 0 if known is None else known.steps
        ages = kept.new_zeros(kept.shape[:2]) if known is None else known.ages
        ages, count = ages + 1, round(self.share * kept.shape[1])
        if count == 0 or (self.alternate and steps % 2 == 0):
            return None, Ages(steps + 1, ages)
        index = self.score(ages, kept, step).topk(count, dim=1, sorted=False).indices
        return index, Ages(steps + 1, ages.scatter_(1, index, 0.0))

    def score(self, ages: Tensor, kept: Tensor, step: int) -> Tensor:
        """The scores, [B, S]."""
        # Every age is 1 at least.
        total = self.age * ages / ages.amax(1, keepdim=True)
        if self.norm:
            norms = torch.linalg.vector_norm(kept, dim=-1, dtype=torch.float32)
            total = total + self.norm * norms / norms.amax(1, keepdim=True).clamp(min=1e-30)
        if self.random:
            # A generator of its own: the program's random numbers stay as they are without caching.
            generator = torch.Generator(kept.device).manual_seed(step)
            drawn = torch.rand(kept.shape[:2], generator=generator, device=kept.device)
            total = total + self.random * drawn
        side = math.isqrt(total.shape[1])
        if self.spatial and side % 2 == 0 and side * side == total.shape[1]:
            grid = total.reshape(-1, 1, side, side)
            best = interpolate(max_pool2d(grid, 2), scale_factor=2)
            total = total + self.spatial * (grid == best).flatten(1)
        return total


def rows_of(values: Tensor, index: Tensor) -> Tensor:
    """The tokens at these places: [B, K, C] of [B, S, C]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def put_rows(values: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Overwrite the tokens at these places, in the values themselves."""
    return values.scatter_(1, index.unsqueeze(-1).expand_as(rows), rows.to(values.dtype))
