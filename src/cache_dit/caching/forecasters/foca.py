"""FoCa: forecast with BDF2, then calibrate with Heun's corrector."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.forecasters.history import Computed, Ordered
from cache_dit.caching.forecasters.newton import extrapolate
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.weights import weighted_sum
from cache_dit.caching.options import options


@dataclass(frozen=True, slots=True)
class FoCa(Ordered):
    """A feature as the solution of an ODE: BDF2 predictor and Heun corrector (arXiv 2508.16211).

    The paper's equations, in features alone and over uneven gaps, are not known to us; this is our reading of
    its two steps. Let `s` be the last computed step, `g` and `g'` the gaps before it, `h` the distance to the
    forecast, `w = h / g`, and `d`, `d'` the slopes over `g` and `g'`.

    1. Forecast: one BDF2 step, `(1+w)^2/(1+2w) F_s - w^2/(1+2w) F_s' + h (1+w)/(1+2w) F'(s+h)`, with the
       slope over the latest gap, `d`, for the unknown `F'(s+h)`. That is the line `F_s + h d` for any `w`,
       and the slope which BDF2 finds at its end is `d` again.
    2. Calibrate: Heun's rule, `F_s + h/2 (F'_s + d)`, with the slope at `s` by the formula of BDF2 over the
       computed values: `F'_s = d + g (d - d') / (g + g')`.

    So a line is forecast exactly at any gaps, and of a curve a part of the bend: `1/(2 + 2w)` of what the
    parabola through the three values adds to the line. Every forecast is one step from computed values alone:
    nothing forecast goes into the next one, so no error builds up over a long row of skipped steps. With two
    values, or at order 1, it is the line; with one, that value.
    """

    order: int = 2

    def predict(self, state: Computed, at: Moment) -> Tensor:
        if len(state.values) < 3:
            return extrapolate(state.times, state.values, at.time)
        newest, middle, oldest = state.times
        h, gap, before = at.time - newest, newest - middle, middle - oldest
        bend = h / 2 * gap / (gap + before)
        weights = (1 + (h + bend) / gap, -(h + bend) / gap - bend / before, bend / before)
        return weighted_sum(state.values, weights)


@options
class FoCaCalibratorConfig(CalibratorConfig):
    """Forecast then calibrate (FoCa, arXiv 2508.16211): the line of the last values, bent by half.

    Costs three tensors a stream. The equations are a reading of the paper, see `FoCa`; they count distances
    between steps, so gaps may be uneven. It has no options of its own.
    """

    def strify(self) -> str:
        """`FoCa`."""
        return "FoCa"

    def describe(self) -> str:
        """The forecaster in words."""
        return f"FoCa on {self.calibrator_cache_type}"

    def method(self) -> FoCa:
        """The forecaster that this configuration is about."""
        return FoCa()
