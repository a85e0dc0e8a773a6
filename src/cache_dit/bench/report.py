"""The comparison as text, as a table of rows, and as a figure; all from scores alone."""

from __future__ import annotations

import csv
import datetime
import io
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from cache_dit._version import __version__
from cache_dit.bench import diffusers_systems, systems
from cache_dit.bench.pictures import Cell, Purpose
from cache_dit.bench.plot import draw_fronts
from cache_dit.bench.store import Scores
from cache_dit.bench.table import BUDGETS, SLACK, Row, best_at, cells_of, rows_of
from cache_dit.errors import CacheDiTError

_NUMBERS = (
    "flops",
    "time",
    "psnr",
    "psnr_low",
    "psnr_high",
    "psnr_p10",
    "psnr_worst",
    "ssim",
    "ssim_p10",
    "ssim_worst",
)
_FLOOR = "uncached again"
# Those that the tables of papers and of the reference system compare.
_PUBLISHED = (
    "fewer steps",
    "Δ-DiT",
    "FORA",
    "ToCa",
    "DuCa",
    "TeaCache",
    "TaylorSeer",
    "FoCa",
    "DBCache reuse, warm-up 4",
    "DBCache Taylor 1, warm-up 4",
)
_HEAD = (
    "system",
    "setting",
    "pictures",
    "FLOPs",
    "time",
    "PSNR",
    "95 %",
    "p10",
    "worst",
    "SSIM",
    "p10",
    "worst",
)

_EXPLAINED = f"""The demo model. FLOPs: of the transformer over whole runs, counted by torch's formulas, as a
fraction of those of the uncached run; for systems that decide by what they see, the mean over some pictures.
Time: seconds of a whole picture (a batch of one, text encoders and decoder included, but not what is done
once for many pictures, when a system is put on) over those of uncached runs before and after, median;
seconds of the process, so that other work on the machine does not count. PSNR in dB and SSIM of float
pictures to the uncached run of the same step count: mean, 95 % interval of the mean (bootstrap over prompts),
10th percentile, worst picture.

A setting is within a budget if it costs {SLACK:g} more at most. Of its settings within, each system shows the
one that is best on the training pictures; "-": none is that cheap."""

_PUBLISHED_EXPLAINED = """Every setting of these systems that the training pictures chose, by what it
costs; intervals and worst pictures are in the last section. With `--every-setting` all strengths are
measured."""


def write_report(scores: Scores, folder: Path) -> list[Path]:
    """Write compare.md, compare.csv and compare.png.

    Args:
        scores: The result of `cache_dit.bench.store.read`.
        folder: It is made where there is none.

    Returns:
        The three paths.

    Raises:
        CacheDiTError: There is no score of the report set.
    """
    training, report = rows_of(scores, Purpose.TRAINING), rows_of(scores, Purpose.REPORT)
    if not report:
        raise CacheDiTError("there are no scores of the report set; run `cache-dit bench compare` first.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"compare.{ending}" for ending in ("md", "csv", "png")]
    paths[0].write_text(markdown(training, report), encoding="utf-8")
    paths[1].write_text(rows_as_csv([*training, *report]), encoding="utf-8")
    draw_fronts(report, paths[2])
    return paths


def markdown(training: Sequence[Row], report: Sequence[Row]) -> str:
    """The whole text: how it was measured, the budgets, the best settings, and every setting."""
    best = {name: best_at(budget, training, report) for name, budget in BUDGETS.items()}
    parts = [_opening(training, report), "## Best mean PSNR at a budget\n"]
    for cell in cells_of(report):
        parts += [f"### {_title(cell)}\n", _overview(cell, best)]
    parts += _published(report)
    parts.append("## The settings behind it\n")
    for cell in cells_of(report):
        for name, rows in best.items():
            here = [row for row in rows if row.setting.cell == cell]
            parts += [f"### {_title(cell)}, {name} of the FLOPs\n", _table(here)]
    parts.append("## Every setting that was measured on the report pictures\n")
    for cell in cells_of(report):
        here = [row for row in report if row.setting.cell == cell]
        parts += [
            f"### {_title(cell)}\n",
            _table(sorted(here, key=lambda row: (row.setting.system, -row.flops))),
        ]
    return "\n".join(parts)


def _published(report: Sequence[Row]) -> list[str]:
    """The section of published systems, of the cells where they were measured."""
    parts = []
    for cell in cells_of(report):
        here = [row for row in report if row.setting.cell == cell and row.setting.system in _PUBLISHED]
        if {"fewer steps", "Δ-DiT", "FORA"} <= {row.setting.system for row in here}:
            parts += [f"### {_title(cell)}\n", _by_cost(here)]
    return [f"## The systems of published tables\n\n{_PUBLISHED_EXPLAINED}\n", *parts] if parts else []


def rows_as_csv(rows: Sequence[Row]) -> str:
    """All rows with all numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("set", "kind", "system", "strength", "steps", "cfg", "pictures", *_NUMBERS))
    for row in rows:
        of = row.setting
        numbers = [f"{getattr(row, name):.5g}" for name in _NUMBERS]
        place = (of.purpose.value, of.kind.value, of.system, of.strength, of.cell.steps, f"{of.cell.cfg:g}")
        writer.writerow((*place, row.pictures, *numbers))
    return text.getvalue()


def _opening(training: Sequence[Row], report: Sequence[Row]) -> str:
    import diffusers

    floor = [row.psnr for row in report if row.setting.system == _FLOOR]
    facts = (
        f"date: {datetime.date.today().isoformat()}",
        f"machine: {processor()}, {os.cpu_count()} cores, one torch thread",
        f"python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"cache_dit {__version__}",
        "commands: `cache-dit bench compare --training`, then `cache-dit bench compare`; all this from the "
        "scores by picture, which they leave: `cache-dit bench compare --report`",
        f"pictures: {_range(report)} for each setting; settings were chosen on {_range(training)} others, of "
        "other prompts and seeds",
        "noise floor, uncached runs one by one against batches: "
        + (f"{min(floor):.0f} dB" if floor else "not measured"),
        *diffusers_systems.REMARKS,
        *systems.REMARKS,
    )
    listed = "\n".join(f"- {fact}" for fact in facts)
    return f"# All caches, and fewer steps\n\n{listed}\n\n{_EXPLAINED}\n"


def _range(rows: Sequence[Row]) -> str:
    counts = {row.pictures for row in rows if row.setting.system != _FLOOR} or {0}
    return f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(*counts)


def _overview(cell: Cell, best: dict[str, list[Row]]) -> str:
    found = {
        name: {row.setting.system: row for row in rows if row.setting.cell == cell}
        for name, rows in best.items()
    }
    kinds = {system: row.setting.kind for rows in found.values() for system, row in rows.items()}
    order = sorted(
        kinds,
        key=lambda system: tuple(-rows[system].psnr if system in rows else 0 for rows in found.values()),
    )
    lines = [_line(("system", "by", *found)), _line(["---"] * (2 + len(found)))]
    for system in order:
        texts = [
            f"{rows[system].psnr:.1f} ({rows[system].psnr_worst:.1f})" if system in rows else "-"
            for rows in found.values()
        ]
        lines.append(_line((system, kinds[system].value, *texts)))
    return "Mean (worst picture), dB.\n\n" + "\n".join(lines) + "\n"


def _by_cost(rows: Sequence[Row]) -> str:
    """As papers print it: the dearest first, with how many times less than the uncached run it costs."""
    head = ("method", "FLOPs", "FLOPs saved", "time saved", "PSNR", "SSIM")
    lines = [_line(head), _line(["---"] * len(head)), _line(("uncached", "1.000", "1.00x", "1.00x", "", ""))]
    for row in sorted(rows, key=lambda row: -row.flops):
        method = f"{row.setting.system} ({row.setting.strength})"
        times = "" if math.isnan(row.time) else f"{1 / row.time:.2f}x"
        scores = f"{row.psnr:.1f}", f"{row.ssim:.4f}"
        lines.append(_line((method, f"{row.flops:.3f}", f"{1 / row.flops:.2f}x", times, *scores)))
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> str:
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    for row in rows:
        lines.append(
            _line(
                (
                    row.setting.system,
                    row.setting.strength,
                    str(row.pictures),
                    f"{row.flops:.3f}",
                    "" if math.isnan(row.time) else f"{row.time:.3f}",
                    f"{row.psnr:.1f}",
                    "" if math.isnan(row.psnr_low) else f"{row.psnr_low:.1f} to {row.psnr_high:.1f}",
                    *(f"{value:.1f}" for value in (row.psnr_p10, row.psnr_worst)),
                    *(f"{value:.4f}" for value in (row.ssim, row.ssim_p10, row.ssim_worst)),
                )
            )
        )
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _title(cell: Cell) -> str:
    return f"{cell.steps} steps, {f'guidance {cell.cfg:g}' if cell.cfg > 1 else 'no guidance'}"


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
