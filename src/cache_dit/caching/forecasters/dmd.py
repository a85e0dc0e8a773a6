"""DMD: extrapolate a feature as a sum of growing, fading and turning exponentials."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.forecasters.history import Computed
from cache_dit.caching.forecasters.newton import Newton, neville
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.modes import FEWEST_SNAPSHOTS, Modes, find_modes, forecast
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import option, options, real, whole


class Fitted(NamedTuple):
    """The computed values, and the modes of each item of the batch if the newest are evenly spaced."""

    computed: Computed
    modes: tuple[Modes, ...]


@dataclass(frozen=True, slots=True)
class DMD(Forecaster):
    """Dynamic mode decomposition of the newest evenly spaced values (engrXiv 10.31224/7309, HiCache++).

    With 4 or more of them, each item of the batch is fitted by itself in float64, once for each computed
    step, which waits for the device once; sums of exponentials are forecast exactly. With fewer, as after a
    change of the gap, the forecast is the line. Unlike the published form, modes that grow are limited, and
    what the fit leaves out of the newest value is kept as it is.
    """

    snapshots: int = 6
    max_growth: float = 1.2

    @property
    def memory(self) -> int:
        return self.snapshots

    def init(self) -> Fitted:
        return Fitted(Computed((), ()), ())

    def observe(self, state: Fitted, at: Moment, value: Tensor) -> Fitted:
        computed = state.computed.with_value(at.time, value, self.snapshots)
        return Fitted(computed, find_modes(*computed, self.max_growth))

    def predict(self, state: Fitted, at: Moment) -> Tensor:
        times, values = state.computed
        if not state.modes:
            return neville(times[:2], values[:2], at.time)
        return forecast(values, state.modes, (at.time - times[0]) / (times[0] - times[1]))

    def spare(self, state: Fitted) -> Tensor | None:
        return state.computed.oldest(self.snapshots)

    def within(self, memory: int) -> Forecaster | None:
        if memory < FEWEST_SNAPSHOTS:
            return Newton().within(memory)
        return replace(self, snapshots=min(self.snapshots, memory))


@options
class DMDCalibratorConfig(CalibratorConfig):
    """Extrapolate with exponential modes of the last computed steps (DMD, engrXiv 10.31224/7309).

    For schedules with even gaps, on a device with float64; each computed step waits for it once a stream.

    Attributes:
        snapshots: Computed steps that are fitted, one tensor a stream each, from 4. Default 6.
        max_growth: Most that a mode may grow by from one computed step to the next; 1: none grows. The
            published form has no limit. Default 1.2.
    """

    snapshots: int = option(whole(FEWEST_SNAPSHOTS), default=6)
    max_growth: float = option(real(1.0), default=1.2)

    def strify(self) -> str:
        """For example `DMD6G1.2`."""
        return f"DMD{self.snapshots}G{self.max_growth:g}"

    def describe(self) -> str:
        """The forecaster in words."""
        return f"DMD over {self.snapshots} steps on {self.calibrator_cache_type}"

    def method(self) -> DMD:
        """The forecaster that this configuration is about."""
        return DMD(self.snapshots, self.max_growth)
