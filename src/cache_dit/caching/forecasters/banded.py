"""The difference between the branches of guidance, repeated with a weight for each band of frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cache_dit.caching.forecasters.reuse import Reuse
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.spectrum import low_frequencies


@dataclass(frozen=True, slots=True)
class Banded(Reuse):
    """The latest difference, low frequencies stronger in the middle of a run and high ones at the end.

    FasterCache (arXiv 2410.19355): low ones between noise levels 0.099 and 0.901, high ones below 0.301, as
    in diffusers' code. Low are those up to a fifth of the shorter side, over the picture in latents and over
    the grid of tokens where patches are packed (FLUX), which the paper leaves open. The weights are applied
    to the difference as it was kept; diffusers keeps the weighted one, so that they multiply.

    Attributes:
        low: Weight of low frequencies.
        high: Weight of the others.
    """

    needs_noise: ClassVar[bool] = True
    low: float = 1.1
    high: float = 1.1

    def predict(self, state: Tensor, at: Moment) -> Tensor:
        sigma = 1.0 if at.sigma is None else at.sigma
        low = self.low if 0.099 < sigma < 0.901 else 1.0
        high = self.high if sigma < 0.301 else 1.0
        if low == high or state.ndim not in (3, 4, 5):
            return state * low if low == high != 1.0 else state
        return torch.add(state * high, low_frequencies(state, 0.2), alpha=low - high).to(state.dtype)
