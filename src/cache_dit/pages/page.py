"""From the facts to the page: what the template is given, and the template filled in."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby

import jinja2
from markupsafe import Markup

from cache_dit._version import __version__
from cache_dit.pages import charts, words
from cache_dit.pages.charts import Dots, Tick
from cache_dit.pages.fronts import Panel
from cache_dit.pages.pictures import Pair
from cache_dit.pages.reproduce import versions
from cache_dit.pages.run import Block, Grid, Run, Track
from cache_dit.stats import Finding

_ROW, _MOST = 8, 300  # pixels of a block, and of a list of blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Track:
    """One track as it is drawn."""

    title: str
    text: str
    changes_name: str
    changes_text: str
    count: int
    computed: str
    skipped: str
    changes: Dots | None
    errors: Dots | None
    points: tuple[str, ...]
    limit: str
    ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _List:
    """One list of blocks in a block map as it is drawn."""

    path: str
    rows: int
    pixels: int
    computed: str
    part: str
    skipped: str
    shares: str
    most: float
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """One block map as it is drawn."""

    title: str
    text: str
    steps: int
    lists: tuple[_List, ...]
    ticks: tuple[Tick, ...]

    @property
    def part(self) -> bool:
        """Whether a block was skipped in part."""
        return any(one.part for one in self.lists)


@dataclass(frozen=True, slots=True)
class _Bar:
    """One bar of a cost: its name, its length as a share of the longest, and its value in words."""

    name: str
    share: float
    text: str
    ours: bool


@dataclass(frozen=True, slots=True)
class _Cost:
    """A few bars with one unit."""

    title: str
    text: str
    bars: tuple[_Bar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One transformer's part of the page."""

    model: str
    config: str
    forecaster: str
    lead: str
    tracks: tuple[_Track, ...]
    grids: tuple[_Grid, ...]
    costs: tuple[_Cost, ...]


def render(
    *,
    mark: str,
    title: str,
    runs: Sequence[Run],
    findings: Sequence[Finding],
    pair: Pair | None,
    prompt: str,
    seconds: float | None,
    reference_seconds: float | None,
    panels: Sequence[Panel],
    code: str,
) -> str:
    """The page as text. Whatever comes from outside is escaped, and only the page's own script may run."""
    folder = resources.files("cache_dit.pages") / "template"
    style, script, page = (
        (folder / name).read_text(encoding="utf-8") for name in ("style.css", "script.js", "page.html")
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    times = _times(seconds, reference_seconds)
    drawn = [_run(run, times if number == 0 else None) for number, run in enumerate(runs)]
    return environment.from_string(page).render(
        mark=Markup(mark),
        title=title,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        runs=drawn,
        findings=[str(finding) for finding in findings],
        pair=pair,
        picture_text="" if pair is None else words.picture(pair),
        prompt=prompt,
        panels=panels,
        code=code,
        versions=versions(),
        version=__version__,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _run(run: Run, times: _Cost | None) -> _Run:
    return _Run(
        model=run.model,
        config=" + ".join(dict.fromkeys(entry.config for entry in run.stats)),
        forecaster=", ".join(dict.fromkeys(entry.forecaster for entry in run.stats)),
        lead=words.lead(run),
        tracks=tuple(_tracks(run.tracks)),
        # Where all blocks do the same the timeline has said it.
        grids=tuple(
            map(_grid, (grid for grid in run.grids if len({row.skipped for row in grid.blocks}) > 1))
        ),
        costs=tuple(_costs(run, times)),
    )


def _tracks(tracks: Sequence[Track]) -> Iterator[_Track]:
    """All tracks of a run, with one scale where they are held against one value."""
    reach: dict[float | None, float | None] = {}
    for limit in map(_limit, tracks):
        own = [step.change for track in tracks if _limit(track) == limit for step in track.steps]
        reach[limit] = charts.highest(own, limit)
    farthest = charts.highest((step.error for track in tracks for step in track.steps), None)
    for track in tracks:
        limit, skipped = _limit(track), [step.skipped > 0.0 for step in track.steps]
        parts = any(0.0 < step.skipped < 1.0 for step in track.steps)
        computed, low = charts.bars([step.skipped for step in track.steps], divided=parts)
        yield _Track(
            title=words.title(track),
            text=words.steps(track),
            changes_name=words.measured(track),
            changes_text=words.changes(track),
            count=len(track.steps),
            computed=computed,
            skipped=low,
            changes=charts.dots([step.change for step in track.steps], skipped, limit, reach[limit]),
            errors=charts.dots([step.error for step in track.steps], skipped, None, farthest),
            points=tuple(map(words.point, track.steps)),
            limit="" if track.limit is None else f"{track.limit.option} = {track.limit.value:g}",
            ticks=charts.step_ticks(len(track.steps)),
        )


def _limit(track: Track) -> float | None:
    """What each change by itself is held against."""
    return None if track.limit is None or track.limit.summed else track.limit.value


def _grid(grid: Grid) -> _Grid:
    steps = len(grid.blocks[0].skipped)
    groups = groupby(grid.blocks, key=lambda block: block.path)
    return _Grid(
        title=words.branch(grid.branch),
        text=words.blocks(grid),
        steps=steps,
        lists=tuple(_list(path, list(own)) for path, own in groups),
        ticks=charts.step_ticks(steps),
    )


def _list(path: str, blocks: Sequence[Block]) -> _List:
    rows = [block.skipped for block in blocks]
    computed, part, skipped = charts.cells(rows)
    shares = [sum(row) / len(row) for row in rows]
    return _List(
        path=path,
        rows=len(rows),
        pixels=min(_ROW * len(rows), _MOST),
        computed=computed,
        part=part,
        skipped=skipped,
        shares=charts.shares(shares),
        most=max(shares),
        names=tuple(map(words.block, blocks)),
    )


def _costs(run: Run, times: _Cost | None) -> Iterator[_Cost]:
    flops, fraction = run.flops, run.flops_fraction
    if flops is not None and fraction is not None:
        yield _Cost(
            "FLOPs of the transformer",
            f"{words.percent(1.0 - fraction)} were saved.",
            (
                _Bar("uncached", 1.0, words.flops(flops), ours=False),
                _Bar("this run", fraction, words.flops(flops * fraction), ours=True),
            ),
        )
    if times is not None:
        yield times
    weights, state = run.weight_bytes, run.state_bytes
    longest = max(weights, state) or 1
    yield _Cost(
        "Memory",
        f"The cache took {words.percent(state / (weights or 1))} of what the weights take.",
        (
            _Bar("weights", weights / longest, words.size(weights), ours=False),
            _Bar("cache", state / longest, words.size(state), ours=True),
        ),
    )


def _times(seconds: float | None, reference: float | None) -> _Cost | None:
    if seconds is None:
        return None
    longest = max(seconds, reference or 0.0)
    own = _Bar("this run", seconds / longest, words.seconds(seconds), ours=True)
    if reference is None:
        return _Cost("Time", "Of the whole run.", (own,))
    text = f"{reference / seconds:.2f} times as fast."
    return _Cost(
        "Time", text, (_Bar("uncached", reference / longest, words.seconds(reference), ours=False), own)
    )
