"""Fidelity against compute on the demo model: reuse, Taylor 1, Taylor 2, and the "fewer steps" control.

python bench/quality.py            # about ten minutes on a quiet machine
python bench/quality.py --write    # also writes bench/results/quality.md and quality.csv
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from common import environment, write
from torch import Tensor

import cache_dit
from cache_dit import CalibratorConfig, DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.demo import load_pipeline
from cache_dit.metrics.image import psnr

THRESHOLDS = (0.04, 0.06, 0.08, 0.1, 0.12, 0.2, 0.4)
# Wall-clock ratios are taken on the first prompts alone; pictures are compared on all.
TIMED = 6
FORECASTS: dict[str, CalibratorConfig] = {
    "reuse": CalibratorConfig(),
    "Taylor 1": TaylorSeerCalibratorConfig(taylorseer_order=1),
    "Taylor 2": TaylorSeerCalibratorConfig(taylorseer_order=2),
}
# Not the prompts of `cache-dit demo`: nothing here was tuned on these.
PROMPTS = tuple(
    f"a {colour} {thing} on {ground} at {hour}{behind}"
    for colour, thing, ground, hour, behind in (
        ("red", "house", "grass", "day", ""),
        ("blue", "tree", "snow", "night", ""),
        ("yellow", "balloon", "sand", "sunset", " with mountains"),
        ("green", "mushroom", "grass", "night", " with mountains"),
        ("purple", "house", "snow", "sunset", ""),
        ("pink", "tree", "sand", "day", " with mountains"),
        ("red", "balloon", "snow", "day", ""),
        ("blue", "mushroom", "sand", "night", ""),
        ("yellow", "house", "sand", "night", " with mountains"),
        ("green", "tree", "grass", "sunset", ""),
        ("purple", "balloon", "grass", "day", " with mountains"),
        ("pink", "mushroom", "snow", "sunset", ""),
        ("red", "tree", "snow", "sunset", " with mountains"),
        ("blue", "house", "grass", "day", " with mountains"),
        ("yellow", "mushroom", "grass", "day", ""),
        ("green", "balloon", "sand", "sunset", ""),
    )
)


@dataclass(frozen=True)
class Row:
    """One setting over all prompts; PSNR in dB of float pictures against the full run."""

    steps: int
    threshold: float | None
    forecast: str
    compute: float
    psnr_mean: float
    psnr_worst: float
    wall: float


class Runner:
    """Pictures of the demo model with their times."""

    def __init__(self, pipe: Any, cfg: float, prompts: tuple[str, ...]) -> None:
        self.pipe, self.cfg, self.prompts = pipe, cfg, prompts
        self._full: dict[tuple[int, int], Tensor] = {}

    def beside_full(
        self, place: int, steps: int, variant: Callable[[], Tensor]
    ) -> tuple[float, float | None]:
        """PSNR of a variant of a picture to the full one, and their ratio of seconds for timed prompts."""
        slow = None
        if place < TIMED or (place, steps) not in self._full:
            start = time.perf_counter()
            self._full[place, steps] = self.picture(place, steps)
            slow = time.perf_counter() - start
        start = time.perf_counter()
        picture = variant()
        fast = time.perf_counter() - start
        score = psnr(picture, self._full[place, steps], data_range=1.0)
        return score, fast / slow if slow is not None and place < TIMED else None

    def picture(self, place: int, steps: int) -> Tensor:
        """One picture [3, 64, 64] in 0..1; its seed is its place."""
        images: Tensor = self.pipe(
            self.prompts[place],
            negative_prompt="" if self.cfg > 1 else None,
            true_cfg_scale=self.cfg,
            height=64,
            width=64,
            max_sequence_length=10,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(place),
            output_type="pt",
        ).images
        return images[0]


def cached_picture(
    runner: Runner, place: int, steps: int, config: DBCacheConfig, calibrator: CalibratorConfig
) -> Tensor:
    """A picture with the cache on; putting it on is timed along, as part of what a user waits for."""
    cache_dit.enable_cache(runner.pipe, config, calibrator)
    return runner.picture(place, steps)


def cached_rows(runner: Runner, steps: int, warmup: int) -> list[Row]:
    """All thresholds and forecasts; every cached picture is timed next to an uncached one."""
    rows = []
    for threshold in THRESHOLDS:
        config = DBCacheConfig(
            Fn_compute_blocks=1,
            max_warmup_steps=warmup,
            max_continuous_cached_steps=8,
            residual_diff_threshold=threshold,
        )
        for name, calibrator in FORECASTS.items():
            scores, fractions, walls = [], [], []
            for place in range(len(runner.prompts)):
                variant = partial(cached_picture, runner, place, steps, config, calibrator)
                score, wall = runner.beside_full(place, steps, variant)
                saved = cache_dit.summary(runner.pipe, logging=False)[0].flops_saved or 0.0
                cache_dit.disable_cache(runner.pipe)
                scores.append(score)
                fractions.append(1.0 - saved)
                walls += [] if wall is None else [wall]
            rows.append(_row(steps, threshold, name, fractions, scores, walls))
            print(_line(rows[-1]), flush=True)
    return rows


def fewer_steps(runner: Runner, steps: int, fractions: list[float]) -> list[Row]:
    """The control: no cache but a shorter run, at about the compute of every cached row."""
    counts = sorted({max(2, round(steps * fraction)) for fraction in fractions} - {steps}, reverse=True)
    rows = []
    for count in counts:
        scores, walls = [], []
        for place in range(len(runner.prompts)):
            score, wall = runner.beside_full(place, steps, partial(runner.picture, place, count))
            scores.append(score)
            walls += [] if wall is None else [wall]
        rows.append(_row(steps, None, f"{count} steps", [count / steps], scores, walls))
        print(_line(rows[-1]), flush=True)
    return rows


def at_compute(controls: list[Row], compute: float) -> float:
    """PSNR of the control at a compute fraction, linear between the step counts that were run."""
    points = sorted((row.compute, row.psnr_mean) for row in controls)
    for (low, left), (high, right) in pairwise(points):
        if low <= compute <= high:
            return left + (right - left) * (compute - low) / (high - low)
    return math.nan


def _row(
    steps: int,
    threshold: float | None,
    name: str,
    fractions: list[float],
    scores: list[float],
    walls: list[float],
) -> Row:
    return Row(
        steps=steps,
        threshold=threshold,
        forecast=name,
        compute=statistics.fmean(fractions),
        psnr_mean=statistics.fmean(scores),
        psnr_worst=min(scores),
        wall=statistics.median(walls),
    )


def _line(row: Row, control: float = math.nan) -> str:
    threshold = "-" if row.threshold is None else f"{row.threshold:.2f}"
    fewer = "" if math.isnan(control) else f"{control:.1f}"
    return (
        f"| {row.steps} | {threshold} | {row.forecast} | {row.compute:.3f} | {row.psnr_mean:.1f} | "
        f"{row.psnr_worst:.1f} | {row.wall:.3f} | {fewer} |"
    )


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[28, 50])
    parser.add_argument("--cfg", type=float, default=1.0, help="true_cfg_scale; 1 is one branch a step")
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts")
    parser.add_argument("--write", action="store_true", help="write bench/results/quality-cfg*.md and .csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runner = Runner(load_pipeline(), given.cfg, PROMPTS[: given.prompts])
    runner.picture(0, 4)  # first use of every kernel
    lines, table = [], []
    for steps in given.steps:
        cached = cached_rows(runner, steps, given.warmup)
        controls = fewer_steps(runner, steps, [row.compute for row in cached])
        lines += [_line(row, at_compute(controls, row.compute)) for row in cached]
        lines += [_line(row) for row in controls]
        table += cached + controls
    text = "\n".join(
        (
            "# Fidelity against compute",
            "",
            environment(),
            "",
            f"The demo model, {len(runner.prompts)} prompts, one seed each (its number), true_cfg_scale "
            f"{given.cfg:g}, F1B0, warm-up {given.warmup}, at most 8 skipped steps in a row. Compute: FLOPs "
            "of the transformer against the uncached run. PSNR in dB of float pictures to the uncached run "
            f"of the same step count. Wall: median ratio of neighbouring runs of the first {TIMED} prompts, "
            "decoder and text encoders included. Last column: PSNR of the uncached run with fewer steps at "
            "that compute.",
            "",
            "| steps | threshold | filled with | compute | PSNR mean | PSNR worst | wall | fewer steps |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *lines,
        )
    )
    print("\n" + text)
    if given.write:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(Row.__dataclass_fields__)
        writer.writerows(vars(row).values() for row in table)
        name = f"quality-{'-'.join(map(str, given.steps))}steps-cfg{given.cfg:g}"
        print(f"\nwritten: {write(f'{name}.md', text)} {write(f'{name}.csv', buffer.getvalue().rstrip())}")


if __name__ == "__main__":
    main()
