"""What happened in a run, as plain values: nothing here holds a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from cache_dit.caching.maths.gate import Verdict


class StepRecord(NamedTuple):
    """One segment in one forward.

    Attributes:
        branch: Name of the CFG branch, such as "cond", or "" where there is one only.
        step: Step of the run, from 0, in this branch.
        segment: Index of the segment.
        verdict: Decision, reason and measured change.
        share: Of the tokens that a skipped module has computed all the same.
        error: How far off the forecast was that was made, or would have been (relative L1), where the gate
            had it measured; None elsewhere.
    """

    branch: str
    step: int
    segment: int
    verdict: Verdict
    share: float = 0.0
    error: float | None = None


@dataclass(slots=True)
class RunRecord:
    """One run: its steps and the largest size of its state.

    Attributes:
        steps: In the order in which they happened.
        state_bytes: Most bytes that cached tensors took at the end of any forward.
        total_steps: Steps of the run where they are known.
        sampler_unknown: An estimate of the latent was asked for, but how the sampler moves it is not known.
    """

    steps: list[StepRecord] = field(default_factory=list)
    state_bytes: int = 0
    total_steps: int | None = None
    sampler_unknown: bool = False

    def of(self, segment: int, branch: str) -> list[StepRecord]:
        """The steps of one segment in one branch."""
        return [step for step in self.steps if step.segment == segment and step.branch == branch]

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches seen, in order."""
        return tuple(dict.fromkeys(step.branch for step in self.steps))
