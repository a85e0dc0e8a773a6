"""The tables of a benchmark: quality, latency and FLOPs of every setting, in the published form."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache_dit.bench.drawbench import Variant
from cache_dit.bench.drawing import Job
from cache_dit.bench.manifest import Drawn
from cache_dit.bench.quality import Quality
from cache_dit.caching.config import BasicCacheConfig, CalibratorConfig
from cache_dit.caching.forecasters.taylorseer import TaylorSeerCalibratorConfig

_TERA = 1e12
_LATENCY_AND_FLOPS = ("Latency(s)", "SpeedUp(↑)", "TFLOPs", "SpeedUp(↑)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting over all pictures.

    Attributes:
        variant: The setting.
        seconds: Median over the pictures.
        tflops: Of the transformers over a whole run, mean over the pictures; None where not counted.
        cached: Mean number of skipped steps of a branch.
        steps: Mean number of steps of a branch; 0 without cache.
        qualities: The metrics; None: what the others are compared with.
    """

    variant: Variant
    seconds: float
    tflops: float | None
    cached: float
    steps: float
    qualities: Mapping[Quality, float | None]

    @classmethod
    def of(cls, variant: Variant, lines: Sequence[Drawn], qualities: Mapping[Quality, float | None]) -> Row:
        """The row of at least one picture."""
        flops = [line.flops for line in lines if line.flops is not None]
        return cls(
            variant=variant,
            seconds=statistics.median(line.seconds for line in lines),
            tflops=statistics.fmean(flops) / _TERA if len(flops) == len(lines) else None,
            cached=_mean([count for line in lines for count in line.cached]),
            steps=_mean([count for line in lines for count in line.steps]),
            qualities=qualities,
        )

    def as_data(self) -> dict[str, Any]:
        """Plain values, for JSON; infinite ones as None."""
        values = {quality.value: self.qualities[quality] for quality in self.qualities}
        return {
            "config": self.variant.name,
            "seconds": self.seconds,
            "tflops": self.tflops,
            "cached_steps": self.cached,
            **{name: None if value is None or math.isinf(value) else value for name, value in values.items()},
        }


def markdown(job: Job, rows: Sequence[Row]) -> str:
    """A section for each metric, with a table for each group of settings.

    Args:
        job: What was drawn.
        rows: The uncached row first.
    """
    base, *others = rows
    parts = []
    for quality in base.qualities:
        parts.append(f"### {quality.title} ({'↑' if quality.rising else '↓'})")
        for heading, group in _groups(others).items():
            parts += [f"- {heading}", _table(job, quality, base, _sorted(quality, group))]
    return "\n\n".join(parts) + "\n"


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The settings of one table, by its heading: DBCache plain, with forecasts, and other methods."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(_heading(row.variant), []).append(row)
    return {heading: groups[place, heading] for place, heading in sorted(groups)}


def _heading(variant: Variant) -> tuple[int, str]:
    """Place and heading of the table that a setting belongs to."""
    preset = variant.preset
    if preset is None or not isinstance(preset.cache_config, BasicCacheConfig):
        return 3, "other methods"
    method, calibrator = preset.cache_config.method, preset.calibrator_config
    if type(calibrator) is CalibratorConfig:
        return 0, f"{method} w/ configurable FnBn compute blocks"
    if isinstance(calibrator, TaylorSeerCalibratorConfig):
        return 1, f"w/ TaylorSeer ({method}_TaylorSeer)"
    return 2, f"{method} w/ other calibrators"


def _sorted(quality: Quality, rows: Sequence[Row]) -> list[Row]:
    def key(row: Row) -> float:
        value = row.qualities[quality]
        assert value is not None  # only the uncached row has none
        return -value if quality.rising else value

    return sorted(rows, key=key)


def _table(job: Job, quality: Quality, base: Row, rows: Sequence[Row]) -> str:
    head = ("Config", quality.column, *_LATENCY_AND_FLOPS)
    first = (f"Base: {job.model}, {job.steps} steps", *_cells(quality, base, base))
    lines = [first, *((row.variant.name, *_cells(quality, row, base)) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _cells(quality: Quality, row: Row, base: Row) -> tuple[str, ...]:
    value = row.qualities[quality]
    return (
        "INF" if value is None or math.isinf(value) else f"{value:.4f}",
        f"{row.seconds:.2f}",
        f"{base.seconds / row.seconds:.2f}",
        "-" if row.tflops is None else _tera(row.tflops),
        "-" if row.tflops is None or base.tflops is None else f"{base.tflops / row.tflops:.2f}",
    )


def _tera(value: float) -> str:
    """Two digits behind the point, as in the published tables; four that count for small models."""
    return f"{value:.2f}" if value >= 10 else f"{value:#.4g}"


def _mean(values: Sequence[int]) -> float:
    return statistics.fmean(values) if values else 0.0
