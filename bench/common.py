"""What the benchmark scripts share: the demo pipeline, timing of interleaved variants, and result files."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

import cache_dit

RESULTS = Path(__file__).parent / "results"


def paired(
    base: Sequence[Callable[[], Any]], other: Sequence[Callable[[], Any]], rounds: int
) -> tuple[float, float, list[float]]:
    """Time two sequences of calls, each call of one right next to the same call of the other.

    On a machine that is not quiet, spikes hit single calls: so the time of a sequence is the sum over its
    calls of each call's fastest round, as `timeit` advises, and the spread is given beside it.

    Returns:
        Seconds of `base` and of `other`, and their ratio within every round, for the spread.
    """
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    for number in range(rounds):
        for kept in times:
            kept.append([])
        for pair in zip(base, other, strict=True):
            for place in (0, 1) if number % 2 == 0 else (1, 0):
                times[place][-1].append(_seconds(pair[place]))
    fastest = [sum(min(call) for call in zip(*kept, strict=True)) for kept in times]
    ratios = [sum(mine) / sum(theirs) for theirs, mine in zip(*times, strict=True)]
    return fastest[0], fastest[1], ratios


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


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
