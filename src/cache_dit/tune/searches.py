"""Which steps are worth computing: the searches that `observe` knows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from cache_dit.caching.config import CacheConfig, CalibratorConfig, Place
from cache_dit.caching.gates.scheduled import ScheduleConfig
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.options import whole
from cache_dit.tune.paths import bottleneck_path, cheapest_path
from cache_dit.tune.recording import Recording

Rerun = Callable[[CacheConfig, CalibratorConfig], Tensor]
"""Repeats the recorded call with caching, and returns the final latent, [N] in float32 on the CPU."""


class Search(ABC):
    """A way to choose the computed steps: looks at every recorded run once, and then chooses."""

    name: ClassVar[str]

    @abstractmethod
    def look(self, recording: Recording, rerun: Rerun) -> Any:
        """What the choice needs to know of one run."""

    @abstractmethod
    def choose(self, seen: Sequence[Any], total: int, count: int) -> tuple[int, ...] | None:
        """`count` of `total` steps, from what was seen of all runs; None where the limits leave no choice."""

    def fewest(self, total: int) -> int:
        """The least number of `total` steps that a schedule within the limits computes, whatever is seen."""
        return 1


@dataclass(frozen=True, kw_only=True)
class LeMiCa(Search):
    """Try every single gap and avoid the worst (LeMiCa, arXiv 2511.00090).

    What a gap costs is measured with the cache on: all steps are computed but those in the gap, and the final
    latent is compared with the uncached one (mean L1, averaged over the runs). Of all schedules the one is
    taken whose worst gap is the least bad, then the next worst. That is dear: about
    `num_inference_steps * (longest_gap - 1)` whole runs for each prompt.

    Attributes:
        longest_gap: Largest distance between computed steps, in steps. Default 8.
        place: What a skipped step leaves out. Default `Place.MIDDLE`.
        calibrator: What a skipped segment is filled with; the default repeats the last change, as published.
    """

    name: ClassVar[str] = "LeMiCa"

    longest_gap: int = 8
    place: Place = Place.MIDDLE
    calibrator: CalibratorConfig = field(default_factory=CalibratorConfig)

    def __post_init__(self) -> None:
        whole(1)("longest_gap", self.longest_gap)

    def look(self, recording: Recording, rerun: Rerun) -> dict[tuple[int, int], float]:
        total = len(recording.outputs)

        def cost(start: int, stop: int) -> float:
            if stop == start + 1:
                return 0.0
            computed = (*range(start + 1), *range(stop, total))
            cache = ScheduleConfig(schedule=Schedule(total=total, computed=computed), place=self.place)
            return float((rerun(cache, self.calibrator) - recording.final).abs().mean())

        return {
            (start, stop): cost(start, stop)
            for start in range(total)
            for stop in range(start + 1, min(start + self.longest_gap, total) + 1)
        }

    def choose(
        self, seen: Sequence[dict[tuple[int, int], float]], total: int, count: int
    ) -> tuple[int, ...] | None:
        weights = {edge: sum(costs[edge] for costs in seen) / len(seen) for edge in seen[0]}
        return bottleneck_path(weights, total, count)

    def fewest(self, total: int) -> int:
        return math.ceil(total / self.longest_gap)


@dataclass(frozen=True, kw_only=True)
class DPCache(Search):
    """Choose the gaps over which outputs are forecast best (DPCache, arXiv 2602.22654).

    From the recorded run alone: a gap costs the sum, over its steps, of the mean L1 between the output and
    its linear forecast from the two computed steps before; the schedule with the smallest sum is found by
    dynamic programming. The paper forecasts the last block's feature; here it is the transformer's output.

    Attributes:
        warmup: First steps that are computed, 2 at least. Default 3, as published.
        longest_gap: Largest distance between computed steps, in steps. Default 12.
    """

    name: ClassVar[str] = "DPCache"

    warmup: int = 3
    longest_gap: int = 12

    def __post_init__(self) -> None:
        whole(2)("warmup", self.warmup)
        whole(1)("longest_gap", self.longest_gap)

    def look(self, recording: Recording, rerun: Rerun) -> Tensor:
        """[i, j, k]: the cost of the gap from j to k where i was computed before j; k may be the end."""
        values = recording.outputs
        total = len(values)
        costs = torch.zeros(total, total, total + 1)
        for node in range(1, total):
            ahead = values[node + 1 : node + self.longest_gap]
            elapsed = torch.arange(1, len(ahead) + 1)[:, None]
            for before in range(max(0, node - self.longest_gap), node):
                slope = (values[node] - values[before]) / (node - before)
                errors = (values[node] + elapsed * slope - ahead).abs().mean(1)
                costs[before, node, node + 2 : node + 2 + len(ahead)] = errors.cumsum(0)
        return costs

    def choose(self, seen: Sequence[Tensor], total: int, count: int) -> tuple[int, ...] | None:
        costs = torch.stack(list(seen)).mean(0).tolist()
        start = tuple(range(min(self.warmup, count)))
        return cheapest_path(lambda i, j, k: costs[i][j][k], start, total, count, self.longest_gap)

    def fewest(self, total: int) -> int:
        def reached(count: int) -> int:
            begun = min(count, self.warmup)
            return begun - 1 + (count - begun + 1) * self.longest_gap

        return next(count for count in range(min(2, total), total + 1) if reached(count) >= total)
