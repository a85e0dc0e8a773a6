"""What is found out about a model once, from a few uncached runs, for `TrajectoryCalibratorConfig`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cache_dit.caching.attach.targets import cached_models
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.caching.options import whole
from cache_dit.errors import ConfigError
from cache_dit.tune.recording import Call, check, record


def calibrate(
    pipe: Any, prompts: Sequence[Any], *, num_inference_steps: int, seed: int = 0, **arguments: Any
) -> Trajectory:
    """Run a pipeline on a few prompts, and keep how the outputs of different steps go together.

    That is all that the best linear estimate needs, see `caching.maths.trajectory`: for any choice of
    computed steps, and with interpolation for other numbers of steps. Each prompt costs one uncached run; 8
    are enough, with 24 the worst picture is better. The pipeline is left as it was.

    Args:
        pipe: A diffusers pipeline, not cached, whose sampler is Euler's on flow matching.
        prompts: What the pipeline is called with, one run for each.
        num_inference_steps: Steps of each run.
        seed: Seed of the first run's noise; the next runs take the next numbers.
        arguments: Other arguments of the pipeline, such as `height` or `guidance_scale`; what is found holds
            for those.

    Returns:
        For `TrajectoryCalibratorConfig` and `cache_dit.presets`, and for `save`.

    Raises:
        ConfigError: The pipeline cannot be recorded, is cached, or has another sampler.

    Examples:
        >>> trajectory = cache_dit.tune.calibrate(pipe, prompts, num_inference_steps=28)
        >>> trajectory.save("flux.json")
    """
    grams: list[Tensor] = []
    sigmas: tuple[float, ...] = ()
    for call in calls(pipe, prompts, num_inference_steps, seed, arguments):
        recording = record(pipe, call)
        noise, outputs = recording.noise, recording.outputs.double()
        if noise is None or noise.strides is None:
            raise ConfigError(
                f"{type(pipe).__name__} with a {type(pipe.scheduler).__name__} does not move the latent by "
                "multiples of the transformer's output, as Euler's method on flow matching does, so there is "
                "nothing to calibrate; use cache_dit.tune.observe."
            )
        grams.append(outputs @ outputs.T / outputs.shape[1])
        sigmas = (*noise.levels, noise.levels[-1] + noise.strides[-1])
    return Trajectory(sigmas, torch.stack(grams).mean(0), model_name(pipe), len(grams))


def calls(
    pipe: Any, prompts: Sequence[Any], steps: int, seed: int, arguments: dict[str, Any]
) -> Iterator[Call]:
    """The calls to record, once everything about them is checked.

    Raises:
        ConfigError: The pipeline cannot be recorded or is cached; or a value cannot be.
    """
    whole(1)("num_inference_steps", steps)
    if isinstance(prompts, str) or not prompts:
        raise ConfigError(f"prompts is {prompts!r}; give a list of one prompt or more.")
    check(pipe)
    for number, prompt in enumerate(prompts):
        yield Call(prompt, steps, seed + number, arguments)


def model_name(pipe: Any) -> str:
    """Class names of the transformers."""
    return ", ".join(type(model).__name__ for model in cached_models(pipe))
