"""One run of a pipeline, recorded by its own callback and by forward hooks that are taken off again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cache_dit.caching.attach.override import attachment_of
from cache_dit.caching.attach.targets import cached_models, uncompiled
from cache_dit.caching.attach.timeline import PipelineTimeline
from cache_dit.caching.engine.requests import Noise
from cache_dit.errors import ConfigError


class Recording(NamedTuple):
    """An uncached run of S steps, in float32 on the CPU.

    Attributes:
        final: [N]: the latent after the last step.
        outputs: [S, M]: what the transformer returned in a step, its calls behind each other.
        noise: Noise levels and strides of the sampler; None where nothing tells them.
    """

    final: Tensor
    outputs: Tensor
    noise: Noise | None


class Call(NamedTuple):
    """One call of a pipeline, to be repeated: what it is given besides a generator and a callback."""

    prompt: Any
    num_inference_steps: int
    seed: int
    arguments: Mapping[str, Any]


def run(pipe: Any, call: Call, after_step: Callable[[], None] = lambda: None) -> Tensor:
    """The final latent of a call, [N], cached or not: as the pipeline is set up."""
    latent = torch.zeros(0)

    def end_step(pipe: Any, step: int, time: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        nonlocal latent
        latent = tensors["latents"]
        after_step()
        return {}

    pipe(
        call.prompt,
        num_inference_steps=call.num_inference_steps,
        generator=torch.Generator("cpu").manual_seed(call.seed),
        callback_on_step_end=end_step,
        **{"output_type": "latent", **call.arguments},
    )
    return _kept(latent)


def record(pipe: Any, call: Call) -> Recording:
    """One call of an uncached pipeline."""
    steps: list[list[Tensor]] = [[]]

    def watch(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Its first tensor is what the sampler moves by.
        steps[-1].append(next(_kept(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)))

    with _watched(pipe, watch):
        final = run(pipe, call, lambda: steps.append([]))
    *steps, _ = steps
    # Guidance may be switched off for some of the steps.
    shared = min(map(len, steps))
    outputs = torch.stack([torch.cat(step[:shared]) for step in steps])
    return Recording(final, outputs, PipelineTimeline(pipe).noise())


def check(pipe: Any) -> None:
    """Raise `ConfigError` unless this is a pipeline that can be recorded, and is not cached."""
    if "callback_on_step_end" not in inspect.signature(type(pipe).__call__).parameters:
        raise ConfigError(
            f"{type(pipe).__name__} takes no callback_on_step_end, which calibration needs; give a diffusers "
            "pipeline that does."
        )
    for model in cached_models(pipe):
        if attachment_of(model) is not None:
            raise ConfigError(
                f"{type(model).__name__} is cached, but calibration needs to see it uncached; call "
                "cache_dit.disable_cache first."
            )


@contextmanager
def _watched(pipe: Any, hook: Callable[..., None]) -> Iterator[None]:
    models = cached_models(pipe)
    with ExitStack() as stack:
        for part in pipe.components.values():
            # On the wrapper of a compiled transformer: inside, a hook would become a part of the graph.
            if isinstance(part, nn.Module) and uncompiled(part) in models:
                stack.enter_context(part.register_forward_hook(hook))
        yield


def _kept(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True).flatten()
