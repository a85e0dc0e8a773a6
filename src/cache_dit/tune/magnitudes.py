"""MagCache's table of norm ratios, measured once for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from cache_dit.api import disable_cache, enable_cache
from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.forecasters.reuse import Reuse
from cache_dit.caching.gates.interval import IntervalConfig
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import instance_of, option, options
from cache_dit.tune.calibration import calls
from cache_dit.tune.recording import run


@dataclass(frozen=True, slots=True, eq=False)
class _Ratios(Reuse):
    """Forecasts nothing of use, but notes the ratio of each value's norm to that of the one before."""

    found: dict[int, list[float]]

    def observe(self, state: Tensor | None, at: Moment, value: Tensor) -> Tensor:
        ratio = 1.0 if state is None else norm_ratio(value, state)
        self.found.setdefault(at.step, []).append(ratio)
        return value

    def spare(self, state: Tensor | None) -> None:
        return None  # the value before is still needed


@options
class _Measured(CalibratorConfig):
    found: dict[int, list[float]] = option(instance_of(dict), default=None)

    def forecaster(self, *, main: bool) -> Forecaster:
        return _Ratios(self.found) if main else Reuse()


def magcache_ratios(
    pipe: Any, prompts: Sequence[Any], *, num_inference_steps: int, seed: int = 0, **arguments: Any
) -> tuple[float, ...]:
    """The `ratios` of `MagCacheConfig`: how much the blocks' residual grows from step to step.

    MagCache (arXiv 2506.09045). Each prompt costs one run; the authors take one prompt. Branches of
    guidance and block lists that are skipped apart count with their mean. The pipeline is left as it was.

    Args:
        pipe: A diffusers pipeline, not cached.
        prompts: What the pipeline is called with, one run for each.
        num_inference_steps: Steps of each run.
        seed: Seed of the first run's noise; the next runs take the next numbers.
        arguments: Other arguments of the pipeline, such as `height` or `guidance_scale`.

    Returns:
        One ratio for each step, the first 1; the last step takes that of the one before it.

    Raises:
        ConfigError: The pipeline cannot be recorded or is cached.
        UnsupportedModelError: Its transformer is not known.
    """
    found: dict[int, list[float]] = {}
    for call in calls(pipe, prompts, num_inference_steps, seed, arguments):
        # Nothing is skipped at this interval, but the engine does not know.
        enable_cache(pipe, IntervalConfig(interval=1, max_warmup_steps=0), _Measured(found=found))
        try:
            run(pipe, call)
        finally:
            disable_cache(pipe)
    ratios = [fmean(found[step]) for step in sorted(found)]
    # The engine looks at nothing that no later step could use.
    return (*ratios, ratios[-1])


def norm_ratio(value: Tensor, before: Tensor) -> float:
    """How much the tokens of a residual, (..., tokens, channels), have grown: the mean ratio of L2 norms."""
    new, old = (torch.linalg.vector_norm(each, dim=-1, dtype=torch.float32) for each in (value, before))
    return float((new / old).mean())
