"""Calibrate the demo model for `cache-dit bench compare`: what some methods must have measured of a model.

python bench/calibrate.py                # all; LeMiCa takes by far the longest
python bench/calibrate.py trajectory     # one of: trajectory magcache dpcache lemica

Writes src/cache_dit/bench/calibrated/, from runs of the training prompts, of which none is reported.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from cache_dit.bench import Cell, Purpose
from cache_dit.bench.calibrated import SHARES, calibrated_file
from cache_dit.demo import load_pipeline
from cache_dit.demo.model import SIZE, TOKENS
from cache_dit.files import write_whole
from cache_dit.tune import DPCache, LeMiCa, Search, calibrate, magcache_ratios, observe

PROMPTS = [picture.prompt for picture in Purpose.TRAINING.pictures]


def schedules(pipe: Any, search: Search, count: int, options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Computed steps by budget."""
    seen = observe(pipe, PROMPTS[:count], search=search, **options)
    return {f"{budget:g}": seen.schedule(round(budget * seen.total)).computed for budget in SHARES}


def write(pipe: Any, method: str, path: Path, options: dict[str, Any]) -> None:
    """Write a method's file. MagCache takes one prompt and DPCache ten, as their authors do."""
    found: Any
    match method:
        case "trajectory":
            return calibrate(pipe, PROMPTS * 2, **options).save(path)
        case "magcache":
            found = magcache_ratios(pipe, PROMPTS[:1], **options)
        case "dpcache":
            found = schedules(pipe, DPCache(), 10, options)
        case _:
            found = schedules(pipe, LeMiCa(), 1, options)
    write_whole(path, json.dumps(found) + "\n")


def main() -> None:
    """Run all cells."""
    methods = ("trajectory", "magcache", "dpcache", "lemica")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", choices=[*methods, []], help="default: all")
    wanted = parser.parse_args().methods or methods
    torch.set_num_threads(1)
    pipe = load_pipeline()
    for steps in (28, 50):
        for cfg in (1.0, 2.0):
            guidance = {} if cfg == 1.0 else {"negative_prompt": "", "true_cfg_scale": cfg}
            sizes = {"height": SIZE, "width": SIZE, "max_sequence_length": TOKENS}
            options = {"num_inference_steps": steps, "seed": 500, **sizes, **guidance}
            for method in wanted:
                path = calibrated_file(method, Cell(steps, cfg))
                write(pipe, method, path, options)
                print(path, flush=True)


if __name__ == "__main__":
    main()
