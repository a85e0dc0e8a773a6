"""Measure what is not yet in the file: every system in every cell on one set of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cache_dit.bench.measure import Bench, Score
from cache_dit.bench.pictures import Cell, Purpose
from cache_dit.bench.store import Setting, append, read
from cache_dit.bench.system import System
from cache_dit.demo.comparison import one_thread


def measure(
    pipe: Any,
    systems: Sequence[System],
    cells: Sequence[Cell],
    purpose: Purpose,
    stores: Sequence[Path],
    *,
    prompts: int | None = None,
    timed: int = 0,
    wanted: Callable[[Setting], bool] = lambda setting: True,
    told: Callable[[Setting], None] = lambda setting: None,
) -> None:
    """Draw and compare every picture that has no line in a file yet, and append its line.

    Args:
        pipe: The result of `cache_dit.demo.load_pipeline`, with no cache on it.
        systems: What is compared.
        cells: Steps and guidance; one after the other, since each has its own uncached pictures.
        purpose: The set of pictures.
        stores: Files with scores; what is in one of them is not measured again, and new lines go to the
            first, which is made where there is none.
        prompts: Only so many of the first prompts.
        timed: So many of the first pictures are also timed, those too that were measured without.
        wanted: False for settings to leave out.
        told: Called before a setting is measured.
    """
    kept = list(dict.fromkeys(picture.prompt for picture in purpose.pictures))[:prompts]
    pictures = [picture for picture in purpose.pictures if picture.prompt in kept]
    first, known = pictures[:timed], read(stores)
    with one_thread():
        for cell in cells:
            bench = Bench(pipe, cell)
            for system in [one for one in systems if one.available(cell)]:
                setting = Setting.of(purpose, system, cell)
                done = known.get(setting, {})
                missing = [one for one in pictures if _lacks(done.get(one.seed), one in first)]
                if missing and wanted(setting):
                    told(setting)
                    for score in bench.scores(system, missing, first):
                        append(stores[0], setting, score)


def _lacks(score: Score | None, timed: bool) -> bool:
    return score is None or (timed and math.isnan(score.time))
