"""What a diffusers pipeline tells about the run that it is in, without touching its scheduler."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from cache_dit.caching.engine.requests import Noise, Request, current_request


class PipelineTimeline:
    """Reads the step count and the position from a pipeline and its scheduler."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def total_steps(self) -> int | None:
        """Number of timesteps that the pipeline is going through."""
        # Where a run uses a part of the scheduler's timesteps (image to image) the pipeline knows better.
        count = vars(self._pipe).get("_num_timesteps")
        if count is None:
            timesteps = getattr(getattr(self._pipe, "scheduler", None), "timesteps", None)
            count = None if timesteps is None else len(timesteps)
        return count or None

    def position(self) -> int | None:
        """The scheduler's step index, a plain integer; None for schedulers without one."""
        scheduler: Any = getattr(self._pipe, "scheduler", None)
        if not hasattr(scheduler, "step_index"):
            return None
        index = scheduler.step_index
        # Schedulers set their index in the first step(), so there is none while the first step is computed.
        return -1 if index is None else int(index)

    def noise(self) -> Noise | None:
        """The scheduler's noise levels, and its strides where it is Euler's on flow matching."""
        scheduler: Any = getattr(self._pipe, "scheduler", None)
        sigmas, timesteps = getattr(scheduler, "sigmas", None), getattr(scheduler, "timesteps", None)
        if timesteps is None:
            return None
        name, config = type(scheduler).__name__, scheduler.config
        says_flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
        if sigmas is not None and ("FlowMatch" in name or says_flow):
            levels = tuple(sigmas.tolist())
            if config.get("invert_sigmas"):
                levels = tuple(1.0 - level for level in levels)
            strides = tuple(after - before for before, after in pairwise(levels))
            euler = name == "FlowMatchEulerDiscreteScheduler" and not config.get("stochastic_sampling", False)
            return Noise(levels[: len(strides)], strides if euler else None)
        span = float(config.get("num_train_timesteps", 1000))
        return Noise(tuple(time / span for time in timesteps.tolist()), None)


def pipeline_request(pipe: Any) -> Request:
    """The request for one call of a pipeline, with the configuration of the request around it."""
    around = current_request()
    request = Request(cache_config=around.cache_config, calibrator_config=around.calibrator_config)
    request.timeline = PipelineTimeline(pipe)
    return request
