"""One run of one request on one transformer: where it is, and all that is kept for it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from cache_dit.caching.engine.clock import Clock
from cache_dit.caching.engine.condition import Watch
from cache_dit.caching.engine.estimation import Estimation
from cache_dit.caching.engine.records import RunRecord
from cache_dit.caching.engine.requests import Noise
from cache_dit.caching.engine.state import SegmentState
from cache_dit.caching.maths.gate import Verdict
from cache_dit.errors import ConfigError


@dataclass(slots=True, eq=False)
class BranchState:
    """What is kept for one branch of classifier-free guidance.

    Attributes:
        segments: One for each segment, and with `per_sample` for each sample; none behind the last step.
        estimations: Of the output, one for each sample with `per_sample`, else one; none where none is made.
        condition: What the last forward was conditioned on; None before the first.
        position: The scheduler's step index in the last forward; None where nothing tells it.
        latest: Number of the run's forward that was the last one of this branch.
        follows: Whether the first branch had a forward since then, whose decisions this one may take over.
    """

    segments: list[SegmentState] = field(default_factory=list)
    estimations: list[Estimation] = field(default_factory=list)
    condition: Hashable = None
    position: int | None = None
    latest: int = 0
    follows: bool = False

    def begin(self, segments: list[SegmentState]) -> None:
        """Start again with these, and with nothing learnt."""
        self.segments, self.estimations = segments, []

    def forget(self) -> None:
        """Drop everything that forecasts are made of."""
        self.estimations = []
        for segment in self.segments:
            segment.forget()

    def switches(self, condition: Hashable) -> bool:
        """Take a forward's condition; whether it is another than that of the forward before."""
        before, self.condition = self.condition, condition
        return before not in (None, condition)

    def fit(self, budget: int) -> None:
        """Lower the order of the forecasters until all of them fit, once the streams are known.

        Raises:
            ConfigError: Not even one value of every stream fits into so many bytes.
        """
        once = sum(segment.once for segment in self.segments)
        if once * max(segment.longest for segment in self.segments) <= budget:
            return
        if once > budget:
            raise ConfigError(
                f"memory_budget is {budget} bytes, but one value of every stream takes {once}; give at least "
                "that, or a smaller cache_dtype."
            )
        for segment in self.segments:
            segment.limit(budget // once)


@dataclass(slots=True, weakref_slot=True, eq=False)
class RunState:
    """Everything that one request keeps for one transformer.

    Attributes:
        clock: Tells the branch and the step of a forward.
        total: Steps of the run; None where that is not known.
        record: What happened so far.
        noise: The noise schedule; None where it is not known, or not needed.
        branches: By the name that the clock has for each, in the order of their first calls.
        watch: Reads the condition of a forward.
        verdicts: The latest decision of every segment.
        guide: Step and output of the last conditional forward, where the other branch is skipped whole.
        marker: What told the steps apart in the last forward: the scheduler's step index, or the timestep.
        largest: The largest marker so far.
        position: The scheduler's step index in the last forward; None where nothing tells it.
        forwards: How many there were.
    """

    clock: Clock
    total: int | None
    record: RunRecord
    noise: Noise | None = None
    branches: dict[str | int, BranchState] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    guide: tuple[int, tuple[Any, ...]] | None = None
    marker: float | None = None
    largest: float = 0.0
    position: int | None = None
    forwards: int = 0

    def reach(self, name: str | int, marker: float | None, position: int | None) -> bool:
        """Take where a forward is; whether steps have gone by without its branch, as between two experts."""
        self.marker, self.position = marker, position
        self.largest = max(self.largest, marker or 0.0)
        branch = self.branches.setdefault(name, BranchState())
        first = next(iter(self.branches.values()))
        branch.follows = first.latest > branch.latest
        self.forwards += 1
        branch.latest = self.forwards
        before, branch.position = branch.position, position
        # Schedulers have no index, and so the position -1, before their first step.
        return before is not None and position is not None and 0 <= before < position - 1

    def is_over(self, step: int) -> bool:
        """Whether a step is behind the end of the run, as far as that is known."""
        return self.total is not None and step >= self.total

    def noise_index(self, step: int) -> int:
        """Where the step is in the noise schedule; a scheduler knows it but for its first step."""
        assert self.noise is not None  # the caller has looked
        if self.position is not None and self.position >= 0:
            return self.position
        # Runs over a part of the schedule (image to image) go to its end.
        skipped = max(0, len(self.noise.levels) - self.total) if self.total else 0
        # Schedulers that have an index set it in their first step.
        return skipped if self.position is not None and self.total else skipped + step

    def sigma(self, step: int) -> float | None:
        """The noise level of the step, from 1 to 0; None where nothing tells it."""
        if self.noise is not None:
            index = self.noise_index(step)
            return self.noise.levels[index] if index < len(self.noise.levels) else None
        if self.marker is None or self.position is not None:
            return None
        # Timesteps count to 1000, or are noise levels already, as FLUX's.
        return self.marker / 1000.0 if self.largest > 1.5 else self.marker

    def measure(self) -> None:
        """Note how much is kept, where that is more than before."""
        branches = self.branches.values()
        kept = sum(segment.count() for branch in branches for segment in branch.segments)
        kept += sum(one.nbytes for branch in branches for one in branch.estimations)
        self.record.state_bytes = max(self.record.state_bytes, kept)

    def end(self, name: str | int) -> bool:
        """Free what a branch has kept behind its last step; whether that was the last branch."""
        self.branches[name].begin([])
        # One that had no forward since this branch's last but one has stopped earlier, as guidance may.
        going = self.forwards - len(self.branches)
        if any(branch.segments and branch.latest > going for branch in self.branches.values()):
            return False
        self.branches.clear()
        self.guide = None
        return True
