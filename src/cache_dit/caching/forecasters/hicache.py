"""HiCache: the ladder of differences over scaled Hermite polynomials."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.forecasters.history import Computed, Ordered
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.weights import combine, ladder, scaled_hermite, weighted_sum
from cache_dit.caching.options import option, options, real, whole
from cache_dit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HiCache(Ordered):
    """Extrapolate with `F_s + sum_i F^i / i! * sigma^i H_i(sigma k)` (arXiv 2508.16984).

    `k` is the number of steps since the last computed one, positive forward in time, and `F^i` are the
    differences of `maths.weights.ladder`. A `sigma` below `sqrt(1/2)` damps: the slope is multiplied by
    `2 sigma^2`. The even polynomials are not 0 at `k = 0`: order 2 takes `sigma^2 F^2` off, with `F^2` per
    step squared, so positions must be step numbers.

    Attributes:
        sigma: Contraction, 0 to 1.
    """

    order: int = 2
    sigma: float = 0.5

    def predict(self, state: Computed, at: Moment) -> Tensor:
        return hermite_forecast(state, at.time, self.sigma)


def hermite_forecast(state: Computed, time: float, sigma: float) -> Tensor:
    """The forecast of `HiCache` from the values that there are."""
    terms = scaled_hermite(time - state.times[0], sigma, len(state.times) - 1)
    divided = [term / math.factorial(order) for order, term in enumerate(terms)]
    return weighted_sum(state.values, combine(ladder(state.times), divided))


@options
class HiCacheCalibratorConfig(CalibratorConfig):
    """Extrapolate over the last computed steps with damped Hermite polynomials (HiCache, arXiv 2508.16984).

    Attributes:
        order: Highest polynomial, 1 to 4; costs `order + 1` tensors a stream. Default 2.
        sigma: Contraction, 0 to 1: 0 reuses, 0.5 (default) follows half of the slope, `sqrt(1/2)` all of it.
        forecast_axis: "step" only, as the polynomials are scaled to steps.
    """

    order: int = option(whole(1, 4), default=2)
    sigma: float = option(real(0.0, 1.0), default=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.forecast_axis != "step":
            raise ConfigError(
                f"forecast_axis is {self.forecast_axis!r}; Hermite polynomials count steps; give 'step'."
            )

    def strify(self) -> str:
        """For example `HiCacheO2S0.5`."""
        return f"HiCacheO{self.order}S{self.sigma:g}"

    def describe(self) -> str:
        """The forecaster in words."""
        return f"HiCache of order {self.order} (sigma {self.sigma:g}) on {self.calibrator_cache_type}"

    def method(self) -> Ordered:
        """The forecaster that this configuration is about."""
        return HiCache(self.order, self.sigma)
