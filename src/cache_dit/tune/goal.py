"""Which of the settings that were tried is the best for a target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cache_dit.errors import ConfigError
from cache_dit.tune.target import Figure, Measure, Score, Target, figures_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A method at one strength, and what it has scored on the tuning pictures.

    Attributes:
        family: Name of the method.
        strength: Its strength.
        scores: One for each picture.
    """

    family: str
    strength: float
    scores: tuple[Score, ...]

    @property
    def name(self) -> str:
        """The method and its strength."""
        return f"{self.family} {self.strength:g}"

    @property
    def figures(self) -> dict[Measure, Figure]:
        """The mean and its interval, by measure."""
        return figures_of(self.scores)

    def mean(self, measure: Measure) -> float:
        """Over the pictures.

        Raises:
            ConfigError: It cannot be measured of this model.
        """
        if any(measure not in score for score in self.scores):
            raise ConfigError(
                f"{measure.value} cannot be measured of this model's outputs; give another target"
                + (", or by=Measure.TIME." if measure is Measure.FLOPS else ".")
            )
        return statistics.fmean(score[measure] for score in self.scores)

    def error(self, measure: Measure) -> float:
        """Standard error of the mean; 0 for one picture."""
        values = [score[measure] for score in self.scores]
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A target, and what is made as good as possible within it.

    Attributes:
        target: The bound.
        quality: Measure of nearness; what is made best within a bound on the cost.
        cost: Measure of cost; what is made best within a bound on nearness.
    """

    target: Target
    quality: Measure
    cost: Measure

    @property
    def other(self) -> Measure:
        """What is made best within the bound."""
        return self.quality if self.target.measure.is_cost else self.cost

    def met(self, trial: Trial) -> bool:
        """Whether the mean over the tuning pictures keeps the bound."""
        return self.target.met(trial.mean(self.target.measure))

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The best trial first.

        Those come first whose mean keeps the bound by its standard error, so that it should on other
        pictures too; then those whose mean keeps it; each with the best in `other` first. Then those that
        miss it, the nearest first.
        """
        return sorted(trials, key=self._rank)

    def front(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that no other beats in both quality and cost, the cheapest first."""
        best: list[Trial] = []
        for trial in sorted(
            trials, key=lambda trial: (trial.mean(self.cost), -self._good(trial, self.quality))
        ):
            if not best or self._good(trial, self.quality) > self._good(best[-1], self.quality):
                best.append(trial)
        return best

    def _rank(self, trial: Trial) -> tuple[int, float]:
        measure = self.target.measure
        if not self.met(trial):
            return 2, -self.target.slack(trial.mean(measure))
        unlucky = trial.error(measure) * (-1 if measure.rises else 1)
        safe = self.target.met(trial.mean(measure) + unlucky)
        return 0 if safe else 1, -self._good(trial, self.other)

    @staticmethod
    def _good(trial: Trial, measure: Measure) -> float:
        return trial.mean(measure) if measure.rises else -trial.mean(measure)
