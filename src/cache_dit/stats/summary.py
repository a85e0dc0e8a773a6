"""The statistics in words: the table that `cache_dit.summary` prints, and short forms for file names."""

from __future__ import annotations

from typing import Any

import torch

from cache_dit.api import attachments_of
from cache_dit.caching.config import CacheConfig, CalibratorConfig
from cache_dit.stats.findings import diagnose
from cache_dit.stats.stats import CacheStats, stats_of

_BARS = "▁▂▃▄▅▆▇█"
_POINTS = {"Min": 0.0, "P25": 0.25, "P50": 0.5, "P75": 0.75, "P95": 0.95, "Max": 1.0}


def summary(pipe_or_adapter: Any, details: bool = False, logging: bool = True) -> list[CacheStats]:
    """Tell what caching did in the last run, and below it what `diagnose` finds wrong or idle.

    Told is the last run under the transformer's configuration, and under each of the 8 latest that requests
    brought along.

    Args:
        pipe_or_adapter: What `enable_cache` was given, or the pipeline or transformer itself.
        details: Print every step: computed or cached, why, and the measured change; and the changes of every
            branch as a line of bars.
        logging: Print; False only returns the data.

    Returns:
        One entry for each transformer and configuration and, where block lists decide for themselves, for
        each list. Empty for a transformer that has not run since `enable_cache`.

    Raises:
        UnsupportedModelError: The object is no pipeline, transformer or adapter.
        ConfigError: Caching is not enabled on it.
    """
    attached = attachments_of(pipe_or_adapter)
    stats = [entry for one in attached for under in (one, *one.others) for entry in stats_of(under)]
    if logging:
        found = [f"Note: {finding}" for finding in diagnose(pipe_or_adapter, logging=False)]
        print("\n\n".join([*(_text(entry, details) for entry in stats), *found]))
    return stats


def strify(target: Any) -> str:
    """A configuration in short form, for file names and tables.

    Args:
        target: A config, the result of `summary`, one entry of it, or a cached pipeline, transformer or
            adapter.

    Returns:
        For example `F8B0_W8I1M0MC0_R0.08` for a config, `DBCache_F8B0_W8I1M0MC0_R0.08_T1O1_S14` with the
        number of cached steps for a run.

    Raises:
        UnsupportedModelError: The object is none of these.
        ConfigError: Caching is not enabled on it.
    """
    if isinstance(target, (CacheConfig, CalibratorConfig)):
        return target.strify()
    if isinstance(target, CacheStats):
        return f"{target.config}_S{len(target.cached_steps)}"
    if isinstance(target, (list, tuple)):
        return "+".join(strify(entry) for entry in target)
    return "+".join(attached.strify() for attached in attachments_of(target))


def _text(stats: CacheStats, details: bool) -> str:
    saved = "not counted" if stats.flops_saved is None else f"{stats.flops_saved:.1%}"
    asked = " (as requested)" if stats.requested else ""
    head = (
        f"{stats.model}: {' + '.join(stats.lists)}\n{strify(stats)}{asked}\n"
        f"FLOPs saved (estimated): {saved}; cache state: {stats.state_bytes / 2**20:.2f} MiB; "
        f"skipped steps are filled with {stats.forecaster}"
    )
    if stats.pruned is not None:
        head += "; {} of {} blocks pruned".format(*stats.pruned)
    runs: list[list[Any]] = [["Branch", "Steps", "Cached Steps", *(f"Diffs {name}" for name in _POINTS)]]
    for place, name in enumerate(stats.branches):
        counts = len(stats.of(place)), len(stats.skipped(place))
        runs.append([name or "first call", *counts, *_points(stats.changes(place))])
    tables = [runs, _details(stats)] if details else [runs]
    unnamed = 0 if any(stats.branches) else 1
    measured = any(step.verdict.change is not None for step in stats.steps)
    bars = [_sparklines(stats)] if details and measured else []
    return "\n\n".join([head, *(_table([row[unnamed:] for row in table]) for table in tables), *bars])


def _sparklines(stats: CacheStats) -> str:
    """The measured changes of every branch as bars, one a step, and below what was computed and skipped."""
    branches = [(name, stats.changes(at), stats.skipped(at)) for at, name in enumerate(stats.branches)]
    found = (change for _, changes, _ in branches for change in changes.values())
    top = max((change for change in found if change < float("inf")), default=0.0) or 1.0

    def bar(change: float | None) -> str:
        if change is None:
            return " "
        # What is infinite is as high as can be.
        return _BARS[int(change / top * 7.99)] if 0.0 <= change < top else _BARS[-1]

    scale = f"Diffs by step, {_BARS[-1]} is {top:.3f}"
    if stats.limit is not None:
        name, value, summed = stats.limit
        scale += f"; {name} {value:g}" + (" for their sum" if summed else f" is {bar(value)}")
    lines, steps = [f"{scale}; C computed, s skipped"], range(stats.total_steps)
    width = max(len(name or "first call") for name, *_ in branches) + 1 if any(stats.branches) else 0
    for name, changes, skipped in branches:
        head = f"{name or 'first call':<{width}}" if width else ""
        lines.append(head + "".join(bar(changes.get(step)) for step in steps))
        lines.append(" " * width + "".join("Cs"[step in skipped] for step in steps))
    return "\n".join(lines)


def _details(stats: CacheStats) -> list[list[Any]]:
    rows: list[list[Any]] = [["Branch", "Step", "Blocks", "Diff", "Why"]]
    for branch, step, _, verdict, *_ in stats.steps:
        change = "" if verdict.change is None else f"{verdict.change:.4f}"
        blocks = "cached" if verdict.skip else "computed"
        rows.append([branch or "first call", step, blocks, change, verdict.reason.value])
    return rows


def _points(changes: dict[int, float]) -> list[str]:
    if not changes:
        return ["-"] * len(_POINTS)
    points = torch.tensor(list(_POINTS.values()), dtype=torch.float64)
    values = torch.tensor(list(changes.values()), dtype=torch.float64)
    return [f"{value:.3f}" for value in values.quantile(points).tolist()]


def _table(rows: list[list[Any]]) -> str:
    """A markdown table with aligned columns, headed by the first row."""
    head, *body = (list(map(str, row)) for row in rows)
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return "\n".join(
        "| " + " | ".join(map(str.ljust, row, widths)) + " |"
        for row in [head, ["-" * width for width in widths], *body]
    )
