"""What the benchmark scripts share: the demo pipeline, timing of interleaved variants, and result files."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import diffusers
import torch

import cache_dit

RESULTS = Path(__file__).parent / "results"


Setting = Callable[[], AbstractContextManager[Any]]


def interleaved(
    run: Callable[[], Any], settings: Mapping[str, Setting], rounds: int
) -> dict[str, list[float]]:
    """Seconds of `run` under every setting, in every round.

    Entering and leaving a setting is not timed. The order turns by one each round, so no place is favoured.
    """
    names = list(settings)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            with settings[name]():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """Median, first and third quartile of the ratio `name` / `base`, taken within each round."""
    pairs = [mine / other for mine, other in zip(seconds[name], seconds[base], strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4)
    return middle, low, high


def environment() -> str:
    """Hardware, versions and command of this run, as a markdown list."""
    return "\n".join(
        (
            f"- date: {datetime.date.today().isoformat()}",
            f"- machine: {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread(s)",
            f"- python {platform.python_version()}, torch {torch.__version__}, "
            f"diffusers {diffusers.__version__}, cache_dit {cache_dit.__version__}",
            f"- load average at the end: {os.getloadavg()[0]:.2f}",
            f"- command: `python bench/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`",
        )
    )


def write(name: str, text: str) -> Path:
    """Write a result file under bench/results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
