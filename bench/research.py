"""Questions of docs/research.md, answered by the demo model.

python bench/research.py tolerance      # about half an hour; prints a table
python bench/research.py order correction --steps 28 --pictures 8
python bench/research.py axis --shift 3 --pictures 8

Topics:

- tolerance: what one tolerance means at 28 and 50 steps, without guidance and with, beside other gates.
- axis: forecasts along the noise level in place of the step.
- order: a polynomial whose order is chosen on each computed step, by which one would have been nearest.
- correction: last blocks computed on every step, on what was forecast for the blocks before; and the line
  through the last two values joined with one fitted to all.

Training pictures, none of which is reported elsewhere. A schedule or a tolerance by sample is drawn in one
batch, DBCache one by one, since it decides over a batch as one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import cache_dit
from cache_dit.bench import Cell, Purpose
from cache_dit.bench.pictures import Picture, draw
from cache_dit.caching.catalogue import (
    BudgetConfig,
    CalibratorConfig,
    DBCacheConfig,
    FoCaCalibratorConfig,
    SpectrumCalibratorConfig,
    TaylorSeerCalibratorConfig,
    ToleranceConfig,
    TrajectoryCalibratorConfig,
)
from cache_dit.caching.config import CacheConfig, Place
from cache_dit.caching.forecasters.history import Computed
from cache_dit.caching.forecasters.newton import extrapolate
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import option, options, real
from cache_dit.demo import load_pipeline
from cache_dit.metrics.image import psnr

ESTIMATE, TAYLOR = TrajectoryCalibratorConfig(), TaylorSeerCalibratorConfig()
BLOCKS = 16
"""Blocks of the demo model, four of which have two streams; all cost about the same."""

Setting = tuple[str, CacheConfig, CalibratorConfig]


class Tried(NamedTuple):
    """Computed values, and how far off each order has been so far: a mean that forgets."""

    seen: Computed
    misses: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class BestOrder(Forecaster):
    """The polynomial of order 0, 1 or 2 that has been nearest on computed steps.

    `keep` is the part of the mean miss that stays when a new one comes; at 0 the latest alone decides.
    """

    keep: float
    memory: int = 3

    def init(self) -> Tried:
        return Tried(Computed((), ()), (None, None, None))

    def observe(self, state: Tried, at: Moment, value: Tensor) -> Tried:
        times, values = state.seen
        misses = list(state.misses)
        for order in range(min(3, len(values))):
            forecast = extrapolate(times[: order + 1], values[: order + 1], at.time)
            miss = float((forecast - value).abs().mean())
            before = misses[order]
            misses[order] = miss if before is None else self.keep * before + (1 - self.keep) * miss
        return Tried(state.seen.with_value(at.time, value, self.memory), tuple(misses))

    def predict(self, state: Tried, at: Moment) -> Tensor:
        times, values = state.seen
        known = {order: miss for order, miss in enumerate(state.misses) if miss is not None}
        order = min(known, key=known.__getitem__, default=min(1, len(values) - 1))
        return extrapolate(times[: order + 1], values[: order + 1], at.time)

    def within(self, memory: int) -> BestOrder | None:
        return self if memory >= self.memory else None


@options
class BestOrderConfig(CalibratorConfig):
    """`BestOrder`."""

    keep: float = option(real(0.0, 1.0), default=0.0)

    def method(self) -> BestOrder:
        return BestOrder(self.keep)


def tolerances() -> list[Setting]:
    """Schedules, tolerances, thresholds."""
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


def crossed(calibrators: dict[str, CalibratorConfig], places: tuple[Place, ...]) -> list[Setting]:
    """Forecasts at places, at two fixed schedules: the same computed steps for all."""
    return [
        (f"{place.name.lower()}, {share:g}: {name}", BudgetConfig(place=place, compute=share), calibrator)
        for place in places
        for share in (0.5, 0.36)
        for name, calibrator in calibrators.items()
    ]


def axes() -> list[Setting]:
    """Three forecasts along both axes."""
    kinds: dict[str, CalibratorConfig] = {
        "Taylor 1": TAYLOR,
        "Taylor 2": TaylorSeerCalibratorConfig(taylorseer_order=2),
        "FoCa": FoCaCalibratorConfig(),
    }
    along = {
        f"{name}, {axis}": replace(one, forecast_axis=axis)
        for name, one in kinds.items()
        for axis in ("step", "sigma")
    }
    return crossed(along, (Place.OUTPUT, Place.MIDDLE))


def orders() -> list[Setting]:
    """Orders that are fixed, and those chosen by the misses."""
    fixed: dict[str, CalibratorConfig] = {
        f"Taylor {order}": TaylorSeerCalibratorConfig(taylorseer_order=order) for order in (1, 2)
    }
    chosen = {f"chosen, keep {keep:g}": BestOrderConfig(keep=keep) for keep in (0.0, 0.5, 0.8)}
    return crossed({"reuse": CalibratorConfig(), **fixed, **chosen}, (Place.OUTPUT, Place.MIDDLE))


def corrections() -> list[Setting]:
    """Last blocks, with as many computed steps as the FLOPs that they cost leave; and two blends."""
    made: list[Setting] = []
    for budget in (0.5, 0.4):
        for first, last in ((0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)):
            share = (budget - (first + last) / BLOCKS) / (1 - (first + last) / BLOCKS)
            config = BudgetConfig(
                place=Place.MIDDLE, compute=share, Fn_compute_blocks=first, Bn_compute_blocks=last
            )
            made += [
                (f"about {budget:g}: F{first}B{last}, {name}", config, calibrator)
                for name, calibrator in (("Taylor 1", TAYLOR), ("estimate", ESTIMATE))
            ]
    joined = {
        f"line and fit, {blend:g}": SpectrumCalibratorConfig(degree=1, blend=blend, anchored=True)
        for blend in (0.0, 0.25, 0.5, 0.75)
    }
    return made + crossed({**joined, "estimate": ESTIMATE}, (Place.OUTPUT,))


TOPICS: dict[str, Callable[[], list[Setting]]] = {
    "tolerance": tolerances,
    "axis": axes,
    "order": orders,
    "correction": corrections,
}


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
    parser.add_argument("topics", nargs="+", choices=list(TOPICS))
    parser.add_argument("--steps", type=int, nargs="+", default=[28, 50])
    parser.add_argument("--cfg", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--shift", type=float, help="of the noise levels; default: 1, which is even steps")
    parser.add_argument("--only", default="", help="settings whose name begins with this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe, pictures = load_pipeline(), Purpose.TRAINING.pictures[: given.pictures]
    if given.shift is not None:
        pipe.scheduler.set_shift(given.shift)
    settings = [one for topic in given.topics for one in TOPICS[topic]() if one[0].startswith(given.only)]
    print("| steps | CFG | setting | FLOPs | PSNR mean | p10 | worst |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for steps in given.steps:
        for cfg in given.cfg:
            cell = Cell(steps, cfg)
            uncached = draw(pipe, pictures, cell)
            for setting in settings:
                compute, scores = measured(pipe, cell, pictures, uncached, setting)
                low = scores[round(0.1 * (len(scores) - 1))]
                print(
                    f"| {steps} | {cfg:g} | {setting[0]} | {compute:.3f} | {statistics.fmean(scores):.1f} | "
                    f"{low:.1f} | {scores[0]:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
