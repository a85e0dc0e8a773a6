"""Scores in a CSV file, one line each, appended as they are measured: a run that was cut off goes on."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_dit.bench.measure import Score
from cache_dit.bench.pictures import Cell, Purpose
from cache_dit.bench.system import Kind, System
from cache_dit.errors import CacheDiTError

_COLUMNS = ("set", "kind", "system", "strength", "steps", "cfg", "seed", "flops", "time", "psnr", "ssim")


@dataclass(frozen=True, slots=True)
class Setting:
    """One curve's point in one cell, as a line of the file names it."""

    purpose: Purpose
    kind: Kind
    system: str
    strength: str
    cell: Cell

    @property
    def point(self) -> tuple[str, str, Cell]:
        """What is the same on both sets of pictures."""
        return self.system, self.strength, self.cell

    @classmethod
    def of(cls, purpose: Purpose, system: System, cell: Cell) -> Setting:
        """The setting that a system is in a cell."""
        return cls(purpose, system.kind, system.name, system.strength, cell)


Scores = dict[Setting, dict[int, Score]]  # by seed


def read(paths: Sequence[Path]) -> Scores:
    """Read all scores of some files; files that are missing have none, and of equal lines the last counts.

    Raises:
        CacheDiTError: A line that is no score.
    """
    found: Scores = {}
    for path in paths:
        if path.exists():
            for setting, score in _lines(path):
                found.setdefault(setting, {})[score.seed] = score
    return found


def append(path: Path, setting: Setting, score: Score) -> None:
    """Add one line, whole or not at all, so that several processes may write to one file."""
    of, numbers = setting, (score.flops, score.time, score.psnr, score.ssim)
    place = (of.purpose.value, of.kind.value, of.system, of.strength, of.cell.steps, f"{of.cell.cfg:g}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        writer.writerow(_COLUMNS)
    writer.writerow((*place, score.seed, *(f"{number:.6g}" for number in numbers)))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text.getvalue().encode())
    finally:
        os.close(descriptor)


def _lines(path: Path) -> Iterator[tuple[Setting, Score]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for line in reader:
                if line.get("set") != "set":  # files may be joined, heads and all
                    yield _scored(line)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise CacheDiTError(
                f"{path}, line {reader.line_num} is no score ({error}); remove it."
            ) from error


def _scored(line: Mapping[str, str]) -> tuple[Setting, Score]:
    setting = Setting(
        Purpose(line["set"]),
        Kind(line["kind"]),
        line["system"],
        line["strength"],
        Cell(int(line["steps"]), float(line["cfg"])),
    )
    names = ("flops", "time", "psnr", "ssim")
    return setting, Score(seed=int(line["seed"]), **{name: float(line[name]) for name in names})
