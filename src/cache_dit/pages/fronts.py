"""Settings by cost and quality: the points of a comparison, and the ones that no other beats."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cache_dit.errors import ConfigError
from cache_dit.pages.charts import HEIGHT, Tick, nice_ticks

_MOST_BYTES = 16 * 2**20
_COLOURS = 4
_NAMED = 3  # curves in a panel with a colour and a label of their own, beside the control
_CONTROL = "control"
_BUDGET = 0.5
_SLACK = 0.01  # step counts are whole numbers, and budgets are not
_LINE, _LETTERS = 5.2, 13  # of a label: percent of the height, and how many fit beside the chart
_DEAREST = 0.95  # from here on a run is as good as uncached


class Point(NamedTuple):
    """One setting, measured.

    Attributes:
        curve: The method; its settings are joined.
        setting: Its strength, as it is printed.
        cost: FLOPs as a fraction of those of the uncached run.
        quality: Mean PSNR to the uncached pictures, in dB.
        panel: What the run was, such as "28 steps"; each has a chart of its own.
        control: It is no cache but what caches are held against, such as fewer steps.
    """

    curve: str
    setting: str
    cost: float
    quality: float
    panel: str = ""
    control: bool = False


class Mark(NamedTuple):
    """A point in a chart, in percent from the left and from the top, and what is said of it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The best settings of one method.

    Attributes:
        name: The method.
        colour: Number of its colour, from 0; None: it has none of its own.
        control: See `Point`.
        line: Path that joins the marks.
        marks: Its points, cheapest first.
        label: Place of its name in percent from the top; None: it has none.
    """

    name: str
    colour: int | None
    control: bool
    line: str
    marks: tuple[Mark, ...]
    label: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart.

    Attributes:
        title: What the runs were.
        text: What is seen, in words.
        curves: Those in grey first.
        across: Ticks of the horizontal axis.
        down: Ticks of the vertical axis.
        front: The points that no other beats in both, cheapest first.
    """

    title: str
    text: str
    curves: tuple[Curve, ...]
    across: tuple[Tick, ...]
    down: tuple[Tick, ...]
    front: tuple[Point, ...]


def read_points(path: str | os.PathLike[str]) -> list[Point]:
    """Read the points of a comparison.

    Args:
        path: A profile that `cache-dit tune` has written, which tells all that was tried; or a CSV file such
            as `bench/results/compare.csv`, with a head and the columns `system`, `strength`, `flops`
            (fraction of the uncached run) and `psnr` (dB). `steps` and `cfg` make panels where they are
            there; `kind` is "control" for what caches are held against; with a column `set`, only lines with
            "report" count where there are any. Other columns are not read.

    Returns:
        One point for each setting, in the order of the file.

    Raises:
        ConfigError: The file is neither, or larger than 16 MiB.
        OSError: It cannot be read.
    """
    path = Path(path)
    if path.stat().st_size > _MOST_BYTES:
        raise ConfigError(f"{path} is larger than 16 MiB; give a table such as bench/results/compare.csv.")
    try:
        text = path.read_text(encoding="utf-8")
        return _tried(json.loads(text)) if text.lstrip().startswith("{") else _lines(path, text)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        csv.Error,
    ) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} is no comparison ({type(error).__name__}: {error}); give a CSV file with the columns "
            "system, strength, flops and psnr, or a profile of cache-dit tune."
        ) from error


def _lines(path: Path, text: str) -> list[Point]:
    lines = list(csv.DictReader(io.StringIO(text)))
    missing = [name for name in ("system", "strength", "flops", "psnr") if not lines or name not in lines[0]]
    if missing:
        raise ConfigError(
            f"{path} has no column {missing[0]!r}; a comparison has system, strength, flops and psnr."
        )
    if any(line.get("set") == "report" for line in lines):
        lines = [line for line in lines if line.get("set") == "report"]
    return [
        Point(
            line["system"],
            line["strength"],
            float(line["flops"]),
            float(line["psnr"]),
            _panel(line.get("steps"), line.get("cfg")),
            line.get("kind") == _CONTROL,
        )
        for line in lines
    ]


def _tried(profile: Any) -> list[Point]:
    """All settings that a profile tells of, on the pictures that it was tuned on."""
    points = []
    for one in profile["tried"]:
        curve, _, strength = one["method"].rpartition(" ")
        if "flops" in one and "psnr" in one:
            points.append(Point(curve, strength, float(one["flops"]), float(one["psnr"])))
    panel = f"Tuning to {profile['target']}, {profile['steps']} steps"
    return [point._replace(panel=panel) for point in points]


def panels_of(points: Iterable[Point]) -> list[Panel]:
    """A chart for each kind of run; points without finite figures, and uncached ones, are left out.

    Raises:
        ConfigError: Nothing is left.
    """
    shown: dict[str, list[Point]] = {}
    for point in points:
        if math.isfinite(point.cost) and math.isfinite(point.quality) and 0.0 < point.cost < _DEAREST:
            shown.setdefault(point.panel, []).append(point)
    if not shown:
        raise ConfigError(
            "comparison has no point with a finite quality at less than 0.95 of the FLOPs; give points with "
            "cost as a fraction of the uncached run, and quality in dB."
        )
    leading = [name for own in shown.values() for name in _leading(own)]
    colours = {name: number for number, name in enumerate(list(dict.fromkeys(leading))[:_COLOURS])}
    return [_panel_of(title, own, colours) for title, own in shown.items()]


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both cost and quality, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def _panel(steps: str | None, cfg: str | None) -> str:
    if not steps:
        return ""
    guided = "" if cfg is None else ", no guidance" if float(cfg) <= 1.0 else f", guidance {float(cfg):g}"
    return f"{steps} steps{guided}"


def _panel_of(title: str, points: Sequence[Point], colours: dict[str, int]) -> Panel:
    fronts = {name: front(one for one in points if one.curve == name) for name in _names(points)}
    controls = [name for name, own in fronts.items() if own[0].control]
    named = [*[name for name in _leading(points) if name in colours], *controls]
    across = nice_ticks(max(p.cost for p in points), min(p.cost for p in points), 4)
    shown = [point for own in fronts.values() for point in own]
    down = nice_ticks(max(p.quality for p in shown), min(p.quality for p in shown), 5)

    def place(point: Point) -> Mark:
        x = 100.0 * (point.cost - across[0]) / (across[-1] - across[0])
        y = HEIGHT * (1.0 - (point.quality - down[0]) / (down[-1] - down[0]))
        cost = f"{100 * point.cost:.1f}\u202f% of the FLOPs"
        return Mark(x, y, f"{point.curve}, {point.setting}: {point.quality:.1f} dB at {cost}")

    marks = {name: tuple(map(place, own)) for name, own in fronts.items()}
    labels = _spread({name: marks[name][-1].y for name in named if name in marks})
    curves = [
        Curve(
            name=name,
            colour=colours.get(name) if name in named else None,
            control=name in controls,
            line="M" + "L".join(f"{mark.x:.4g} {mark.y:.4g}" for mark in own),
            marks=own,
            label=labels.get(name),
        )
        for name, own in marks.items()
    ]
    return Panel(
        title=title,
        text=_words(points),
        curves=tuple(sorted(curves, key=lambda curve: curve.label is not None)),
        across=tuple(
            Tick(100.0 * (one - across[0]) / (across[-1] - across[0]), f"{100 * one:.0f}\u202f%")
            for one in across
        ),
        down=tuple(Tick(HEIGHT * (1.0 - (one - down[0]) / (down[-1] - down[0])), f"{one:g}") for one in down),
        front=tuple(front(point for point in points if not point.control)),
    )


def _names(points: Iterable[Point]) -> list[str]:
    return list(dict.fromkeys(point.curve for point in points))


def _leading(points: Sequence[Point]) -> list[str]:
    """The methods with the most points on the front over all."""
    overall = front(point for point in points if not point.control)
    names = sorted(_names(overall), key=lambda name: -sum(point.curve == name for point in overall))
    return names[:_NAMED]


def _spread(wanted: dict[str, float]) -> dict[str, float]:
    """Places of the middles of labels near the wanted ones, but apart."""
    placed: dict[str, float] = {}
    free = -_LINE
    for name, y in sorted(wanted.items(), key=lambda item: item[1]):
        half = _LINE * (0.2 + math.ceil(len(name) / _LETTERS)) / 2
        placed[name] = max(y, free + half)
        free = placed[name] + half
    over = free - HEIGHT - _LINE
    return {name: y - over for name, y in placed.items()} if over > 0.0 else placed


def _words(points: Sequence[Point]) -> str:
    """What half of the FLOPs buys."""
    within = [point for point in points if point.cost <= _BUDGET + _SLACK]
    caches = [point for point in within if not point.control]
    controls = [point for point in within if point.control]
    if not caches:
        return ""
    best = max(caches, key=lambda point: point.quality)
    text = (
        f"At half of the FLOPs, “{best.curve}” at {best.setting} has the highest PSNR, {best.quality:.1f} dB"
    )
    if controls:
        control = max(controls, key=lambda point: point.quality)
        text += f"; “{control.curve}” has {control.quality:.1f} dB"
    return f"{text}."
