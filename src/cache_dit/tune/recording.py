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
from cache_dit.caching.engine.forward import first_tensor
from cache_dit.caching.engine.requests import Noise
from cache_dit.errors import ConfigError


class Recording(NamedTuple):
    """An uncached run of S steps, in float32 on the CPU.

    Attributes:
        start: [N]: the latent before the first step; None where what enters the transformer is no such thing.
        latents: [S, N]: after every step.
        outputs: [S, M]: what the transformer returned in a step, its calls behind each other.
        noise: Noise levels and strides of the sampler; None where nothing tells them.
    """

    start: Tensor | None
    latents: Tensor
    outputs: Tensor
    noise: Noise | None


class Call(NamedTuple):
    """One call of a pipeline, to be repeated: what it is given besides a generator and a callback."""

    prompt: Any
    num_inference_steps: int
    seed: int
    arguments: Mapping[str, Any]


def run(pipe: Any, call: Call, after_step: Callable[[], None] = lambda: None) -> list[Tensor]:
    """The latents after each step of a call, cached or not: as the pipeline is set up."""
    latents: list[Tensor] = []

    def keep(pipe: Any, step: int, time: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        latents.append(_kept(tensors["latents"]))
        after_step()
        return {}

    pipe(
        call.prompt,
        num_inference_steps=call.num_inference_steps,
        generator=torch.Generator("cpu").manual_seed(call.seed),
        callback_on_step_end=keep,
        **{"output_type": "latent", **call.arguments},
    )
    return latents


def record(pipe: Any, call: Call) -> Recording:
    """One call of an uncached pipeline."""
    entries: list[Tensor] = []
    calls: list[list[Tensor]] = [[]]

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        entry = first_tensor(args, kwargs)
        if not entries and entry is not None:
            entries.append(_kept(entry))
        calls[-1].append(
            next(_kept(leaf).flatten() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        )

    with _watched(pipe, watch):
        after = run(pipe, call, lambda: calls.append([]))
    # Guidance may be switched off for some of the steps.
    shared = min(len(step) for step in calls[: len(after)])
    outputs = [torch.cat(step[:shared]) for step in calls[: len(after)]]
    start, shape = entries[0], after[0].shape
    if start.ndim == len(shape):
        # What is joined to the latent, such as the other branch of guidance, comes behind it.
        start = start[tuple(map(slice, shape))]
    return Recording(
        start=start.flatten() if start.shape == shape else None,
        latents=torch.stack(after).flatten(1),
        outputs=torch.stack(outputs),
        noise=PipelineTimeline(pipe).noise(),
    )


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
                stack.enter_context(part.register_forward_hook(hook, with_kwargs=True))
        yield


def _kept(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True)
