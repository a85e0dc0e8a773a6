"""Which step and which CFG branch a forward belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

_MOST_BRANCHES = 8
"""Unannounced calls at one timestep beyond this are no branches of one step but forwards without a run."""


class Tick(NamedTuple):
    """The place of one forward in its run."""

    branch: str | int
    step: int


@dataclass(slots=True)
class Clock:
    """Counts the forwards of one run.

    A branch is told by its name where the pipeline gives one, else by the number of the call within its
    step. A step of unnamed calls ends after `calls_per_step` calls, or, where that is None, when the marker
    changes: anything that is constant within a step, such as the timestep or the scheduler's step index.

    Attributes:
        calls_per_step: See above.
        strict: Nobody announces where a run begins, so a run that was dropped must be recognised from its
            successor: the number of calls a step and the order of time must stay as they began.
    """

    calls_per_step: int | None = None
    strict: bool = False
    marker: Any = None
    direction: int = 0
    step: int = -1
    ordinal: int = -1
    first_step_calls: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    names_of_step: set[str] = field(default_factory=set)

    @property
    def certain(self) -> bool:
        """Whether the forward counted last is in this run for certain.

        Two unnamed calls at the first timestep are two branches, or a run that was dropped after one call
        and its successor. The second step tells, when it is over.
        """
        unnamed = self.strict and self.calls_per_step is None
        return not (unnamed and self.step == 1 and self.first_step_calls > 1)

    def tick(self, name: str | None, marker: Any) -> Tick | None:
        """Count one forward; None when it cannot belong to this run, so a new one has begun.

        Args:
            name: Branch name, or None.
            marker: A number that moves one way over a run or None where nothing is known.
        """
        started = self.step >= 0 or bool(self.counts)
        moved = not started or marker is None or marker != self.marker
        if started and moved and self._turned_back(marker):
            return None
        tick = self._named(name, moved) if name is not None else self._counted(moved, marker is not None)
        self.marker = marker
        return tick

    def _turned_back(self, marker: Any) -> bool:
        if marker is None or self.marker is None:
            return False
        direction = 1 if marker > self.marker else -1
        self.direction = self.direction or direction
        return direction != self.direction

    def _named(self, name: str, moved: bool) -> Tick | None:
        if moved:
            self.names_of_step.clear()
        elif self.strict and name in self.names_of_step:
            return None
        self.names_of_step.add(name)
        step = self.counts.get(name, 0)
        self.counts[name] = step + 1
        return Tick(name, step)

    def _counted(self, moved: bool, marked: bool) -> Tick | None:
        calls, done = self.calls_per_step, self.ordinal + 1
        # Without a marker counting is all there is; with one, a step that ends early or late betrays a run
        # that was dropped in the middle.
        advance = moved if calls is None else self.step < 0 or done >= calls
        if self.strict and marked and self.step >= 0 and advance != moved:
            return None
        if not advance:
            if self.strict and calls is None and done >= _MOST_BRANCHES:
                return None
            self.ordinal = done
            return Tick(done, self.step)
        if self.step == 0:
            self.first_step_calls = done
        elif self.strict and self.step > 0 and done != self.first_step_calls:
            return None
        self.step += 1
        self.ordinal = 0
        return Tick(0, self.step)
