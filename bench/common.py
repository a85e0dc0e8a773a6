"""What the benchmark scripts share: the demo pipeline, timing of interleaved variants, and result files."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

import cache_dit
from cache_dit.bench.report import processor

RESULTS = Path(__file__).parent / "results"


def in_turn(
    runs: Sequence[Callable[[], Iterable[Callable[[], Any]]]], rounds: int
) -> tuple[list[float], list[list[float]]]:
    """Time several sequences of calls, one whole sequence after the other, in another order in every round.

    On a machine that is not quiet, spikes hit single calls: so the time of a sequence is the sum over its
    calls of each call's fastest round, as `timeit` advises, and the spread is given beside it.

    Returns:
        Seconds of each sequence, and for each its ratio to the first in every round.
    """
    times: list[list[list[float]]] = [[] for _ in runs]
    for number in range(rounds):
        turn = number % len(runs)
        for place in (*range(turn, len(runs)), *range(turn)):
            times[place].append([_seconds(call) for call in runs[place]()])
    fastest = [sum(map(min, zip(*kept, strict=True))) for kept in times]
    ratios = [[sum(mine) / sum(first) for first, mine in zip(times[0], kept, strict=True)] for kept in times]
    return fastest, ratios


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def environment() -> str:
    """Hardware, versions and command of this run, as a markdown list."""
    return "\n".join(
        (
            f"- date: {datetime.date.today().isoformat()}",
            f"- machine: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread(s)",
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
