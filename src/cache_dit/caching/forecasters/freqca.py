"""FreqCa: reuse what varies slowly over the tokens, forecast the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cache_dit.caching.forecasters.hicache import HiCacheCalibratorConfig, hermite_forecast
from cache_dit.caching.forecasters.history import Computed, Ordered
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import option, options, real


@dataclass(frozen=True, slots=True)
class FreqCa(Ordered):
    """High frequencies over the tokens are forecast as by `HiCache`, low ones reused (arXiv 2510.08669).

    Low frequencies are alike from step to step but jump, high ones move smoothly, so the paper finds. As
    both parts are sums of the same values, one Fourier transform is enough: that of the forecast change,
    whose low part is then taken off. It runs over dimension -2, which is that of the tokens in `[batch,
    tokens, channels]`, in the order in which the model has them, in float32 at least. Unsure about the
    source: whether the authors transform rows and columns of a picture apart, and which of Fourier and
    cosine transform they publish.

    Attributes:
        sigma: Contraction of the Hermite polynomials.
        cutoff: Share of the frequencies that are low, 0 to 1.
    """

    looks_along_tokens: ClassVar[bool] = True
    order: int = 2
    sigma: float = 0.71
    cutoff: float = 0.1

    def predict(self, state: Computed, at: Moment) -> Tensor:
        newest = state.values[0]
        if len(state.values) == 1:
            return newest
        change = hermite_forecast(state, at.time, self.sigma) - newest
        wide = change.type(torch.promote_types(change.dtype, torch.float32))
        spectrum = torch.fft.rfft(wide, dim=-2)
        low = math.ceil(self.cutoff * spectrum.shape[-2])
        if low:
            wide = wide - torch.fft.irfft(spectrum[..., :low, :], n=wide.shape[-2], dim=-2)
        return newest + wide.type(newest.dtype)


@options
class FreqCaCalibratorConfig(HiCacheCalibratorConfig):
    """Forecast high frequencies over the tokens and reuse low ones (FreqCa, arXiv 2510.08669).

    Attributes:
        order: As in `HiCacheCalibratorConfig`. Default 2.
        sigma: As in `HiCacheCalibratorConfig`. Default 0.71.
        cutoff: Share of the frequencies that are reused, 0 (all are forecast) to 1 (none is). Default 0.1.
        forecast_axis: "step" only.
    """

    sigma: float = option(real(0.0, 1.0), default=0.71)
    cutoff: float = option(real(0.0, 1.0), default=0.1)

    def strify(self) -> str:
        """For example `FreqCaO2S0.71C0.1`."""
        return f"FreqCaO{self.order}S{self.sigma:g}C{self.cutoff:g}"

    def describe(self) -> str:
        """The forecaster in words."""
        return f"FreqCa of order {self.order} (cutoff {self.cutoff:g}) on {self.calibrator_cache_type}"

    def method(self) -> FreqCa:
        """The forecaster that this configuration is about."""
        return FreqCa(self.order, self.sigma, self.cutoff)
