"""Settings chosen by Optuna, with a storage from which a run that was killed goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.tune.explorers import Evaluate, Explorer, first_halvings, halving
from cache_dit.tune.goal import Goal, Trial
from cache_dit.tune.space import Family
from cache_dit.tune.target import Measure, Score

_SCORES, _FAMILY = "scores", "family"
_DATABASES = (".db", ".sqlite", ".sqlite3")


@dataclass(frozen=True, kw_only=True)
class OptunaSearch(Explorer):
    """Search for quality and cost at once, where the target is kept, with Optuna (extra "tune").

    The first trials, and then every other one, are those of `Bisection`, since the strength of a family is
    known to be monotone; between them are those that Optuna's tree-structured Parzen estimator for several
    objectives (arXiv 2304.11127) proposes, which also sees families that are better than they began.

    Attributes:
        seed: Of the sampler. Default 0.
        storage: File that keeps all trials, so that a run that was killed goes on, and a finished one can be
            given more trials: a SQLite database where its name ends with ".db", ".sqlite" or ".sqlite3",
            else Optuna's journal. Trials of other conditions (model, steps, prompts, target, versions ...)
            may be in it too. One run at a time. None (default): nothing is kept.
    """

    seed: int = 0
    storage: Path | None = None

    def explore(
        self, space: Sequence[Family], goal: Goal, evaluate: Evaluate, about: Mapping[str, Any]
    ) -> Iterator[Trial]:
        optuna = _imported()
        families = {family.name: family for family in space}
        with _quiet(optuna):
            study = self._study(optuna, goal, list(families), about)
            done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            made = {(trial.family, trial.strength): trial for trial in map(_read, done)}
            yield from made.values()
            for number in range(len(done), self.trials):
                tried = list(made.values())
                found = first_halvings(space, goal, tried)
                if found is None and number % 2:
                    found = halving(space, goal, tried)
                if found is not None:
                    family, strength = found
                    study.enqueue_trial({_FAMILY: family.name, _place(family): family.place(strength)})
                asked = study.ask()
                family = families[asked.suggest_categorical(_FAMILY, list(families))]
                strength = family.strength(asked.suggest_float(_place(family), 0.0, 1.0))
                trial = made.get((family.name, strength))
                if trial is None:
                    trial = made[family.name, strength] = evaluate(family, strength)
                    yield trial
                asked.set_user_attr(_SCORES, _plain(trial))
                slack = goal.target.slack(trial.mean(goal.target.measure))
                asked.set_constraint("kept", -slack)
                # Else trials would go to the whole front, most of which is of no use for this target.
                asked.set_constraint("near", slack - goal.target.band)
                study.tell(asked, [trial.mean(goal.quality), trial.mean(goal.cost)])

    def _study(self, optuna: ModuleType, goal: Goal, names: Sequence[str], about: Mapping[str, Any]) -> Any:
        conditions = json.dumps({**about, "target": str(goal.target), "families": names}, sort_keys=True)
        study = optuna.create_study(
            study_name=hashlib.sha256(conditions.encode()).hexdigest()[:16],
            storage=self._opened(optuna),
            sampler=optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=0),
            directions=["maximize" if one.rises else "minimize" for one in (goal.quality, goal.cost)],
            load_if_exists=True,
        )
        states = optuna.trial.TrialState
        for broken in study.get_trials(states=(states.RUNNING, states.WAITING)):  # by a kill
            study.tell(broken.number, state=states.FAIL)
        return study

    def _opened(self, optuna: ModuleType) -> Any:
        if self.storage is None:
            return None
        try:
            self.storage.parent.mkdir(parents=True, exist_ok=True)
            if self.storage.suffix in _DATABASES:
                return optuna.storages.RDBStorage(f"sqlite:///{self.storage.resolve()}")
            backend = optuna.storages.journal.JournalFileBackend(str(self.storage))
            return optuna.storages.JournalStorage(backend)
        except OSError:
            raise
        except Exception as error:  # whatever reading a file of another kind may raise
            raise ConfigError(
                f"storage is {self.storage}, which Optuna cannot read ({type(error).__name__}: {error}); "
                "give a file that cache-dit tune has made, or a name that is free."
            ) from error


def _imported() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise CacheDiTError(
            f"{error}; install it: pip install 'cache-dit[tune]', or search with cache_dit.tune.Bisection."
        ) from error
    return optuna


@contextmanager
def _quiet(optuna: ModuleType) -> Iterator[None]:
    """Without a line for every trial, which the caller shows in its own way."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _place(family: Family) -> str:
    return f"place of {family.name}"


def _plain(trial: Trial) -> dict[str, Any]:
    rows = [{measure.value: value for measure, value in score.items()} for score in trial.scores]
    return {"family": trial.family, "strength": trial.strength, "rows": rows}


def _read(kept: Any) -> Trial:
    found = kept.user_attrs[_SCORES]
    rows: tuple[Score, ...] = tuple(
        {Measure(name): float(value) for name, value in row.items()} for row in found["rows"]
    )
    return Trial(family=found["family"], strength=found["strength"], scores=rows)
