"""Marks of the charts as SVG paths.

Charts are as wide as the page: their drawing is stretched sideways, so text stands beside it in HTML, and
what must stay round or thin is a stroke that does not scale. The unit to the right is one step, block or
share; the unit downward is a hundredth of the height.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

HEIGHT = 100.0
# Between bars, of the width of one; with more bars than this they touch.
_GAP, _TOUCHING = 0.14, 120
_LOW = 32.0  # height of the bar of a skipped step, which so differs in more than its colour


class Tick(NamedTuple):
    """A number beside an axis: its place in percent from the left or from the top, and what is written."""

    place: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """A series over the steps.

    Attributes:
        line: Joins them.
        computed: One dot for each computed step.
        skipped: One for each step in which something was skipped.
        above: One for each value that is above the chart, at its upper edge.
        limit: Place of the threshold in percent from the top; None: it is not drawn.
        ticks: Of the vertical axis.
        clipped: How many values are above the chart.
        top: Value at the upper edge.
    """

    line: str
    computed: str
    skipped: str
    above: str
    limit: float | None
    ticks: tuple[Tick, ...]
    clipped: int
    top: float


def bars(skipped: Sequence[float], *, divided: bool = False) -> tuple[str, str]:
    """A step each: tall bars for what was computed, low ones for what was skipped.

    Where there are parts all bars are tall, and divided: computed below, skipped above.
    """
    gap = _GAP if len(skipped) <= _TOUCHING else 0.0
    computed, low = [], []
    for step, share in enumerate(skipped):
        x, cut = step + gap / 2, HEIGHT * share
        if share < 1.0:
            computed.append(_box(x, cut, 1.0 - gap, HEIGHT - cut))
        if share:
            top, height = (0.0, cut) if divided else (HEIGHT - _LOW, _LOW)
            low.append(_box(x, top, 1.0 - gap, height))
    return "".join(computed), "".join(low)


def highest(values: Iterable[float | None], limit: float | None) -> float | None:
    """What a chart of some values, with a threshold, should reach to; None where there is no finite value."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    # A few steps at the very beginning may change ten times as much as all others.
    return (max(known) if limit is None else max(1.5 * limit, min(max(known), 4.0 * limit))) or 1.0


def dots(
    values: Sequence[float | None], skipped: Sequence[bool], limit: float | None, reach: float | None
) -> Dots | None:
    """A value for each step, in a chart up to `reach`; None where there are no values."""
    if reach is None or all(value is None for value in values):
        return None
    ticks = nice_ticks(reach)
    top = ticks[-1]
    points = [(step + 0.5, value) for step, value in enumerate(values) if value is not None]
    at = {x: HEIGHT * (1.0 - min(value, top) / top) if value == value else 0.0 for x, value in points}
    high = {x for x, value in points if not value <= top}
    marks: dict[bool, list[str]] = {True: [], False: []}
    for x, y in at.items():
        if x not in high:
            marks[skipped[int(x)]].append(_dot(x, y))
    drawn = limit is not None and limit <= top
    return Dots(
        line="M" + "L".join(f"{x:g} {y:.4g}" for x, y in at.items()),
        computed="".join(marks[False]),
        skipped="".join(marks[True]),
        above="".join(_dot(x, 0.0) for x in high),
        limit=HEIGHT * (1.0 - limit / top) if limit is not None and drawn else None,
        ticks=tuple(Tick(HEIGHT * (1.0 - tick / top), f"{tick:g}") for tick in ticks),
        clipped=len(high),
        top=top,
    )


def cells(rows: Sequence[Sequence[float]]) -> tuple[str, str, str]:
    """Cells of a grid with rows of height 1: computed, skipped in part, and skipped."""
    made: tuple[list[str], list[str], list[str]] = ([], [], [])
    for row, shares in enumerate(rows):
        start = 0
        for column, share in enumerate(shares):
            last = column + 1 == len(shares)
            if last or _kind(shares[column + 1]) != _kind(share):
                made[_kind(share)].append(_box(start, row + 0.06, column + 1 - start, 0.88))
                start = column + 1
    computed, part, whole = ("".join(boxes) for boxes in made)
    return computed, part, whole


def shares(values: Sequence[float]) -> str:
    """A horizontal bar for each row of a grid; 1 is the whole width."""
    return "".join(_box(0, row + 0.06, value, 0.88) for row, value in enumerate(values) if value)


def step_ticks(count: int) -> tuple[Tick, ...]:
    """Numbers below the steps: the first, the last, and round ones between."""
    every = next(unit for unit in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if count / unit <= 8)
    inner = [step for step in range(0, count, every) if count - 1 - step >= 0.6 * every]
    return tuple(Tick(100.0 * (step + 0.5) / count, str(step)) for step in dict.fromkeys([*inner, count - 1]))


def nice_ticks(highest: float, lowest: float = 0.0, most: int = 5) -> list[float]:
    """Round numbers from `lowest` or below to `highest` or above: two at least, about `most` in all."""
    if highest <= lowest:
        highest = lowest + (0.1 * abs(lowest) or 1.0)
    rough = (highest - lowest) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * unit >= rough * 0.999)
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _kind(share: float) -> int:
    return 0 if share <= 0.0 else 2 if share >= 0.999 else 1


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:.4g} {y:.4g}h{width:.4g}v{height:.4g}h{-width:.4g}z"


def _dot(x: float, y: float) -> str:
    return f"M{x:g} {y:.4g}h0"
