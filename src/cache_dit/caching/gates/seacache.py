"""SeaCache: skip until the part of the latent that is signal has changed enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cache_dit.caching.config import CacheConfig
from cache_dit.caching.gates.accumulated import AccumulatedGate
from cache_dit.caching.maths.gate import Signal
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.spectrum import denoised
from cache_dit.caching.options import option, optional, options, real, whole
from cache_dit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SeaCacheGate(AccumulatedGate):
    """`AccumulatedGate` on the latent behind a Wiener filter for the step's noise level.

    Attributes:
        exponent: Of the filter; None: 3 for videos, 2 for anything else.
    """

    signal: ClassVar[Signal] = Signal.LATENT
    needs_noise: ClassVar[bool] = True
    exponent: float | None = None

    def seen(self, at: Moment, signal: Tensor) -> Tensor:
        exponent = self.exponent if self.exponent is not None else 3.0 if signal.ndim == 5 else 2.0
        return denoised(signal, self._sigma(at), exponent)

    def _sigma(self, at: Moment) -> float:
        if at.sigma is not None:
            return at.sigma
        if at.total is not None:
            return 1.0 - at.step / at.total
        raise ConfigError(
            "SeaCacheConfig needs the noise level of a step, and neither that nor the length of the run is "
            "known; set num_inference_steps."
        )


@options
class SeaCacheConfig(CacheConfig):
    """Skip while the changes of the denoised latent, added up, stay small (SeaCache, arXiv 2602.18993).

    The signal is what the transformer is given, behind a Wiener filter over its spatial (and temporal)
    frequencies for the noise level of the step: see `cache_dit.caching.maths.spectrum.denoised`, also for
    tokens without a grid. Where the noise level is not known, it is taken to fall evenly over the steps.
    The first and the last step are computed. The authors extrapolate from the two latest computed steps:
    `TaylorSeerCalibratorConfig` of order 1.

    Attributes:
        threshold: Compute when the sum of relative L1 changes reaches this; the authors use 0.3 and 0.6 on
            FLUX. 0 never skips. Default 0.25, as in diffusers.
        exponent: How fast the power of a clean latent is taken to fall with the frequency. None (default):
            3 for latents with a time axis, the value of diffusers; 2 for pictures, of which the source is
            not certain.
        max_warmup_steps: First steps that are computed. Default 1.
        max_continuous_cached_steps: Most skipped steps in a row; -1: no limit. Default 2, as in diffusers.
    """

    method: ClassVar[str] = "SeaCache"

    threshold: float = option(real(0.0), default=0.25)
    exponent: float | None = option(optional(real(0.0)), default=None)
    max_warmup_steps: int = option(whole(0), default=1)
    max_continuous_cached_steps: int = option(whole(1, unlimited=True), default=2)

    def gate(self) -> SeaCacheGate:
        return SeaCacheGate(self.threshold, self.exponent)

    def label(self) -> str:
        return f"SEA{self.threshold:g}"
