"""The statistics of the last run, as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from torch import nn

from cache_dit.caching.attach.attachment import Attachment
from cache_dit.caching.config import CacheConfig
from cache_dit.caching.engine.plan import Segment
from cache_dit.caching.engine.records import RunRecord, StepRecord
from cache_dit.caching.gates.accumulated import AccumulatedGate
from cache_dit.caching.maths.gate import Signal
from cache_dit.stats.flops import forward_flops

_LIMITS = ("residual_diff_threshold", "rel_l1_thresh", "threshold", "tolerance")


class Limit(NamedTuple):
    """The option that measured changes are held against.

    Attributes:
        option: Its name.
        value: Its value.
        summed: It is their sum since the last computed step that is held against it, not each by itself.
    """

    option: str
    value: float
    summed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What caching did in the last run of one transformer, for the block lists that decide together.

    Attributes:
        model: Class name of the transformer.
        lists: Attribute paths of the block lists.
        config: Configuration in short form.
        forecaster: What skipped steps were filled with.
        total_steps: Steps of the run in one branch, as run.
        steps: Every decision, in order: branch, step, verdict (skip, reason, measured change). Several in a
            step where every block decides for itself.
        state_bytes: Most bytes that cached tensors took, over all lists of the transformer.
        flops: FLOPs of one uncached forward of the transformer; None where they cannot be counted.
        flops_saved: FLOPs of the skipped blocks as a fraction of those of the uncached run; None likewise.
        pruned: Blocks that were skipped, of how many decisions. None (default) where not every block decides
            alone.
        limit: What changes are held against. None (default) for methods that measure none.
        requested: The configuration is one that requests brought along, not that of the transformer. Default
            False.
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
    pruned: tuple[int, int] | None = None
    limit: Limit | None = None
    requested: bool = False

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
        """Steps of a branch, by its place in `branches`, in which something was skipped."""
        return list(dict.fromkeys(step.step for step in self.of(branch) if step.verdict.skip))

    def changes(self, branch: int) -> dict[int, float]:
        """Measured change by step of a branch, by its place in `branches`; the mean of several."""
        found: dict[int, list[float]] = {}
        for step in self.of(branch):
            if step.verdict.change is not None:
                found.setdefault(step.step, []).append(step.verdict.change)
        return {step: fmean(changes) for step, changes in found.items()}

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
    segments, settings = session.plan.segments, attached.settings
    made = []
    for number, setting in enumerate(settings):
        # One setting is that of all lists, which decide together.
        members = [at for at, one in enumerate(segments) if len(settings) == 1 or one.family == number]
        leaders = {at for at in members if segments[at].policy is not None}
        steps = tuple(step for step in record.steps if step.segment in leaders)
        made.append(
            CacheStats(
                model=attached.lists.name,
                lists=tuple(dict.fromkeys(path for index in members for path in segments[index].paths)),
                config=setting.strify(),
                forecaster=setting.calibrator.describe(),
                total_steps=max((step.step for step in steps), default=-1) + 1,
                steps=steps,
                state_bytes=record.state_bytes,
                flops=None if flops is None else flops[attached.lists.model],
                flops_saved=None if flops is None else _saved(attached, record, members, flops),
                pruned=_pruned({at: segments[at] for at in leaders}, steps),
                limit=_limit(setting.cache),
                requested=attached.requested,
            )
        )
    return made


def _limit(cache: CacheConfig) -> Limit | None:
    names, gate = {field.name for field in dataclasses.fields(cache)}, cache.policy().gate
    for name in names.intersection(_LIMITS) if gate.learns or gate.signal is not Signal.NONE else ():
        return Limit(name, getattr(cache, name), isinstance(gate, AccumulatedGate))
    return None


def _pruned(leaders: dict[int, Segment], steps: tuple[StepRecord, ...]) -> tuple[int, int] | None:
    # A branch that is skipped whole has a decision of its own.
    parts = {at: leader for at, leader in leaders.items() if not leader.opaque}
    if len(parts) < 2 or any(part.stop - part.start > 1 for part in parts.values()):
        return None
    own = [step.verdict.skip for step in steps if step.segment in parts]
    return sum(own), len(own)


def _saved(
    attached: Attachment, record: RunRecord, members: list[int], flops: dict[nn.Module, int]
) -> float | None:
    segments = attached.session.plan.segments
    skipped = [step for step in record.steps if step.verdict.skip and step.segment in members]
    sizes = {
        at: sum(flops[block] for block in one.blocks[one.start : one.stop]) for at, one in enumerate(segments)
    }
    whole = len({(step.branch, step.step) for step in record.steps}) * flops[attached.lists.model]
    return sum(sizes[step.segment] * (1.0 - step.share) for step in skipped) / whole if whole else None
