"""The statistics of the last run, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

from torch import nn

from cache_dit.caching.attach.attachment import Attachment
from cache_dit.caching.engine.records import RunRecord, StepRecord
from cache_dit.report.flops import forward_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What caching did in the last run of one transformer, for the block lists that decide together.

    Attributes:
        model: Class name of the transformer.
        lists: Attribute paths of the block lists.
        config: Configuration in short form.
        forecaster: What skipped steps were filled with.
        total_steps: Steps of the run in one branch, as run.
        steps: Every decision, in order: branch, step, verdict (skip, reason, measured change).
        state_bytes: Most bytes that cached tensors took, over all lists of the transformer.
        flops: FLOPs of one uncached forward of the transformer; None where they cannot be counted.
        flops_saved: FLOPs of the skipped blocks as a fraction of those of the uncached run; None likewise.
    """

    model: str
    lists: tuple[str, ...]
    config: str
    forecaster: str
    total_steps: int
    steps: tuple[StepRecord, ...]
    state_bytes: int
    flops: int | None
    flops_saved: float | None

    @property
    def branches(self) -> tuple[str, ...]:
        """CFG branches in the order of their calls; one empty name where there is one branch."""
        return tuple(dict.fromkeys(step.branch for step in self.steps))

    @property
    def cached_steps(self) -> list[int]:
        """Skipped steps of the first branch."""
        return self.skipped(0)

    @property
    def cfg_cached_steps(self) -> list[int]:
        """Skipped steps of the second branch."""
        return self.skipped(1)

    @property
    def residual_diffs(self) -> dict[int, float]:
        """Measured change by step in the first branch."""
        return self.changes(0)

    @property
    def cfg_residual_diffs(self) -> dict[int, float]:
        """Measured change by step in the second branch."""
        return self.changes(1)

    def skipped(self, branch: int) -> list[int]:
        """Skipped steps of a branch, by its place in `branches`."""
        return [step.step for step in self.of(branch) if step.verdict.skip]

    def changes(self, branch: int) -> dict[int, float]:
        """Measured change by step of a branch, by its place in `branches`."""
        return {step.step: step.verdict.change for step in self.of(branch) if step.verdict.change is not None}

    def of(self, branch: int) -> list[StepRecord]:
        """Decisions of a branch, by its place in `branches`."""
        names = self.branches
        return [step for step in self.steps if branch < len(names) and step.branch == names[branch]]


def stats_of(attached: Attachment) -> list[CacheStats]:
    """One `CacheStats` for every decision of a transformer; empty before its first forward."""
    session, record = attached.session, attached.session.latest
    if record is None or session.example is None:
        return []
    flops = forward_flops(attached.lists.model, *session.example)
    plan = session.plan
    leaders = [number for number, segment in enumerate(plan.segments) if segment.gate is not None]
    made = []
    for number, setting in zip(leaders, cycle(attached.settings), strict=False):
        members = [at for at, other in enumerate(plan.segments) if number in (at, other.leader)]
        steps = tuple(step for step in record.steps if step.segment == number)
        made.append(
            CacheStats(
                model=attached.lists.name,
                lists=tuple(dict.fromkeys(path for index in members for path in plan.segments[index].paths)),
                config=f"{setting.cache.cache_type.value}_{setting.cache.strify()}_{setting.calibrator.strify()}",
                forecaster=setting.calibrator.describe(),
                total_steps=max((step.step for step in steps), default=-1) + 1,
                steps=steps,
                state_bytes=record.state_bytes,
                flops=None if flops is None else flops[attached.lists.model],
                flops_saved=None if flops is None else _saved(attached, record, members, flops),
            )
        )
    return made


def _saved(
    attached: Attachment, record: RunRecord, members: list[int], flops: dict[nn.Module, int]
) -> float | None:
    segments = attached.session.plan.segments
    skipped = [
        segments[step.segment] for step in record.steps if step.verdict.skip and step.segment in members
    ]
    saved = sum(flops[block] for segment in skipped for block in segment.blocks[segment.start : segment.stop])
    whole = len(record.steps) // len(segments) * flops[attached.lists.model]
    return saved / whole if whole else None
