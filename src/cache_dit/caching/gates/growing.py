"""Spectrum's schedule: the longer the run, the further apart the computed steps."""

from __future__ import annotations

from typing import ClassVar

from cache_dit.caching.config import CacheConfig
from cache_dit.caching.gates.interval import IntervalGate
from cache_dit.caching.options import flag, option, options, real, whole


@options
class GrowingIntervalConfig(CacheConfig):
    """Compute the warm-up, then steps whose distance grows: late steps change the picture least.

    The schedule of Spectrum (arXiv 2603.01623): a window that starts at `first` steps and grows by `growth`
    after each computed step, rounded down where it is used. That steps which the warm-up computes do not make
    it grow is our reading. With the defaults the distances behind the warm-up are 2, 2, 3, 4, 5, 5, 6, ...

    Attributes:
        first: Steps from the warm-up to the next computed step. Default 2.
        growth: What the window grows by, in steps. Default 0.75; the faster published setting is 3.
        max_warmup_steps: First steps that are computed. Default 5.
        last_step_computed: Compute the last step too, where the length of the run is known. Default False.
    """

    method: ClassVar[str] = "Growing interval"

    first: float = option(real(1.0), default=2.0)
    growth: float = option(real(0.0), default=0.75)
    max_warmup_steps: int = option(whole(0), default=5)
    last_step_computed: bool = option(flag, default=False)

    def gate(self) -> IntervalGate:
        """The rule of this method, for steps that no limit decides."""
        return IntervalGate(self.first, self.growth, self.last_step_computed)

    def label(self) -> str:
        """`N`, the first window, `G` and its growth; `L` where the last step is computed."""
        return f"N{self.first:g}G{self.growth:g}{'L' if self.last_step_computed else ''}"
