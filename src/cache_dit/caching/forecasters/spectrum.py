"""Spectrum: Chebyshev polynomials fitted to all computed steps, joined with the line of the last two."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.forecasters.history import Computed, FromComputed
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.weights import chebyshev_fit, combine, weighted_sum
from cache_dit.caching.options import flag, option, options, real, whole


@dataclass(frozen=True, slots=True)
class Spectrum(FromComputed):
    """`blend` times a ridge fit of Chebyshev polynomials, and the rest a line (Spectrum, arXiv 2603.01623).

    With `tau` in [-1, 1] over the run, up to this step where its length is not known, `P` the polynomials
    at the computed steps and `p` those now, the fit `p (P^T P + ridge I)^-1 P^T H` is a weighted sum of the
    computed values `H`: only the weights are solved for, on the host. The ridge draws to 0, so that not even
    a constant is fitted exactly; `anchored` fits the change to the newest value instead.
    """

    degree: int = 4
    ridge: float = 0.1
    blend: float = 0.5
    window: int = 16
    anchored: bool = False

    @property
    def memory(self) -> int:
        return self.window

    def predict(self, state: Computed, at: Moment) -> Tensor:
        times, values = state
        if len(times) == 1:
            return values[0]
        scale = 2 / max(at.end or 0.0, at.time)
        fit = chebyshev_fit([scale * t - 1 for t in times], scale * at.time - 1, self.degree, self.ridge)
        if self.anchored:
            fit[0] += 1 - sum(fit)
        ahead = (at.time - times[0]) / (times[0] - times[1])
        line = [1 + ahead, -ahead, *[0.0] * (len(times) - 2)]
        return weighted_sum(values, combine((fit, line), (self.blend, 1 - self.blend)))

    def within(self, memory: int) -> Spectrum | None:
        return replace(self, window=min(self.window, memory)) if memory > 1 else None


@options
class SpectrumCalibratorConfig(CalibratorConfig):
    """Extrapolate with a smooth fit to all computed steps (Spectrum, arXiv 2603.01623).

    Attributes:
        degree: Highest Chebyshev polynomial, 1 to 8. Default 4.
        ridge: Penalty on the coefficients, from 1e-6: more is smoother and flatter. Default 0.1.
        blend: Share of the fit, 0 to 1; the rest is the line. Published 0.5 to 0.8. Default 0.5.
        window: Most computed steps that are kept, one tensor a stream each, from 2. Default 16.
        anchored: Fit the change to the newest value, so that nothing is drawn to 0; ours. Default False.
    """

    degree: int = option(whole(1, 8), default=4)
    ridge: float = option(real(1e-6), default=0.1)
    blend: float = option(real(0.0, 1.0), default=0.5)
    window: int = option(whole(2), default=16)
    anchored: bool = option(flag, default=False)

    def strify(self) -> str:
        """For example `SpectrumD4R0.1B0.5W16`, and `A` where anchored."""
        return f"SpectrumD{self.degree}R{self.ridge:g}B{self.blend:g}W{self.window}" + "A" * self.anchored

    def describe(self) -> str:
        """The forecaster in words."""
        return f"Spectrum of degree {self.degree} over {self.window} steps on {self.calibrator_cache_type}"

    def method(self) -> Spectrum:
        """The forecaster that this configuration is about."""
        return Spectrum(self.degree, self.ridge, self.blend, self.window, self.anchored)
