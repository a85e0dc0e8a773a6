"""DMD: extrapolate a feature as a sum of growing, fading and turning exponentials."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.forecasters.history import Computed
from cache_dit.caching.forecasters.newton import Newton, extrapolate
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.modes import FEWEST_SNAPSHOTS, Modes, find_modes, forecast
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import option, options, real, whole

_Fitted = tuple[Computed, tuple[Modes, ...]]  # modes of each item, where the newest are evenly spaced


@dataclass(frozen=True, slots=True)
class DMD(Forecaster):
    """Dynamic mode decomposition of the newest evenly spaced values (engrXiv 10.31224/7309, HiCache++).

    With 4 or more of them each item of the batch is fitted by itself in float64, at each computed step; sums
    of exponentials are forecast exactly. With fewer, as after a change of the gap, it is the line. Unlike as
    published, growth is limited, and what the fit leaves out of the newest value is kept as it is.
    """

    snapshots: int = 6
    max_growth: float = 1.2

    @property
    def memory(self) -> int:
        return self.snapshots

    def init(self) -> _Fitted:
        return Computed((), ()), ()

    def observe(self, state: _Fitted, at: Moment, value: Tensor) -> _Fitted:
        computed = state[0].with_value(at.time, value, self.snapshots)
        return computed, find_modes(*computed, self.max_growth, at.reduce)

    def predict(self, state: _Fitted, at: Moment) -> Tensor:
        (times, values), modes = state
        if not modes:
            return extrapolate(times[:2], values[:2], at.time)
        return forecast(values, modes, (at.time - times[0]) / (times[0] - times[1]))

    def spare(self, state: _Fitted) -> Tensor | None:
        return state[0].oldest(self.snapshots)

    def within(self, memory: int) -> Forecaster | None:
        smaller = replace(self, snapshots=min(self.snapshots, memory))
        return smaller if memory >= FEWEST_SNAPSHOTS else Newton().within(memory)


@options
class DMDCalibratorConfig(CalibratorConfig):
    """Extrapolate with exponential modes of the last computed steps (DMD, engrXiv 10.31224/7309).

    Attributes:
        snapshots: Computed steps that are fitted, if evenly spaced: one tensor a stream each, and at each of
            them one wait for the device, which must know float64. From 4; default 6.
        max_growth: Most that a mode may grow by between computed steps; published: no limit. Default 1.2.
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
