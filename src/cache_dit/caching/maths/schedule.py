"""A schedule found by calibration: which steps are computed, for which model, and where that comes from."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cache_dit.caching.maths.masks import stretch
from cache_dit.errors import ConfigError, ConfigTypeError
from cache_dit.files import reading, write_whole

_MOST_STEPS = 100_000


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps that are computed in a run; the others are skipped.

    Attributes:
        total: Steps of the run that it was found for.
        computed: Numbers of the computed steps from 0, rising; the first is 0.
        model: Class name of the transformer that it was found on. "" (default): unknown.
        method: How it was found. "" (default): unknown.
        versions: Of the packages that it was found with, by name. Default: none.

    Raises:
        ConfigError: The steps do not rise, do not begin with 0 or go beyond the total.
        ConfigTypeError: A field is of the wrong type.
    """

    total: int
    computed: tuple[int, ...]
    model: str = ""
    method: str = ""
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        # What comes from a file is a list.
        object.__setattr__(self, "computed", tuple(self.computed))
        for name, number in (("total", self.total), *(("computed", step) for step in self.computed)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise ConfigTypeError(f"{name} has {number!r}; give whole numbers.")
        if self.total > _MOST_STEPS:
            raise ConfigError(f"total is {self.total}; give {_MOST_STEPS} steps at most.")
        steps = self.computed
        if steps[:1] != (0,) or any(after <= before for before, after in itertools.pairwise(steps)):
            raise ConfigError(f"computed is {list(steps)}; give rising step numbers, the first of them 0.")
        if steps[-1] >= self.total:
            raise ConfigError(
                f"computed ends with step {steps[-1]} but total is {self.total}; the last step has number "
                f"{self.total - 1}."
            )

    def mask(self, total: int | None = None) -> tuple[int, ...]:
        """1 computes and 0 skips, by step, for a run of `total` steps.

        At another number of steps than the schedule's own, the same share of steps is computed at
        interpolated places, and the first and the last step always.
        """
        return _mask(self.computed, self.total, self.total if total is None else total)

    def save(self, path: str | Path) -> None:
        """Write it to a JSON file, whole or not at all.

        Raises:
            ConfigError: There is a file that is no schedule.
            OSError: The file cannot be written.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2)
        # One line for the steps.
        text = re.sub(r"\[[^][]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
        write_whole(Path(path), f"{text}\n", mark='"computed"')

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read what `save` wrote.

        Raises:
            ConfigError: The file is no schedule, is over 1 MB, or has a value that cannot be.
            OSError: There is no such file, or it cannot be read.
        """
        with reading(path, "schedule", "see cache_dit.tune.observe") as content:
            return cls(**content)


@functools.lru_cache(maxsize=64)
def _mask(computed: tuple[int, ...], own: int, total: int) -> tuple[int, ...]:
    mask = [int(step in computed) for step in range(own)]
    return tuple(mask if total == own else stretch(mask, total))
