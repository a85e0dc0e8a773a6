"""What tuning has found, as a file: a preset with the model, the steps and the figures that it holds for."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_dit.configs import load_configs, plain_configs
from cache_dit.files import reading, write_whole
from cache_dit.presets import Preset
from cache_dit.tune.target import Figure, Measure

_FORMAT = "cache_dit profile 1"


@dataclass(frozen=True, kw_only=True)
class Profile(Preset):
    """A preset that was tuned: `cache_dit.enable_cache(pipe, profile)`.

    It is refused for another model. A run of another number of steps gets a warning: schedules and shares of
    the steps are stretched to it, thresholds stay; what cannot be stretched (a steps mask) is refused then.

    Attributes:
        steps: Denoising steps that it was tuned for.
        scheduler: Class name of the scheduler.
        arguments: Other arguments that the pipeline was called with, guidance among them; numbers, words and
            flags alone.
        target: What was asked for, such as "psnr>=45".
        met: Whether the mean over the validation pictures keeps the target.
        method: The method and its strength, such as "trajectory 0.46".
        predicted: By measure: the figures on the tuning pictures, on which it was chosen.
        measured: By measure: the figures on the validation pictures, which had no part in that.
        tried: Name and means of every setting that was tried.
        versions: Of the packages, by name.
    """

    steps: int
    scheduler: str
    arguments: Mapping[str, Any]
    target: str
    met: bool
    method: str
    predicted: Mapping[Measure, Figure]
    measured: Mapping[Measure, Figure]
    tried: tuple[tuple[str, Mapping[Measure, float]], ...]
    versions: Mapping[str, str]

    def as_data(self) -> dict[str, Any]:
        """What `save` writes, as words, numbers, lists and mappings."""
        return {
            "format": _FORMAT,
            "model": self.model,
            "scheduler": self.scheduler,
            "steps": self.steps,
            "arguments": dict(self.arguments),
            "target": self.target,
            "met": self.met,
            "method": self.method,
            "config": plain_configs(cache_config=self.cache_config, calibrator_config=self.calibrator_config),
            "predicted": {one.value: dataclasses.asdict(figure) for one, figure in self.predicted.items()},
            "measured": {one.value: dataclasses.asdict(figure) for one, figure in self.measured.items()},
            "tried": [
                {"method": name, **{one.value: mean for one, mean in means.items()}}
                for name, means in self.tried
            ],
            "versions": dict(self.versions),
        }

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all.

        Raises:
            ConfigError: There is a file that is no profile.
            OSError: The file cannot be written.
        """
        text = json.dumps(self.as_data(), indent=2, allow_nan=False)
        # What holds no list or mapping of its own goes on one line.
        text = re.sub(r"[\[{][^][{}]*[\]}]", lambda found: re.sub(r"\s+", " ", found[0]), text)
        write_whole(Path(path), f"{text}\n", mark=_FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read what `save` has written. Nothing in it is executed.

        Raises:
            ConfigError: It is no profile, is over 1 MB, or has a value that cannot be.
            OSError: There is no such file, or it cannot be read.
        """
        with reading(path, "profile", "make one with cache-dit tune", _FORMAT) as found:
            return _read(found)


def _read(found: Mapping[str, Any]) -> Profile:
    if not isinstance(found["config"], Mapping):
        raise TypeError(f"config is {found['config']!r}, which is no mapping")
    config = load_configs(found["config"])
    return Profile(
        cache_config=config["cache_config"],
        calibrator_config=config["calibrator_config"],
        model=_text(found, "model"),
        scheduler=_text(found, "scheduler"),
        steps=_whole(found, "steps"),
        arguments=dict(found["arguments"]),
        target=_text(found, "target"),
        met=found["met"] is True,
        method=_text(found, "method"),
        predicted=_figures(found["predicted"]),
        measured=_figures(found["measured"]),
        tried=tuple(
            (_text(one, "method"), {key: _number(one, key.value) for key in Measure if key.value in one})
            for one in found["tried"]
        ),
        versions={str(name): str(version) for name, version in found["versions"].items()},
    )


def _figures(found: Mapping[str, Any]) -> dict[Measure, Figure]:
    return {
        Measure(name): Figure(
            **{one: _number(figure, one) for one in ("mean", "low", "high", "worst")},
            pictures=_whole(figure, "pictures"),
        )
        for name, figure in found.items()
    }


def _text(found: Mapping[str, Any], name: str) -> str:
    if not isinstance(found[name], str):
        raise TypeError(f"{name} is {found[name]!r}, which is no text")
    return str(found[name])


def _whole(found: Mapping[str, Any], name: str) -> int:
    if type(found[name]) is not int or found[name] < 1:
        raise TypeError(f"{name} is {found[name]!r}, which is no whole number above 0")
    return int(found[name])


def _number(found: Mapping[str, Any], name: str) -> float:
    if type(found[name]) not in (int, float) or not math.isfinite(found[name]):
        raise TypeError(f"{name} is {found[name]!r}, which is no number")
    return float(found[name])
