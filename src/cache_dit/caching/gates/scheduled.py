"""A fixed list of computed steps that calibration has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from cache_dit.caching.config import CacheConfig
from cache_dit.caching.maths.gate import Gate, Reason, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.options import instance_of, option, optional, options
from cache_dit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScheduledGate(Gate):
    """Compute the steps of a schedule, stretched to the length of the run where that is known and another."""

    schedule: Schedule

    def decide(self, state: Any, at: Moment, change: float | None) -> Verdict:
        mask = self.schedule.mask(at.total)
        return Verdict(at.step < len(mask) and not mask[at.step], Reason.SCHEDULE)


@options
class ScheduleConfig(CacheConfig):
    """Compute the steps that calibration has chosen, and no others.

    In the spirit of LeMiCa (arXiv 2511.00090) and DPCache (arXiv 2602.22654): the search is done once, by
    `cache_dit.tune.observe`, and a run follows the list.

    Attributes:
        schedule: Required: the computed steps. At another number of steps it is stretched; where the length
            of the run is unknown it is taken literally, and steps behind its end are computed.
    """

    method: ClassVar[str] = "Schedule"

    schedule: Schedule | None = option(optional(instance_of(Schedule)), default=None)

    def gate(self) -> ScheduledGate:
        """The rule of this method, for steps that no limit decides."""
        # Not asked for by the constructor, so that `reset` can name other fields alone.
        if self.schedule is None:
            raise ConfigError("schedule is missing; give one, see cache_dit.tune.observe.")
        return ScheduledGate(self.schedule)

    def label(self) -> str:
        """`S`, the number of computed steps and of all."""
        schedule = self.gate().schedule
        return f"S{len(schedule.computed)}of{schedule.total}"
