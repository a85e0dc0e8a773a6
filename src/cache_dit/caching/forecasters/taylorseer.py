"""TaylorSeer: extrapolate a feature instead of reusing it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.forecasters.history import Computed, Ordered
from cache_dit.caching.forecasters.newton import Newton
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.weights import combine, ladder, weighted_sum
from cache_dit.caching.options import one_of, option, options, whole
from cache_dit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TaylorSeer(Ordered):
    """The published forecast, `sum_i F^i k^i / i!` over the ladder of differences (arXiv 2503.06923, eq. 7).

    `k` is the distance to the last computed step and `F^i` the differences of `maths.weights.ladder`. From
    order 2 on it is not exact on polynomials, not even at even gaps: it stays behind a curve. The authors
    keep the differences; here they are weights of the computed values, which comes to the same and costs a
    computed step nothing.
    """

    def predict(self, state: Computed, at: Moment) -> Tensor:
        elapsed = at.time - state.times[0]
        terms = [elapsed**order / math.factorial(order) for order in range(len(state.times))]
        return weighted_sum(state.values, combine(ladder(state.times), terms))


@options
class TaylorSeerCalibratorConfig(CalibratorConfig):
    """Extrapolate over the last computed steps (TaylorSeer, arXiv 2503.06923), right at uneven gaps.

    Attributes:
        taylorseer_order: Degree of the polynomial, 1 to 4; costs one tensor a stream each. Default 1.
        differences: "newton" (default): divided differences over the true positions, which are exact on
            polynomials whatever the gaps are; gates that measure leave uneven ones. "published": the ladder
            of the paper, which divides by the latest gap only, to compare with its results. Order 1 is the
            same in both.
    """

    taylorseer_order: int = option(whole(1), default=1)
    differences: str = option(one_of("newton", "published"), default="newton")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.taylorseer_order > 4:
            raise ConfigError(
                f"taylorseer_order is {self.taylorseer_order}; give 1 to 4: differences of a higher order "
                "amplify noise more than they add."
            )

    def strify(self) -> str:
        """For example `T1O2`, or `T1O2P` with the published differences."""
        return f"T1O{self.taylorseer_order}" + ("P" if self.differences == "published" else "")

    def describe(self) -> str:
        """The forecaster in words."""
        published = " with the published differences" if self.differences == "published" else ""
        return f"TaylorSeer of order {self.taylorseer_order}{published} on {self.calibrator_cache_type}"

    def method(self) -> Forecaster:
        """The forecaster that this configuration is about."""
        kind = Newton if self.differences == "newton" else TaylorSeer
        return kind(self.taylorseer_order)
