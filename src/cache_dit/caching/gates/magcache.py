"""MagCache: skip while a table of the residual's growth says that little has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cache_dit.caching.config import CacheConfig
from cache_dit.caching.maths.gate import Gate, Reason, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import option, options, real, sequence_of, whole
from cache_dit.errors import ConfigError


class Magnitude(NamedTuple):
    """The residual's estimated size relative to the kept one, and the errors since the last computed step."""

    ratio: float = 1.0
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class MagCacheGate(Gate):
    """Skip while `sum |1 - product of ratios|` since the last computed step is at most the threshold."""

    ratios: Sequence[float]
    threshold: float
    retention: float

    def init(self) -> Magnitude:
        return Magnitude()

    def decide(self, state: Magnitude, at: Moment, change: float | None) -> Verdict:
        if at.step < int(self.retention * (at.total or len(self.ratios)) + 0.5):
            return Verdict(False, Reason.WARMUP)
        similar = self._after(state, at).error <= self.threshold
        return Verdict(similar, Reason.SIMILAR if similar else Reason.ACCUMULATED_LIMIT)

    def advance(self, state: Magnitude, at: Moment, verdict: Verdict, signal: object) -> Magnitude:
        return self._after(state, at) if verdict.skip else Magnitude()

    def _after(self, state: Magnitude, at: Moment) -> Magnitude:
        end = len(self.ratios) - 1
        index = at.step if at.total is None else round(at.step * end / max(at.total - 1, 1))
        ratio = state.ratio * self.ratios[min(index, end)]
        return Magnitude(ratio, state.error + abs(1.0 - ratio))


@options
class MagCacheConfig(CacheConfig):
    """Skip by how much the residual grows from step to step, measured once (MagCache, arXiv 2506.09045).

    Runs of another length take the nearest entry, as published. All branches of guidance share the table.

    Attributes:
        ratios: For each step, the mean over tokens of the L2 norm of the residual over that of the step
            before, 1 for the first: `cache_dit.tune.magcache_ratios` measures them. There is no default.
        threshold: Largest sum of errors over skipped steps in a row. Default 0.06.
        retention: First part of the run that is computed, from 0 to 1. Default 0.2.
        max_continuous_cached_steps: Most skipped steps in a row (K); -1: no limit. Default 3.
    """

    method: ClassVar[str] = "MagCache"

    ratios: Sequence[float] = option(sequence_of(real(0.0)), default=())
    threshold: float = option(real(0.0), default=0.06)
    retention: float = option(real(0.0, 1.0), default=0.2)
    max_continuous_cached_steps: int = option(whole(1, unlimited=True), default=3)

    def gate(self) -> MagCacheGate:
        # Not asked for by the constructor, so that `reset` can name other fields alone.
        if not self.ratios:
            raise ConfigError("ratios is empty; give those that cache_dit.tune.magcache_ratios measures.")
        return MagCacheGate(self.ratios, self.threshold, self.retention)

    def label(self) -> str:
        return f"MAG{self.threshold:g}"
