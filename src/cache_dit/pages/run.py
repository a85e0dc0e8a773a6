"""What a report shows of the last run of one transformer, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from torch import nn

from cache_dit.caching.attach.attachment import Attachment
from cache_dit.caching.engine.records import StepRecord
from cache_dit.stats import CacheStats, Limit, stats_of
from cache_dit.stats.flops import forward_flops


class Step(NamedTuple):
    """One step of a branch, for the lists that decide together.

    Attributes:
        step: Its number, from 0.
        sigma: Noise level, from 1 to 0; None where nothing tells it.
        skipped: The share of its decisions that skipped: 0 or 1 unless every block decides alone.
        change: What was measured, the mean of several; None: nothing was.
        error: How far off the forecast was (relative L1), where that was measured.
        reason: Why it was computed or skipped; of several reasons the most frequent.
    """

    step: int
    sigma: float | None
    skipped: float
    change: float | None
    error: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """The steps of one branch, for the lists that decide together.

    Attributes:
        lists: Attribute paths of the lists.
        branch: Name of the branch; empty where there is one only.
        steps: In order.
        limit: What changes are held against; None: nothing was measured.
        blocks: Decisions of a step, where every block decides alone; None: there is one decision.
    """

    lists: tuple[str, ...]
    branch: str
    steps: tuple[Step, ...]
    limit: Limit | None
    blocks: int | None

    @property
    def cached(self) -> list[int]:
        """Steps in which something was skipped."""
        return [step.step for step in self.steps if step.skipped]


class Block(NamedTuple):
    """One block over the steps of a branch: the share of it that was skipped, by step."""

    path: str
    number: int
    skipped: tuple[float, ...]


class Grid(NamedTuple):
    """All blocks of a transformer in one branch."""

    branch: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The last run of one transformer.

    Attributes:
        model: Its class name.
        stats: As `cache_dit.summary` returns them.
        tracks: One for each branch of each of them.
        grids: One for each branch.
        forwards: Forwards of the run, over all branches.
        weight_bytes: Bytes of the parameters.
    """

    model: str
    stats: tuple[CacheStats, ...]
    tracks: tuple[Track, ...]
    grids: tuple[Grid, ...]
    forwards: int
    weight_bytes: int

    @property
    def flops(self) -> int | None:
        """FLOPs of the run, had nothing been skipped; None where they cannot be counted."""
        once = self.stats[0].flops
        return None if once is None else once * self.forwards

    @property
    def flops_fraction(self) -> float | None:
        """The share of them that was computed."""
        saved = [entry.flops_saved for entry in self.stats]
        known = [value for value in saved if value is not None]
        return 1.0 - sum(known) if len(known) == len(saved) else None

    @property
    def state_bytes(self) -> int:
        """Most bytes that cached tensors took."""
        return max(entry.state_bytes for entry in self.stats)


def run_of(attached: Attachment, sigmas: Sequence[float] | None) -> Run | None:
    """The last run of a transformer; None before its first forward.

    Args:
        attached: What is attached to it.
        sigmas: Noise level before every step of the pipeline's run; None: not known.
    """
    stats = stats_of(attached)
    if not stats or not any(entry.steps for entry in stats):
        return None
    forwards = {(step.branch, step.step) for entry in stats for step in entry.steps}
    # A segment that follows another one may be what is checked.
    record = attached.session.latest
    noted = () if record is None else record.steps
    errors = {(step.branch, step.step): step.error for step in noted if step.error is not None}
    return Run(
        model=stats[0].model,
        stats=tuple(stats),
        tracks=tuple(track for entry in stats for track in _tracks(entry, sigmas, errors)),
        grids=tuple(_grids(attached)),
        forwards=len(forwards),
        weight_bytes=sum(parameter.nbytes for parameter in attached.lists.model.parameters()),
    )


def _tracks(
    stats: CacheStats, sigmas: Sequence[float] | None, errors: Mapping[tuple[str, int], float]
) -> Iterator[Track]:
    alone = stats.pruned is not None
    for place, branch in enumerate(stats.branches):
        by_step: dict[int, list[StepRecord]] = {}
        for record in stats.of(place):
            by_step.setdefault(record.step, []).append(record)
        # Where a run is a part of the schedule it is the last part.
        offset = None if sigmas is None else len(sigmas) - stats.total_steps
        levels = {} if sigmas is None or offset is None or offset < 0 else dict(enumerate(sigmas[offset:]))
        steps = tuple(_step(records, levels, errors) for records in by_step.values())
        blocks = max(len(records) for records in by_step.values()) if alone else None
        measured = any(step.change is not None for step in steps)
        yield Track(
            lists=stats.lists,
            branch=branch if len(stats.branches) > 1 else "",
            steps=steps,
            limit=stats.limit if measured else None,
            blocks=blocks,
        )


def _step(
    records: Sequence[StepRecord], levels: Mapping[int, float], errors: Mapping[tuple[str, int], float]
) -> Step:
    verdicts, place = [record.verdict for record in records], (records[0].branch, records[0].step)
    ((reason, _),) = Counter(verdict.reason.value for verdict in verdicts).most_common(1)
    return Step(
        step=place[1],
        sigma=levels.get(place[1]),
        skipped=fmean(verdict.skip for verdict in verdicts),
        change=_mean(verdict.change for verdict in verdicts),
        error=errors.get(place),
        reason=reason,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _grids(attached: Attachment) -> Iterator[Grid]:
    """The share of every block that was skipped in every forward."""
    record, segments = attached.session.latest, attached.session.plan.segments
    if record is None:
        return
    blocks = [
        (flow.label, index, block)
        for flow, members in zip(attached.lists.flows, attached.lists.blocks, strict=True)
        for index, block in enumerate(members)
    ]
    shares = _shares(attached, [block for *_, block in blocks])
    for branch in record.branches:
        own = [step for step in record.steps if step.branch == branch]
        count = max(step.step for step in own) + 1
        skipped = [[0.0] * count for _ in blocks]
        for step in own:
            if not step.verdict.skip:
                continue
            segment = segments[step.segment]
            for module in segment.blocks[segment.start : segment.stop]:
                for row, share in shares.get(module, ()):
                    skipped[row][step.step] += share * (1.0 - step.share)
        rows = zip(blocks, skipped, strict=True)
        yield Grid(
            branch if len(record.branches) > 1 else "",
            tuple(Block(path, at, tuple(cells)) for (path, at, _), cells in rows),
        )


def _shares(attached: Attachment, blocks: Sequence[nn.Module]) -> dict[nn.Module, list[tuple[int, float]]]:
    """For what can be skipped, the rows of its blocks and its share of each, by FLOPs where known."""
    model, example = attached.lists.model, attached.session.example
    flops = (None if example is None else forward_flops(model, *example)) or {}
    shares = {model: [(row, 1.0) for row in range(len(blocks))]}
    for row, block in enumerate(blocks):
        # Any part of a block may be what is skipped: an attention module, for instance.
        for part in block.modules():
            share = 1.0 if part is block else flops.get(part, 0) / (flops.get(block, 0) or 1)
            shares.setdefault(part, []).append((row, share))
    return shares
