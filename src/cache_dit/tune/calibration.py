"""Find, once for a model, which steps to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor

from cache_dit._version import __version__
from cache_dit.api import disable_cache, enable_cache
from cache_dit.caching.attach.targets import cached_models
from cache_dit.caching.config import CacheConfig, CalibratorConfig
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.options import instance_of, whole
from cache_dit.errors import ConfigError
from cache_dit.tune.recording import Call, check, record, run
from cache_dit.tune.searches import DPCache, Search

_DEFAULT = DPCache()


@dataclass(frozen=True)
class Observations:
    """What a search has kept of some runs; schedules with any number of computed steps come from it.

    Attributes:
        search: How schedules are chosen.
        seen: What it has kept of each run.
        total: Steps of a run.
        model: Class name of the transformer.
    """

    search: Search
    seen: tuple[Any, ...]
    total: int
    model: str

    def schedule(self, computed_steps: int) -> Schedule:
        """The schedule that computes so many steps.

        Raises:
            ConfigError: There is none.
        """
        whole(1)("computed_steps", computed_steps)
        fits = computed_steps <= self.total
        choice = self.search.choose(self.seen, self.total, computed_steps) if fits else None
        if choice is None:
            raise ConfigError(
                f"computed_steps is {computed_steps} of a run of {self.total} steps, which {self.search} "
                "cannot do; give another number of steps or a larger longest_gap."
            )
        return Schedule(
            total=self.total,
            computed=choice.computed,
            weights=choice.weights,
            model=self.model,
            method=self.search.name,
            versions={
                "cache_dit": __version__,
                "diffusers": diffusers.__version__,
                "torch": torch.__version__,
            },
        )


def calibrate(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    computed_steps: int,
    num_inference_steps: int,
    search: Search = _DEFAULT,
    seed: int = 0,
    **arguments: Any,
) -> Schedule:
    """Run a pipeline on a few prompts, and choose the steps that are worth computing.

    The pipeline is left as it was.

    Args:
        pipe: A diffusers pipeline, not cached.
        prompts: What the pipeline is called with, one run for each; a few are enough.
        computed_steps: How many steps the schedule is to compute, in a run of ...
        num_inference_steps: ... so many.
        search: How to choose.
        seed: Seed of the first run's noise; the next runs take the next numbers.
        arguments: Other arguments of the pipeline, such as `height` or `guidance_scale`.

    Returns:
        The schedule, for `ScheduleConfig` and for `save`.

    Raises:
        ConfigError: The pipeline cannot be recorded or is cached, or no schedule has so few steps.

    Example:
        >>> schedule = cache_dit.tune.calibrate(pipe, prompts, computed_steps=14, num_inference_steps=28)
        >>> schedule.save("flux.json")
        >>> cache_dit.enable_cache(pipe, cache_dit.ScheduleConfig(schedule=schedule))
    """
    whole(1)("computed_steps", computed_steps)
    seen = observe(
        pipe, prompts, num_inference_steps=num_inference_steps, search=search, seed=seed, **arguments
    )
    return seen.schedule(computed_steps)


def observe(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    num_inference_steps: int,
    search: Search = _DEFAULT,
    seed: int = 0,
    **arguments: Any,
) -> Observations:
    """The part of `calibrate` that runs the pipeline; all but `computed_steps` is as there.

    Example:
        >>> seen = cache_dit.tune.observe(pipe, prompts, num_inference_steps=28)
        >>> half, third = seen.schedule(14), seen.schedule(9)
    """
    whole(1)("num_inference_steps", num_inference_steps)
    instance_of(Search)("search", search)
    if isinstance(prompts, str) or not prompts:
        raise ConfigError(f"prompts is {prompts!r}; give a list of one prompt or more.")
    check(pipe)
    seen, total = [], 0
    for number, prompt in enumerate(prompts):
        call = Call(prompt, num_inference_steps, seed + number, arguments)
        recording = record(pipe, call)
        total = len(recording.outputs)
        seen.append(search.look(recording, partial(_rerun, pipe, call)))
    model = ", ".join(type(model).__name__ for model in cached_models(pipe))
    return Observations(search, tuple(seen), total, model)


def _rerun(pipe: Any, call: Call, cache: CacheConfig, calibrator: CalibratorConfig) -> Tensor:
    """The final latent of the call with caching."""
    enable_cache(pipe, cache, calibrator)
    try:
        return run(pipe, call)[-1].flatten()
    finally:
        disable_cache(pipe)
