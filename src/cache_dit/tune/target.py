"""What a user asks for: so near, so fast or so cheap; and what a picture or a set of them scores."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from cache_dit.errors import ConfigError
from cache_dit.metrics import interval_of_mean

_SPEED = re.compile(r"(\d+\.?\d*|\.\d+)\s*x")
_BOUND = re.compile(r"([a-z]+)\s*(>=|<=|)\s*(\d+\.?\d*(?:e-?\d+)?|\.\d+)")
_FORMS = '"2x", "psnr>=45", "ssim>=0.98", "tolerance 0.02", "flops<=0.4" or "time<=0.5"'


class Measure(Enum):
    """What is measured of a picture; the value is its name in targets and profiles.

    Attributes:
        PSNR: Peak signal-to-noise ratio to the uncached picture, in dB; 120 at most, which equal ones get.
        SSIM: Structural similarity to the uncached picture.
        TOLERANCE: Root mean square difference to the uncached picture, whose values are from 0 to 1.
        FLOPS: FLOPs of the transformers as a fraction of those of the uncached run.
        TIME: Seconds as a fraction of those of the uncached run.
    """

    PSNR = "psnr"
    SSIM = "ssim"
    TOLERANCE = "tolerance"
    FLOPS = "flops"
    TIME = "time"

    @property
    def is_cost(self) -> bool:
        """Whether it tells what a run costs, and not how near it comes."""
        return self in (Measure.FLOPS, Measure.TIME)

    @property
    def rises(self) -> bool:
        """Whether more is better."""
        return self in (Measure.PSNR, Measure.SSIM)


Score = Mapping[Measure, float]
"""What one picture has scored; what cannot be measured of it is left out."""


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that the mean over pictures has to keep.

    Attributes:
        measure: What is bounded: from below where more is better, else from above.
        bound: In the units of the measure.
    """

    measure: Measure
    bound: float

    def __post_init__(self) -> None:
        most = 1.0 if self.measure in (Measure.SSIM, Measure.FLOPS) else float("inf")
        if not 0 < self.bound <= most:
            raise ConfigError(
                f"the target {self} cannot be; give a bound above 0"
                + (f" and up to {most:g}." if most < float("inf") else ".")
            )

    @classmethod
    def parse(cls, text: str, speed: Measure | None = None) -> Target:
        """Read a target as users write it.

        Args:
            text: "2.5x" (that many times as fast), "psnr>=45", "ssim>=0.98", "tolerance 0.02", "flops<=0.4"
                or "time<=0.5".
            speed: What a speed is measured by, `FLOPS` or `TIME`.

        Raises:
            ConfigError: The text is none of these.
        """
        wanted = text.strip().lower()
        if found := _SPEED.fullmatch(wanted):
            times = float(found[1])
            if times < 1:
                raise ConfigError(f"the target is {text!r}; give a speed of at least 1x, such as 2x.")
            return cls(speed or Measure.FLOPS, 1.0 / times)
        found = _BOUND.fullmatch(wanted)
        names = [measure.value for measure in Measure]
        if not found or found[1] not in names:
            raise ConfigError(f"the target is {text!r}; give {_FORMS}.")
        measure = Measure(found[1])
        if found[2] and (found[2] == ">=") != measure.rises:
            better = "more" if measure.rises else "less"
            raise ConfigError(
                f"the target is {text!r}, but {better} {measure.value} is better; give {_FORMS}."
            )
        return cls(measure, float(found[3]))

    def __str__(self) -> str:
        return f"{self.measure.value}{'>=' if self.measure.rises else '<='}{self.bound:.4g}"

    def slack(self, value: float) -> float:
        """By how much a value keeps the bound; negative where it does not."""
        return value - self.bound if self.measure.rises else self.bound - value

    @property
    def band(self) -> float:
        """A slack beyond which a bound is kept by more than is of use."""
        return 0.5 * (1.0 - self.bound) if self.measure is Measure.SSIM else 0.1 * self.bound

    def met(self, value: float) -> bool:
        """Whether a value keeps the bound, but for rounding to the six digits of a figure."""
        return self.slack(value) >= -1e-6 * self.bound


def is_speed(text: str) -> bool:
    """Whether a target is a speed, such as "2x", which leaves open what it is measured by."""
    return _SPEED.fullmatch(text.strip().lower()) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A measure over several pictures, to six digits.

    Attributes:
        mean: Over the pictures.
        low: Lower end of the 95 % interval of the mean, by bootstrap over the pictures.
        high: Upper end.
        worst: Of the pictures.
        pictures: How many there are.
    """

    mean: float
    low: float
    high: float
    worst: float
    pictures: int

    @classmethod
    def of(cls, measure: Measure, values: Sequence[float]) -> Figure:
        """The figure of one value for each picture."""
        low, high = interval_of_mean(values)
        worst = min(values) if measure.rises else max(values)
        mean, low, high, worst = (
            float(f"{value:.6g}") for value in (statistics.fmean(values), low, high, worst)
        )
        return cls(mean=mean, low=low, high=high, worst=worst, pictures=len(values))


def figures_of(scores: Iterable[Score]) -> dict[Measure, Figure]:
    """The figures of the measures that every picture has."""
    rows = list(scores)
    return {
        measure: Figure.of(measure, [row[measure] for row in rows])
        for measure in Measure
        if all(measure in row for row in rows)
    }
