"""Calibrate the demo model for `cache-dit bench compare`: what some methods must have measured of a model.

python bench/calibrate.py                # all; LeMiCa takes by far the longest
python bench/calibrate.py trajectory     # one of: trajectory closed-loop magcache dpcache lemica

Writes src/cache_dit/bench/calibrated/, from runs of prompts of which none is reported. MagCache takes one and
DPCache ten, as their authors do, LeMiCa one, and this project's own estimate 48.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

import torch

from cache_dit.bench import Cell, Purpose
from cache_dit.bench.calibrated import SHARES, calibrated_file
from cache_dit.bench.table import BUDGETS
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.demo import load_pipeline
from cache_dit.demo.model import SIZE, TOKENS
from cache_dit.files import write_whole
from cache_dit.tune import ClosedLoop, DPCache, LeMiCa, Search, calibrate, magcache_ratios, observe

PROMPTS = [picture.prompt for picture in Purpose.TRAINING.pictures]
_WORDS = (
    ("red", "yellow", "blue", "green", "pink", "purple"),
    ("tree", "mushroom", "house", "balloon"),
    ("grass", "sand", "snow"),
    ("day", "night", "sunset"),
    ("", " with mountains"),
)
_MANY = 48


def many_prompts() -> list[str]:
    """Some of the 432 that the model was taught, drawn at random from those that are not reported."""
    reported = {picture.prompt for picture in Purpose.REPORT.pictures}
    taught = (
        f"a {colour} {thing} on {ground} at {time}{mountains}"
        for colour, thing, ground, time, mountains in itertools.product(*_WORDS)
    )
    return random.Random(7).sample([prompt for prompt in taught if prompt not in reported], _MANY)


def schedules(pipe: Any, search: Search, count: int, options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Computed steps by budget."""
    seen = observe(pipe, PROMPTS[:count], search=search, **options)
    return {f"{budget:g}": seen.schedule(round(budget * seen.total)).computed for budget in SHARES}


def tried(pipe: Any, cell: Cell, options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The same by real runs, for the estimate from the file of `trajectory`."""
    measured = Trajectory.load(calibrated_file("trajectory", cell))
    found = {}
    for budget in BUDGETS.values():
        count = round(budget * cell.steps)
        # Of more tries, none was the best on other pictures.
        search = ClosedLoop(trajectory=measured, computed_steps=count, tries=4)
        seen = observe(pipe, many_prompts(), search=search, **options)
        found[f"{budget:g}"] = seen.schedule(count).computed
    return found


def write(pipe: Any, method: str, cell: Cell, options: dict[str, Any]) -> Path:
    """Write a method's file."""
    found: Any
    path = calibrated_file(method, cell)
    match method:
        case "trajectory":
            calibrate(pipe, many_prompts(), **options).save(path)
            return path
        case "closed-loop":
            found = tried(pipe, cell, options)
        case "magcache":
            found = magcache_ratios(pipe, PROMPTS[:1], **options)
        case "dpcache":
            found = schedules(pipe, DPCache(), 10, options)
        case _:
            found = schedules(pipe, LeMiCa(), 1, options)
    write_whole(path, json.dumps(found) + "\n")
    return path


def main() -> None:
    """Run all cells, or those that are named."""
    methods = ("trajectory", "closed-loop", "magcache", "dpcache", "lemica")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", choices=[*methods, []], help="default: all")
    parser.add_argument("--steps", type=int, nargs="+", default=[28, 50])
    parser.add_argument("--cfg", type=float, nargs="+", default=[1.0, 2.0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load_pipeline()
    for steps, cfg in itertools.product(given.steps, given.cfg):
        guidance = {} if cfg == 1.0 else {"negative_prompt": "", "true_cfg_scale": cfg}
        sizes = {"height": SIZE, "width": SIZE, "max_sequence_length": TOKENS}
        options = {"num_inference_steps": steps, "seed": 500, **sizes, **guidance}
        for method in given.methods or methods:
            print(write(pipe, method, Cell(steps, cfg), options), flush=True)


if __name__ == "__main__":
    main()
