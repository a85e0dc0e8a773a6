"""HiCache: the ladder of differences over scaled Hermite polynomials."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.forecasters.history import Computed, Ordered
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.weights import blend, combine, ladder
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
        terms = scaled_hermite(at.time - state.times[0], self.sigma, len(state.times) - 1)
        divided = [term / math.factorial(order) for order, term in enumerate(terms)]
        return blend(state.values, combine(ladder(state.times), divided))


def scaled_hermite(x: float, sigma: float, order: int) -> list[float]:
    """Return `sigma^n H_n(sigma x)` for n from 0 to `order`, with the physicists' Hermite polynomials."""
    terms = [1.0, 2 * sigma**2 * x]
    for n in range(1, order):
        # H_{n+1}(y) = 2 y H_n(y) - 2 n H_{n-1}(y), at y = sigma x and times sigma^{n+1}.
        terms.append(2 * sigma**2 * (x * terms[n] - n * terms[n - 1]))
    return terms[: order + 1]


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
                f"forecast_axis is {self.forecast_axis!r}; HiCache's polynomials are scaled to steps; "
                "give 'step'."
            )

    def strify(self) -> str:
        """For example `HiCacheO2S0.5`."""
        return f"HiCacheO{self.order}S{self.sigma:g}"

    def describe(self) -> str:
        """The forecaster in words."""
        return f"HiCache of order {self.order} (sigma {self.sigma:g}) on {self.calibrator_cache_type}"

    def method(self) -> HiCache:
        """The forecaster that this configuration is about."""
        return HiCache(self.order, self.sigma)
