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
from cache_dit.caching.config import CacheConfig, CalibratorConfig
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.options import instance_of, whole
from cache_dit.errors import ConfigError
from cache_dit.tune.calibration import calls, model_name
from cache_dit.tune.recording import Call, record, run
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
        """The schedule that computes so many steps, for `ScheduleConfig` and for `save`.

        Raises:
            ConfigError: There is none.
        """
        whole(1)("computed_steps", computed_steps)
        fits = self.search.fewest(self.total) <= computed_steps <= self.total
        computed = self.search.choose(self.seen, self.total, computed_steps) if fits else None
        if computed is None:
            raise ConfigError(
                f"computed_steps is {computed_steps} of a run of {self.total} steps, for which "
                f"{type(self.search).__name__} has no schedule; give another number of steps, or the search "
                "other limits."
            )
        return Schedule(
            total=self.total,
            computed=computed,
            model=self.model,
            method=self.search.name,
            versions={
                "cache_dit": __version__,
                "diffusers": diffusers.__version__,
                "torch": torch.__version__,
            },
        )


def observe(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    num_inference_steps: int,
    search: Search = _DEFAULT,
    seed: int = 0,
    **arguments: Any,
) -> Observations:
    """Run a pipeline on a few prompts, and keep what a search needs to know. It is left as it was.

    Args:
        pipe: A diffusers pipeline, not cached.
        prompts: What the pipeline is called with, one run for each; a few are enough.
        num_inference_steps: Steps of each run.
        search: How schedules will be chosen; it decides what the runs cost. Default `DPCache()`.
        seed: Seed of the first run's noise; the next runs take the next numbers.
        arguments: Other arguments of the pipeline, such as `height` or `guidance_scale`.

    Returns:
        What was seen, from which `schedule` makes a schedule of any number of computed steps.

    Raises:
        ConfigError: The pipeline cannot be recorded or is cached.

    Examples:
        >>> seen = cache_dit.tune.observe(pipe, prompts, num_inference_steps=28)
        >>> seen.schedule(14).save("flux.json")
        >>> cache_dit.enable_cache(pipe, cache_dit.presets.dpcache(seen.schedule(9)))
    """
    instance_of(Search)("search", search)
    seen, total = [], 0
    for call in calls(pipe, prompts, num_inference_steps, seed, arguments):
        recording = record(pipe, call)
        total = len(recording.outputs)
        seen.append(search.look(recording, partial(_rerun, pipe, call)))
    return Observations(search, tuple(seen), total, model_name(pipe))


def _rerun(pipe: Any, call: Call, cache: CacheConfig, calibrator: CalibratorConfig) -> Tensor:
    """The final latent of the call with caching."""
    enable_cache(pipe, cache, calibrator)
    try:
        return run(pipe, call)
    finally:
        disable_cache(pipe)
