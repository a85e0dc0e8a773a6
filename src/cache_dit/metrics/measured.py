"""What a metric returns: the mean, the number of items, and what stands behind both."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch

from cache_dit.errors import ConfigError
from cache_dit.files import write_whole

_RESAMPLED = 2000
# Indices drawn at once: what bounds the memory of many items.
_DRAWN = 1_000_000


class Measured(tuple[float, int]):
    """A metric over some items: `value, n = compute_psnr(...)`.

    Attributes:
        value: Mean over the items; for metrics of whole sets, such as FID, the metric.
        n: How many items.
        scores: The value of every item by its name; empty for metrics of whole sets.
        interval: 95 % interval of the mean, lower and upper end, by `interval_of_mean`; both `nan` where
            there is none.
    """

    scores: Mapping[str, float]
    interval: tuple[float, float]

    @classmethod
    def mean(cls, scores: Mapping[str, float]) -> Self:
        """The mean of at least one score."""
        values = list(scores.values())
        return cls._of(statistics.fmean(values), len(values), scores, interval_of_mean(values))

    @classmethod
    def whole(cls, value: float, n: int) -> Self:
        """A value of a whole set of n items."""
        return cls._of(value, n, {}, (math.nan, math.nan))

    @classmethod
    def _of(cls, value: float, n: int, scores: Mapping[str, float], interval: tuple[float, float]) -> Self:
        measured = cls((value, n))
        measured.scores, measured.interval = scores, interval
        return measured

    @property
    def value(self) -> float:
        """The mean, or the value of the whole set."""
        return self[0]

    @property
    def n(self) -> int:
        """How many items."""
        return self[1]


def interval_of_mean(
    values: Sequence[float], groups: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """95 % interval of a mean: the percentile bootstrap (Efron, Annals of Statistics 7(1), 1979).

    2,000 resamples with a fixed seed, so equal values give equal ends.

    Args:
        values: The values, one for each item.
        groups: What the items belong to, one for each. Items of one group, such as the pictures of one
            prompt, are not independent, so whole groups are drawn. None: every item is drawn for itself.

    Returns:
        Lower and upper end; both `nan` for less than two groups, and where a value is not finite.

    Raises:
        ConfigError: Not as many groups as values.
    """
    if groups is not None and len(groups) != len(values):
        raise ConfigError(f"there are {len(values)} values and {len(groups)} groups; give a group for each.")
    if not all(math.isfinite(value) for value in values):
        return math.nan, math.nan
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups or range(len(values)), values, strict=True):
        members.setdefault(group, []).append(value)
    if len(members) < 2:
        return math.nan, math.nan
    sums = torch.tensor([[sum(group), len(group)] for group in members.values()], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rows = max(1, _DRAWN // len(sums))
    counts = [min(rows, _RESAMPLED - start) for start in range(0, _RESAMPLED, rows)]
    totals = torch.cat(
        [sums[torch.randint(len(sums), (count, len(sums)), generator=generator)].sum(1) for count in counts]
    )
    means = totals[:, 0] / totals[:, 1]
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def write_scores(path: Path, measured: Mapping[str, Measured]) -> None:
    """Write the values of all items as CSV, a line for each item and a column for each metric.

    Args:
        path: The file. One that an earlier call wrote, with the same first metric, is replaced.
        measured: The metrics by name. Their items may differ: then some cells are empty. Metrics of whole
            sets have no items, and no column.

    Raises:
        ConfigError: None has items, or the file exists and is another one.
        OSError: The file cannot be written.
    """
    columns = {name: result.scores for name, result in measured.items() if result.scores}
    if not columns:
        raise ConfigError(
            f"{path} would be empty: {', '.join(measured)} has one value for the set, none for each item."
        )
    items = dict.fromkeys(item for scores in columns.values() for item in scores)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("item", *columns))
    for item in items:
        writer.writerow((item, *(scores.get(item, "") for scores in columns.values())))
    write_whole(path, text.getvalue(), mark=f"item,{next(iter(columns))}")
