"""Rows over many pictures, and the best row of every system at each budget of FLOPs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cache_dit.bench.measure import Score
from cache_dit.bench.pictures import Cell, Purpose
from cache_dit.bench.store import Scores, Setting
from cache_dit.metrics import interval_of_mean

# Fractions of the FLOPs of the uncached run.
BUDGETS = {"1/2": 1 / 2, "1/2.5": 1 / 2.5, "1/3": 1 / 3, "1/4": 1 / 4}
# One more budget, for the upper end of the curves.
_GENEROUS = 0.6
# A row may cost so much more: step counts are whole numbers, and budgets are not.
SLACK = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A setting over its pictures.

    Attributes:
        setting: What was measured.
        pictures: How many.
        flops: Mean of the fractions of FLOPs.
        time: Median of the ratios of seconds.
        psnr: Mean, in decibels.
        psnr_low: Lower end of the 95 % interval of the mean.
        psnr_high: Upper end.
        psnr_p10: 10th percentile over pictures.
        psnr_worst: The worst picture.
        ssim: Mean.
        ssim_p10: 10th percentile.
        ssim_worst: The worst picture.
    """

    setting: Setting
    pictures: int
    flops: float
    time: float
    psnr: float
    psnr_low: float
    psnr_high: float
    psnr_p10: float
    psnr_worst: float
    ssim: float
    ssim_p10: float
    ssim_worst: float

    @classmethod
    def of(cls, setting: Setting, scores: Sequence[Score]) -> Row:
        """The row of at least one score."""
        psnrs, ssims = [score.psnr for score in scores], [score.ssim for score in scores]
        low, high = _interval(setting.purpose, scores)
        times = [score.time for score in scores if not math.isnan(score.time)]
        flops = [score.flops for score in scores if not math.isnan(score.flops)]
        return cls(
            setting=setting,
            pictures=len(scores),
            flops=statistics.fmean(flops) if flops else math.nan,
            time=statistics.median(times) if times else math.nan,
            psnr=statistics.fmean(psnrs),
            psnr_low=low,
            psnr_high=high,
            psnr_p10=_tenth(psnrs),
            psnr_worst=min(psnrs),
            ssim=statistics.fmean(ssims),
            ssim_p10=_tenth(ssims),
            ssim_worst=min(ssims),
        )


def rows_of(scores: Scores, purpose: Purpose) -> list[Row]:
    """One row for each setting of one set of pictures, in the order of the files."""
    return [
        Row.of(setting, list(of_seed.values()))
        for setting, of_seed in scores.items()
        if setting.purpose is purpose
    ]


def cells_of(rows: Iterable[Row]) -> list[Cell]:
    """All cells that occur, fewest steps and least guidance first."""
    return sorted({row.setting.cell for row in rows}, key=lambda cell: (cell.steps, cell.cfg))


def front(rows: Iterable[Row]) -> list[Row]:
    """The rows that no other beats in both FLOPs and mean PSNR, fewest FLOPs first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.flops, -row.psnr)):
        if not best or row.psnr > best[-1].psnr:
            best.append(row)
    return best


def curves(rows: Iterable[Row]) -> dict[tuple[Cell, str], list[Row]]:
    """The rows of every system in every cell."""
    found: dict[tuple[Cell, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.setting.cell, row.setting.system), []).append(row)
    return found


def contenders(training: Iterable[Row]) -> dict[tuple[Cell, str], list[Row]]:
    """Of every system in every cell, the rows that are the best at some budget, or else the cheapest row."""
    kept = {}
    for curve, rows in curves(training).items():
        best = [row for budget in (*BUDGETS.values(), _GENEROUS) for row in best_at(budget, rows, rows)]
        kept[curve] = best or [min(rows, key=lambda row: row.flops)]
    return kept


def best_at(budget: float, training: Sequence[Row], report: Sequence[Row]) -> list[Row]:
    """The row of every system and cell that a user with this budget would take, best first.

    The rows that are within the budget compete by their PSNR on the training pictures; what is returned is
    the winner's row on the report pictures, so that nothing is chosen by the numbers that it is shown with.

    Args:
        budget: Fraction of the FLOPs of the uncached run.
        training: Rows on the training pictures. Settings without one do not compete.
        report: Rows on the report pictures.
    """
    tuned = {row.setting.point: row.psnr for row in training}
    best: dict[tuple[Cell, str], Row] = {}
    for row in report:
        if row.flops <= budget + SLACK + 1e-9 and row.setting.point in tuned:
            curve = (row.setting.cell, row.setting.system)
            held = best.get(curve)
            if held is None or tuned[row.setting.point] > tuned[held.setting.point]:
                best[curve] = row
    return sorted(best.values(), key=lambda row: -row.psnr)


def _tenth(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=10, method="inclusive")[0] if len(values) > 1 else values[0]


def _interval(purpose: Purpose, scores: Sequence[Score]) -> tuple[float, float]:
    """95 % of the means of resampled prompts: pictures of one prompt are not independent of each other."""
    prompts = {picture.seed: picture.prompt for picture in purpose.pictures}
    return interval_of_mean([score.psnr for score in scores], [prompts[score.seed] for score in scores])
