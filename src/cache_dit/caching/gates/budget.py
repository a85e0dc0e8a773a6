"""A share of the steps, dense at the beginning and with growing gaps."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from cache_dit.caching.config import CacheConfig, Place
from cache_dit.caching.maths.gate import Gate, Reason, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import instance_of, option, options, real
from cache_dit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BudgetGate(Gate):
    """Compute the steps of `spread`; all of them where the length of the run is not known."""

    compute: float
    power: float

    def decide(self, state: Any, at: Moment, change: float | None) -> Verdict:
        skip = at.total is not None and at.step not in spread(at.total, self.compute, self.power)
        return Verdict(skip, Reason.SCHEDULE)


@options
class BudgetConfig(CacheConfig):
    """Compute a given share of the steps (this project).

    Errors of the first steps are carried on by all others, and the last steps change little: so the k
    computed steps of S are `ceil((S - 2) (j / (k - 1))**power)`, `j = 0..k-1`, each at least one behind the
    one before. The very last step is not computed: the latent is known well by then. The exponent was chosen
    on the demo model, on other prompts than the benchmarks report.

    Attributes:
        place: Default `Place.OUTPUT`.
        compute: Share of the steps to compute, above 0 and up to 1. Default 0.5.
        power: How fast gaps grow; 1 is even. Default 1.8.
    """

    method: ClassVar[str] = "Budget"

    place: Place = option(instance_of(Place), default=Place.OUTPUT)
    compute: float = option(real(0.0, 1.0), default=0.5)
    power: float = option(real(1.0), default=1.8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compute == 0.0:
            raise ConfigError("compute is 0; give the share of the steps to compute, above 0 and up to 1.")

    def gate(self) -> BudgetGate:
        """The rule of this method, for steps that no limit decides."""
        return BudgetGate(self.compute, self.power)

    def label(self) -> str:
        """`C` and the share."""
        return f"C{self.compute:g}"


@functools.lru_cache(maxsize=64)
def spread(total: int, compute: float, power: float) -> frozenset[int]:
    """The computed steps of a run of `total` steps; at least two."""
    count = min(total, max(2, round(total * compute)))
    steps = [0]
    for place in range(1, count):
        wanted = math.ceil((total - 2) * (place / (count - 1)) ** power)
        steps.append(max(steps[-1] + 1, wanted))
    return frozenset(steps)
