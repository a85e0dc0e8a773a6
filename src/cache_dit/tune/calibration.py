"""Find, once for a model, which steps to compute."""

from __future__ import annotations

from collections.abc import Sequence
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
    whole(1)("num_inference_steps", num_inference_steps)
    instance_of(Search)("search", search)
    if isinstance(prompts, str) or not prompts:
        raise ConfigError(f"prompts is {prompts!r}; give a list of one prompt or more.")
    check(pipe)
    seen, total = [], num_inference_steps
    for number, prompt in enumerate(prompts):
        call = Call(prompt, num_inference_steps, seed + number, arguments)
        recording = record(pipe, call)
        total = len(recording.outputs)
        seen.append(search.look(recording, partial(_rerun, pipe, call)))
    computed = search.choose(seen, total, computed_steps) if computed_steps <= total else None
    if computed is None:
        raise ConfigError(
            f"computed_steps is {computed_steps} of a run of {total} steps, which {search} cannot do; give "
            "another number of steps or a larger longest_gap."
        )
    return Schedule(
        total=total,
        computed=computed,
        model=", ".join(type(model).__name__ for model in cached_models(pipe)),
        method=search.name,
        versions={
            "cache_dit": __version__,
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
        },
    )


def _rerun(pipe: Any, call: Call, cache: CacheConfig, calibrator: CalibratorConfig) -> Tensor:
    """The final latent of the call with caching."""
    enable_cache(pipe, cache, calibrator)
    try:
        return run(pipe, call)[-1].flatten()
    finally:
        disable_cache(pipe)
