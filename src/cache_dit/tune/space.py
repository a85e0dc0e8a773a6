"""What is searched: methods, each with one strength from mild to strong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cache_dit import presets
from cache_dit.caching.config import CalibratorConfig, DBCacheConfig
from cache_dit.caching.forecasters.taylorseer import TaylorSeerCalibratorConfig
from cache_dit.caching.forecasters.trajectory import TrajectoryCalibratorConfig
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.caching.options import real
from cache_dit.errors import ConfigError
from cache_dit.presets import Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A method at all its strengths, of which a stronger one costs less and is further off.

    Attributes:
        name: As results print it.
        make: The preset of a strength.
        mild: Strength at which the method is nearest to the uncached pictures, above 0.
        strong: Strength at which it is cheapest, above 0; smaller than `mild` where less is stronger.
        whole: Strengths are whole numbers. Default False.
    """

    name: str
    make: Callable[[Any], Preset]
    mild: float
    strong: float
    whole: bool = False

    def __post_init__(self) -> None:
        for name in ("mild", "strong"):
            real(0.0)(name, getattr(self, name))
        if not self.mild * self.strong or self.mild == self.strong:
            raise ConfigError(
                f"the family {self.name!r} goes from mild={self.mild} to strong={self.strong}; give two that "
                "differ, both above 0."
            )

    def strength(self, place: float) -> float:
        """From `mild` at 0 to `strong` at 1 by equal ratios, to three digits."""
        value = self.mild * (self.strong / self.mild) ** place
        return round(value) if self.whole else float(f"{value:.3g}")

    def place(self, strength: float) -> float:
        """Where a strength is between `mild` and `strong`: the inverse of `strength`, but for rounding."""
        return math.log(strength / self.mild) / math.log(self.strong / self.mild)

    def preset(self, strength: float) -> Preset:
        """The method at a strength."""
        return self.make(round(strength) if self.whole else strength)


def default_space(measured: Trajectory | None = None) -> tuple[Family, ...]:
    """Methods of different kinds, led by the estimate, which was best at equal FLOPs (docs/choose.md).

    Args:
        measured: What `calibrate` has found of the model; the estimate is then also tried with that. None
            (default): nothing was measured.

    Returns:
        Seven families, eight with `measured`.
    """
    estimate, line = TrajectoryCalibratorConfig(), TaylorSeerCalibratorConfig(taylorseer_order=1)
    known = partial(presets.trajectory, measured=measured)
    own = (Family(name="trajectory, measured", make=known, mild=0.8, strong=0.15),) if measured else ()
    return (
        *own,
        Family(name="trajectory", make=presets.trajectory, mild=0.8, strong=0.15),
        Family(name="DBCache, estimate", make=partial(_threshold, estimate), mild=0.03, strong=0.5),
        Family(name="tolerance, estimate", make=presets.tolerance, mild=0.003, strong=0.3),
        Family(name="DBCache, Taylor", make=partial(_threshold, line), mild=0.03, strong=0.5),
        Family(name="spectrum", make=presets.spectrum, mild=0.1, strong=3.0),
        Family(name="foca", make=presets.foca, mild=2, strong=8, whole=True),
        Family(name="taylorseer", make=partial(presets.taylorseer, order=1), mild=2, strong=8, whole=True),
    )


def _threshold(calibrator: CalibratorConfig, threshold: float) -> Preset:
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=4,
        max_continuous_cached_steps=8,
        residual_diff_threshold=threshold,
    )
    return Preset(config, calibrator)
