"""FasterCache: what is reused is moved on, in the direction in which it changed last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.forecasters.banded import Banded
from cache_dit.caching.forecasters.history import Computed, FromComputed
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import option, optional, options, real


@dataclass(frozen=True, slots=True)
class Moved(FromComputed):
    """`F + w (F - F')`, with the two latest computed values; `w` None: the share of the run that is over."""

    weight: float | None = None

    @property
    def memory(self) -> int:
        return 2

    def within(self, memory: int) -> None:
        return None

    def predict(self, state: Computed, at: Moment) -> Tensor:
        if len(state.values) == 1:
            return state.values[0]
        over = at.time / at.end if at.end else 0.5
        weight = over if self.weight is None else self.weight
        return torch.lerp(state.values[1], state.values[0], 1.0 + weight)


@options
class FasterCacheCalibratorConfig(CalibratorConfig):
    """Move reused outputs on, and weight the difference of the guidance branches.

    FasterCache (arXiv 2410.19355), with `uncond_interval`. The weight of attention outputs is published as
    growing from 0 to 1 over the run; diffusers fixes 0.5, and takes what was approximated for computed too,
    which is not done here. For the difference see `forecasters.banded`.

    Attributes:
        weight: How far outputs are moved on, in changes between the two latest. None (default): the share of
            the run that is over, by steps or noise level; half where its length is not known.
        low_weight: Of the difference's low frequencies, in the middle of the run. Default 1.1.
        high_weight: Of its other frequencies, at the end of the run. Default 1.1.
    """

    weight: float | None = option(optional(real(0.0)), default=None)
    low_weight: float = option(real(0.0), default=1.1)
    high_weight: float = option(real(0.0), default=1.1)

    def strify(self) -> str:
        """For example `FasterCacheWt`, or `FasterCacheW0.5` with a fixed weight."""
        return f"FasterCacheW{'t' if self.weight is None else f'{self.weight:g}'}"

    def describe(self) -> str:
        """The forecaster in words."""
        return f"FasterCache's forecast of {self.calibrator_cache_type}"

    def of_branches(self) -> Banded:
        """The forecaster of the difference between the two branches of classifier-free guidance."""
        return Banded(self.low_weight, self.high_weight)

    def method(self) -> Moved:
        """The forecaster that this configuration is about."""
        return Moved(self.weight)
