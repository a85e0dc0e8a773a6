"""From a target to a profile: settings are tried on half of the prompts, and the best one on the others."""

from __future__ import annotations

import hashlib
import importlib.util
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from cache_dit._version import __version__
from cache_dit.api import disable_cache, enable_cache
from cache_dit.caching.options import whole
from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.presets import Preset
from cache_dit.tune.calibration import model_name
from cache_dit.tune.conditions import digests
from cache_dit.tune.explorers import Bisection, Explorer
from cache_dit.tune.gallery import Gallery, Picture
from cache_dit.tune.goal import Goal, Trial
from cache_dit.tune.optuna_search import OptunaSearch
from cache_dit.tune.profile import Profile
from cache_dit.tune.recording import check
from cache_dit.tune.space import Family, default_space
from cache_dit.tune.target import Measure, Target, figures_of, is_speed

Told = Callable[[str], None]
_LEAST_PROMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What tuning has found.

    Attributes:
        profile: The best setting, whether it meets the target or not: see its `met`.
        goal: The target, and what was made best within it.
        trials: All that was tried, on the tuning pictures.
    """

    profile: Profile
    goal: Goal
    trials: tuple[Trial, ...]


def tune(
    pipe: Any,
    prompts: Sequence[Any],
    target: str,
    *,
    num_inference_steps: int,
    seed: int = 0,
    space: Sequence[Family] | None = None,
    search: Explorer | None = None,
    by: Measure | None = None,
    quality: Measure = Measure.PSNR,
    told: Told | None = None,
    **arguments: Any,
) -> Tuned:
    """Find the method and the strength that meet a target best, and measure them on prompts kept apart.

    One half of the prompts, drawn by the seed, is for tuning. Settings are tried on it, and of those whose
    mean keeps the target by its standard error, or else by nothing, the best one is taken: the cheapest for a
    target of quality, the nearest for one of cost. The other half is for validation: the figures to trust are
    those. It costs an uncached run for each prompt, as many cached ones for each tuning prompt as there are
    trials, and two runs for each validation prompt. The pipeline is left as it was.

    Args:
        pipe: A diffusers pipeline, not cached, that knows `output_type="pt"`.
        prompts: What the pipeline is called with, 4 or more.
        target: "2x" (twice as fast), "psnr>=45", "ssim>=0.98", "tolerance 0.02" (root mean square error of
            values from 0 to 1), "flops<=0.4" or "time<=0.5", the last two as fractions of the uncached runs.
            It is held against the mean over the pictures.
        num_inference_steps: Steps of each run.
        seed: Seed of the first prompt's noise; the next ones take the next numbers. Default 0.
        space: The methods to try. None: `default_space()`.
        search: How trials are spent. None: `OptunaSearch()` where Optuna is installed, else `Bisection()`.
        by: `Measure.FLOPS` or `Measure.TIME`: what "2x" is measured by, and what is made small within a
            target of quality. None: for "2x" the time, if all uncached runs take the same but for a tenth,
            else the FLOPs; for a target of quality the FLOPs.
        quality: `Measure.PSNR` (default), `SSIM` or `TOLERANCE`: what is made best within a target of cost.
        told: Called with a line of text whenever something is done. None: nothing is told.
        arguments: Other arguments of the pipeline, such as `height` or `guidance_scale`.

    Returns:
        The profile of the best setting, and all that was tried.

    Raises:
        ConfigError: The target or another argument cannot be; the pipeline is cached; no method fits it.
        CacheDiTError: Optuna is asked for and not installed.

    Examples:
        >>> found = cache_dit.tune.tune(pipe, prompts, "psnr>=45", num_inference_steps=28)
        >>> found.profile.met, found.profile.method
        (True, 'trajectory 0.46')
        >>> found.profile.save("flux.json")
        >>> cache_dit.enable_cache(pipe, cache_dit.tune.Profile.load("flux.json"))
    """
    tell = told or _nothing
    whole(1)("num_inference_steps", num_inference_steps)
    check(pipe)
    _check_measures(by, quality)
    Target.parse(target)  # whatever is wrong shows before the first run
    tuning, validation = _halves(prompts, seed)
    families = _fitting(pipe, space or default_space(), tell)
    gallery = Gallery(pipe, num_inference_steps, arguments)
    for number, picture in enumerate((*tuning, *validation)):
        gallery.uncached(picture)
        tell(f"uncached picture {number + 1} of {len(prompts)}")
    goal = _goal(target, by, quality, gallery.steady)
    tell(f"target {goal.target}, with the best {goal.other.value}")
    explorer = search or (OptunaSearch() if importlib.util.find_spec("optuna") else Bisection())
    about = _about(pipe, num_inference_steps, arguments, tuning, goal)
    trials: list[Trial] = []
    conditions = {**about, **digests(pipe, arguments, families)}
    for trial in explorer.explore(families, goal, _evaluation(gallery, tuning), conditions):
        trials.append(trial)
        tell(f"trial {len(trials)}: {_line(trial, goal)}")
    best = goal.ranked(trials)[0]
    preset = {family.name: family for family in families}[best.family].preset(best.strength)
    tell(f"validating {best.name} on {len(validation)} other prompts")
    scores = gallery.scores(preset, validation, paired=True)
    profile = _profile(preset, best, figures_of(scores), trials, goal, about)
    return Tuned(profile=profile, goal=goal, trials=tuple(trials))


def _check_measures(by: Measure | None, quality: Measure) -> None:
    if by is not None and not by.is_cost:
        raise ConfigError(f"by is {by}; give Measure.FLOPS or Measure.TIME.")
    if quality.is_cost:
        raise ConfigError(f"quality is {quality}; give Measure.PSNR, Measure.SSIM or Measure.TOLERANCE.")


def _halves(prompts: Sequence[Any], seed: int) -> tuple[list[Picture], list[Picture]]:
    if isinstance(prompts, str) or len(prompts) < _LEAST_PROMPTS:
        raise ConfigError(
            f"prompts is {prompts!r}; give a list of {_LEAST_PROMPTS} prompts or more, half of them to "
            "validate what was found."
        )
    pictures = [Picture(prompt, seed + number) for number, prompt in enumerate(prompts)]
    # Lists of prompts are often sorted by subject.
    random.Random(seed).shuffle(pictures)
    half = len(pictures) // 2
    return pictures[:half], pictures[half:]


def _fitting(pipe: Any, space: Sequence[Family], tell: Told) -> list[Family]:
    """The families that this model takes."""
    fitting, reason = [], None
    for family in space:
        try:
            enable_cache(pipe, family.preset(family.mild))
            fitting.append(family)
        except CacheDiTError as error:
            reason = error
            tell(f"{family.name} is left out: {error}")
        finally:
            disable_cache(pipe)
    if not fitting:
        raise ConfigError(f"no method of the space fits {model_name(pipe)}; the last one: {reason}")
    return fitting


def _goal(text: str, by: Measure | None, quality: Measure, steady: bool) -> Goal:
    if by is None and is_speed(text):
        by = Measure.TIME if steady else Measure.FLOPS
    target = Target.parse(text, by)
    if target.measure.is_cost:
        return Goal(target=target, quality=quality, cost=target.measure)
    return Goal(target=target, quality=target.measure, cost=by or Measure.FLOPS)


def _evaluation(gallery: Gallery, tuning: Sequence[Picture]) -> Callable[[Family, float], Trial]:
    def evaluate(family: Family, strength: float) -> Trial:
        scores = gallery.scores(family.preset(strength), tuning)
        return Trial(family=family.name, strength=strength, scores=scores)

    return evaluate


def _about(
    pipe: Any, steps: int, arguments: Mapping[str, Any], tuning: Sequence[Picture], goal: Goal
) -> dict[str, Any]:
    """What scores hold for, as plain data."""
    pictures = repr([(picture.prompt, picture.seed) for picture in tuning])
    return {
        "model": model_name(pipe),
        "scheduler": type(getattr(pipe, "scheduler", None)).__name__,
        "steps": steps,
        "arguments": {
            name: value
            for name, value in arguments.items()
            if value is None or isinstance(value, (bool, int, float, str))
        },
        "pictures": hashlib.sha256(pictures.encode()).hexdigest(),
        "measures": [goal.quality.value, goal.cost.value],
        "versions": {
            "cache_dit": __version__,
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
        },
    }


def _profile(
    preset: Preset,
    best: Trial,
    measured: Mapping[Measure, Any],
    trials: Sequence[Trial],
    goal: Goal,
    about: Mapping[str, Any],
) -> Profile:
    made = preset.with_options(tuned_steps=about["steps"])
    return Profile(
        cache_config=made.cache_config,
        calibrator_config=made.calibrator_config,
        model=about["model"],
        scheduler=about["scheduler"],
        steps=about["steps"],
        arguments=about["arguments"],
        target=str(goal.target),
        met=goal.target.met(measured[goal.target.measure].mean),
        method=best.name,
        predicted=best.figures,
        measured=measured,
        tried=tuple(
            (trial.name, {measure: figure.mean for measure, figure in trial.figures.items()})
            for trial in trials
        ),
        versions=about["versions"],
    )


def _line(trial: Trial, goal: Goal) -> str:
    figures = (f"{one.value} {trial.mean(one):.4g}" for one in (goal.quality, goal.cost))
    return f"{trial.name}: {', '.join(figures)}{'' if goal.met(trial) else ', misses the target'}"


def _nothing(line: str) -> None:
    del line
