"""Which settings are tried: what all ways have in common, and bisection, which needs no other package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache_dit.caching.options import whole
from cache_dit.tune.goal import Goal, Trial
from cache_dit.tune.space import Family

Evaluate = Callable[[Family, float], Trial]
"""Draws the tuning pictures with a family at a strength."""

_LEAST = 3  # trials of every family, before the best ones get the rest


@dataclass(frozen=True, kw_only=True)
class Explorer(ABC):
    """A way to spend trials.

    Attributes:
        trials: Most settings that are tried. Default 24.
    """

    trials: int = 24

    def __post_init__(self) -> None:
        whole(1)("trials", self.trials)

    @abstractmethod
    def explore(
        self, space: Sequence[Family], goal: Goal, evaluate: Evaluate, about: Mapping[str, Any]
    ) -> Iterator[Trial]:
        """The trials as they are made; `about` are the conditions that the scores hold for, as plain data."""


@dataclass(frozen=True, kw_only=True)
class Bisection(Explorer):
    """Halve the range of every family's strength, three times, and then that of the best ones further.

    What a run costs and how near it comes both fall as strength rises, so the strength at which the target is
    just kept lies between one that keeps it and one that does not.
    """

    def explore(
        self, space: Sequence[Family], goal: Goal, evaluate: Evaluate, about: Mapping[str, Any]
    ) -> Iterator[Trial]:
        made: list[Trial] = []
        while len(made) < self.trials and (
            found := first_halvings(space, goal, made) or halving(space, goal, made)
        ):
            made.append(evaluate(*found))
            yield made[-1]


def first_halvings(space: Sequence[Family], goal: Goal, made: Sequence[Trial]) -> tuple[Family, float] | None:
    """What to try next of the first family with few trials; None where all have enough."""
    few = [one for one in space if sum(trial.family == one.name for trial in made) < _LEAST]
    return next((found for one in few if (found := _middle(one, goal, made)) is not None), None)


def halving(space: Sequence[Family], goal: Goal, made: Sequence[Trial]) -> tuple[Family, float] | None:
    """What to try next of the best family that can be told more of; None where there is none."""
    known = {family.name: family for family in space}
    best = (known[name] for name in dict.fromkeys(trial.family for trial in goal.ranked(made)))
    return next((found for one in best if (found := _middle(one, goal, made)) is not None), None)


def _middle(family: Family, goal: Goal, made: Sequence[Trial]) -> tuple[Family, float] | None:
    """Between the strongest of its strengths that was too mild and the mildest that was too strong."""
    own = [trial for trial in made if trial.family == family.name]
    # A bound on the quality is kept by mild settings, one on the cost by strong ones.
    too_mild = [trial for trial in own if goal.met(trial) != goal.target.measure.is_cost]
    low = max((family.place(trial.strength) for trial in too_mild), default=0.0)
    high = min((family.place(trial.strength) for trial in own if trial not in too_mild), default=1.0)
    strength = family.strength((low + high) / 2)
    return None if any(trial.strength == strength for trial in own) else (family, strength)
