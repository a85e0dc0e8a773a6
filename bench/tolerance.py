"""What a tolerance means: the same one at 28 and 50 steps, without guidance and with, beside other gates.

python bench/tolerance.py    # about half an hour on a quiet machine; prints a table

Twelve training pictures, none of which is reported elsewhere. A schedule or a tolerance by sample is drawn
in one batch, DBCache one by one, since it decides over a batch as one.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor

import cache_dit
from cache_dit.bench import Cell, Purpose
from cache_dit.bench.pictures import Picture, draw
from cache_dit.caching.catalogue import (
    BudgetConfig,
    CalibratorConfig,
    DBCacheConfig,
    TaylorSeerCalibratorConfig,
    ToleranceConfig,
    TrajectoryCalibratorConfig,
)
from cache_dit.caching.config import CacheConfig
from cache_dit.demo import load_pipeline
from cache_dit.metrics.image import psnr

ESTIMATE, TAYLOR = TrajectoryCalibratorConfig(), TaylorSeerCalibratorConfig()
Setting = tuple[str, CacheConfig, CalibratorConfig]


def settings() -> list[Setting]:
    """What is compared, in order: schedules, tolerances, thresholds."""
    made: list[Setting] = [
        (f"budget {share:g}, estimate", BudgetConfig(compute=share), ESTIMATE) for share in (0.5, 0.4, 0.3)
    ]
    for name, calibrator in (("estimate", ESTIMATE), ("Taylor 1", TAYLOR)):
        for tolerance in (0.02, 0.05, 0.1):
            config = ToleranceConfig(tolerance=tolerance, per_sample=True)
            made.append((f"tolerance {tolerance:g}, {name}", config, calibrator))
    for name, calibrator in (("estimate", ESTIMATE), ("Taylor 1", TAYLOR)):
        for threshold in (0.1, 0.2):
            config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=threshold)
            made.append((f"DBCache {threshold:g}, {name}", config, calibrator))
    return made


def measured(
    pipe: Any, cell: Cell, pictures: tuple[Picture, ...], uncached: Tensor, setting: Setting
) -> tuple[float, list[float]]:
    """FLOPs as a fraction of those of the uncached runs, and the PSNR of every picture in dB, rising."""
    _, config, calibrator = setting
    together = isinstance(config, BudgetConfig) or config.per_sample
    drawn, computed = [], []
    cache_dit.enable_cache(pipe, config, calibrator)
    for batch in [pictures] if together else [(picture,) for picture in pictures]:
        drawn.append(draw(pipe, batch, cell))
        (stats,) = cache_dit.summary(pipe, logging=False)
        assert stats.flops_saved is not None  # the demo model's can be counted
        computed.append(1.0 - stats.flops_saved)
    cache_dit.disable_cache(pipe)
    scores = [psnr(*both, data_range=1.0) for both in zip(torch.cat(drawn), uncached, strict=True)]
    return statistics.fmean(computed), sorted(map(float, scores))


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[28, 50])
    parser.add_argument("--cfg", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--only", default="", help="settings whose name begins with this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe, pictures = load_pipeline(), Purpose.TRAINING.pictures[: given.pictures]
    print("| steps | CFG | setting | FLOPs | PSNR mean | p10 | worst |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for steps in given.steps:
        for cfg in given.cfg:
            cell = Cell(steps, cfg)
            uncached = draw(pipe, pictures, cell)
            for setting in [one for one in settings() if one[0].startswith(given.only)]:
                compute, scores = measured(pipe, cell, pictures, uncached, setting)
                low = scores[round(0.1 * (len(scores) - 1))]
                print(
                    f"| {steps} | {cfg:g} | {setting[0]} | {compute:.3f} | {statistics.fmean(scores):.1f} | "
                    f"{low:.1f} | {scores[0]:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
