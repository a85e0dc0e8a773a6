"""A forecast of your own; nothing has to be registered. How to write a gate is told in docs/extending.md."""

from dataclasses import dataclass

from flux_model import load, seeded
from torch import Tensor

import cache_dit
from cache_dit import CalibratorConfig, IntervalConfig, Place, TaylorSeerCalibratorConfig
from cache_dit.caching.forecasters.history import Computed, Ordered
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.weights import weighted_sum
from cache_dit.caching.options import option, options, real
from cache_dit.metrics import psnr


@dataclass(frozen=True, slots=True)
class DampedLine(Ordered):
    """The line through the two values computed last, less steep the further it goes."""

    damping: float = 0.9

    def predict(self, state: Computed, at: Moment) -> Tensor:
        if len(state.times) == 1:
            return state.values[0]
        last, before = state.times
        reach = (at.time - last) / (last - before)
        share = reach * self.damping**reach
        return weighted_sum(state.values, [1 + share, -share])


@options
class DampedLineConfig(CalibratorConfig):
    """Extrapolate along a damped line.

    Attributes:
        damping: What is left of the slope after one distance between computed steps; 1 is a straight line.
    """

    damping: float = option(real(0.0, 1.0), default=0.9)

    def method(self) -> DampedLine:
        return DampedLine(damping=self.damping)

    def strify(self) -> str:
        return f"Damped{self.damping:g}"

    def describe(self) -> str:
        return f"a line damped by {self.damping:g} on {self.calibrator_cache_type}"


pipe, size = load(__doc__)


def draw():
    prompt = "a yellow tree on snow at day"
    return pipe(prompt, generator=seeded(), output_type="pt", **size).images[0].float()


uncached = draw()
for calibrator in (CalibratorConfig(), TaylorSeerCalibratorConfig(), DampedLineConfig(damping=0.8)):
    cache_dit.enable_cache(pipe, IntervalConfig(place=Place.OUTPUT, interval=3), calibrator)
    near = psnr(draw(), uncached, data_range=1.0)
    print(f"{cache_dit.summary(pipe, logging=False)[0].forecaster}: {near:.1f} dB")
