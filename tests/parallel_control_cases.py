"""Transformers with their ControlNets on several ranks; part of `parallel_worker_context`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from parallel_harness import once
from tiny.base import Draw
from tiny.control_pipelines import CONTROL_PIPELINES, ControlPipeline
from tiny.models import TinyModel, output_of, tiny_model
from tiny.runs import decisions
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import cache_dit
from cache_dit import DBCacheConfig, IntervalConfig, Place
from cache_dit.parallelism import ParallelismConfig
from cache_dit.parallelism.context.shards import Part

STEPS = 4
GATED = DBCacheConfig(
    Fn_compute_blocks=1,
    max_warmup_steps=1,
    residual_diff_threshold=0.9,
    max_continuous_cached_steps=3,
    num_inference_steps=STEPS,
)
EVERY_SECOND = IntervalConfig(interval=2, num_inference_steps=STEPS)
WHOLE = IntervalConfig(interval=2, num_inference_steps=STEPS, place=Place.OUTPUT)
CONTROL = ("controlnet_block_samples", "controlnet_single_block_samples")
# By the ControlNet: its transformer, and what that calls the residuals.
PAIRS = {
    "CosmosControlNetModel": ("CosmosTransformer3DModel", ("block_controlnet_hidden_states",)),
    "FluxControlNetModel": ("FluxTransformer2DModel", CONTROL),
    "FluxControlNetModel-union": ("FluxTransformer2DModel", CONTROL),
    "HunyuanDiT2DControlNetModel": ("HunyuanDiT2DModel", CONTROL[:1]),
    "QwenImageControlNetModel": ("QwenImageTransformer2DModel", CONTROL[:1]),
    "SD3ControlNetModel": ("SD3Transformer2DModel", ("block_controlnet_hidden_states",)),
    "SD3ControlNetModel-single": ("SD3Transformer2DModel", ("block_controlnet_hidden_states",)),
    "ZImageControlNetModel": ("ZImageTransformer2DModel", CONTROL[:1]),
    "ZImageControlNetModel-refiner": ("ZImageTransformer2DModel", CONTROL[:1]),
    "ZImageControlNetModel-twice": ("ZImageTransformer2DModel", CONTROL[:1]),
}
OFTEN = {
    "ring_p2p": ("FluxControlNetModel", "ZImageControlNetModel"),
    "usp": ("QwenImageControlNetModel", "ZImageControlNetModel"),
    "tp_ulysses": ("FluxControlNetModel",),
}
"""What is tried in the other modes."""
ULYSSES = {"ulysses_size": 2, "ulysses_anything": True}
MODES: dict[int, dict[str, dict[str, Any]]] = {
    2: {"ring_p2p": {"ring_size": 2, "ring_rotate_method": "p2p", "ulysses_anything": True}},
    4: {
        "usp": {"ulysses_size": 2, "ring_size": 2, "ulysses_anything": True},
        "tp_ulysses": {"tp_size": 2, "ulysses_size": 2, "ulysses_anything": True},
    },
}


def cases(size: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """All cases for so many ranks, with their names."""
    if size == 2:
        for name in PAIRS:
            yield f"control {name}", functools.partial(controlled, name, ULYSSES)
        for pipeline in CONTROL_PIPELINES:
            yield f"pipeline {pipeline.name}", functools.partial(through_pipeline, pipeline)
        yield "control several", several
        yield "control refused", refused
    for mode, sizes in MODES[size].items():
        for name in OFTEN[mode]:
            yield f"control {mode} {name}", functools.partial(controlled, name, sizes)


def _control(name: str) -> TinyModel:
    return tiny_model(name.removesuffix("-twice"))


class Controlled:
    """A pipeline of a transformer and its ControlNet, which is switched off in the last step."""

    def __init__(self, name: str) -> None:
        transformer, self._takes = PAIRS[name]
        self._tiny, self._control = tiny_model(transformer), _control(name)
        self._usual = self._tiny.variants["controlnet"](0)
        self.transformer: Any = self._tiny.build()
        self.controlnet: Any = self._control.build()
        self.union = name.endswith("-union")
        # Caching needs lists that run once.
        self.cached = [self, self.controlnet]
        if name.endswith("-twice"):
            self.controlnet.add_control_noise_refiner, self.cached = "control_layers", [self]

    def __call__(self, steps: int = STEPS) -> Tensor:
        return torch.cat([self._step(step) for step in range(steps)])

    def _step(self, step: int) -> Tensor:
        scale = 1.0 if step < STEPS - 1 else 0.0
        control, given = glide(self._control, step), glide(self._tiny, step)
        residuals = self.residuals(control | {"conditioning_scale": scale})
        return output_of(self.transformer, given | residuals)[0]

    @torch.no_grad()
    def residuals(self, control: dict[str, Any]) -> dict[str, Any]:
        """What the ControlNet makes of its inputs, by the names that the transformer has for it."""
        made = self.controlnet(**control)
        values = (
            made.to_tuple() if hasattr(made, "to_tuple") else made if isinstance(made, tuple) else (made,)
        )
        # HunyuanDiT wants one for each block that keeps its output.
        return {
            name: value if isinstance(value, dict) else value[: len(self._usual[name])]
            for name, value in zip(self._takes, values, strict=True)
        }


def glide(tiny: TinyModel, step: int) -> dict[str, Any]:
    """Inputs that move from one draw to another, quickly at first."""

    def between(first: Any, last: Any) -> Any:
        floating = isinstance(first, Tensor) and first.is_floating_point()
        return torch.lerp(first, last, 0.1 * (step / STEPS) ** 0.5) if floating else first

    made: dict[str, Any] = tree_map(between, tiny.inputs(0), tiny.inputs(9))
    return made


def controlled(name: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Ranks together against one process, without a cache, and with one on both models."""
    pipe = Controlled(name)
    wanted, (cached, alone) = once(lambda: (pipe(1), with_cache(pipe)))
    for target in pipe.cached:
        cache_dit.disable_cache(target)
    config = ParallelismConfig(extra_parallel_modules=["controlnet"], **sizes)
    cache_dit.enable_cache(pipe, parallelism_config=config)
    lengths: set[int] = set()
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, given: lengths.update(tokens_of(given)), with_kwargs=True
    )
    error = difference(wanted, pipe(1))
    hook.remove()
    got, together = with_cache(pipe)
    for target in reversed(pipe.cached):
        cache_dit.disable_cache(target)
    return {
        "error": error,
        "cached_error": difference(cached, got),
        "decisions": [alone, together],
        "after": difference(wanted, once(lambda: pipe(1))),
        "scale": float(wanted.abs().max()),
        "lengths": sorted(lengths),
    }


def with_cache(pipe: Controlled) -> tuple[Tensor, str]:
    """A run with a cache on the transformer, by a gate that measures, and on the ControlNet."""
    own = WHOLE if pipe.union else EVERY_SECOND
    for target, config in zip(pipe.cached, (GATED, own), strict=False):
        cache_dit.enable_cache(target, config)
    return pipe(), decisions(pipe.transformer)


def tokens_of(given: dict[str, Any]) -> Iterator[int]:
    """Tokens of the residuals as the transformer's own forward gets them."""
    values = (value for name, value in given.items() if "controlnet" in name)
    yield from (leaf.shape[1] for leaf in tree_leaves(list(values)) if isinstance(leaf, Tensor))


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def through_pipeline(pipeline: ControlPipeline) -> dict[str, Any]:
    """A pipeline of diffusers, without a cache and with one on both models."""
    pipe = pipeline.build()
    wanted = once(lambda: pipeline.call(pipe, 1))
    cached, alone = once(functools.partial(run_pipeline, pipeline, pipe))
    cache_dit.disable_cache(pipe)
    config = ParallelismConfig(extra_parallel_modules=["controlnet"], **ULYSSES)
    cache_dit.enable_cache(pipe, parallelism_config=config)
    error = difference(wanted, pipeline.call(pipe, 1))
    got, together = run_pipeline(pipeline, pipe)
    cache_dit.disable_cache(pipe)
    return {
        "error": error,
        "cached_error": difference(cached, got),
        "decisions": [alone, together],
        "after": difference(wanted, once(lambda: pipeline.call(pipe, 1))),
        "scale": float(wanted.abs().max()),
    }


def run_pipeline(pipeline: ControlPipeline, pipe: Any) -> tuple[Tensor, str]:
    """A run with a cache on the transformer."""
    cache_dit.enable_cache(pipe, GATED)
    return pipeline.call(pipe, STEPS), decisions(pipe)


def several() -> dict[str, Any]:
    """Two ControlNets in one module, whose residuals are added up."""
    from diffusers import FluxMultiControlNetModel

    tiny, control = tiny_model("FluxTransformer2DModel"), tiny_model("FluxControlNetModel")
    pipe = Controlled("FluxControlNetModel")
    pipe.controlnet = FluxMultiControlNetModel(
        [control.build(), tiny_model("FluxControlNetModel-union").build()]
    )
    inputs, given = tiny.inputs(0), control.inputs(0)
    picture = given["controlnet_cond"]
    more = {
        "controlnet_cond": [picture, Draw(5)(*picture.shape)],
        "controlnet_mode": [torch.full((len(picture),), 1)] * 2,
        "conditioning_scale": [0.5, 1.0],
        "return_dict": False,
    }

    def run() -> Tensor:
        return output_of(pipe.transformer, inputs | pipe.residuals(given | more))[0]

    wanted = run()
    config = ParallelismConfig(extra_parallel_modules=["controlnet"], **ULYSSES)
    cache_dit.enable_cache(pipe, parallelism_config=config)
    got = run()
    cache_dit.disable_cache(pipe)
    return {"error": difference(wanted, got), "after": difference(wanted, run())}


def refused() -> dict[str, str]:
    """What is said where a ControlNet cannot be spread, or its parts are not those of the transformer."""
    found = {}
    pipe = Controlled("FluxControlNetModel")
    kinds = [type(part) for part in pipe.transformer.modules()]
    pipe.controlnet = tiny_model("SanaControlNetModel").build()
    config = ParallelismConfig(extra_parallel_modules=["controlnet"], **ULYSSES)
    try:
        cache_dit.enable_cache(pipe, parallelism_config=config)
    except cache_dit.CacheDiTError as error:
        found["no plan"] = str(error)
    found["same"] = str(kinds == [type(part) for part in pipe.transformer.modules()])
    cache_dit.enable_cache(pipe, parallelism_config=ParallelismConfig(**ULYSSES))
    part = torch.zeros(2, 8, 32).as_subclass(Part)
    part.group = dist.new_group(list(range(dist.get_world_size())))
    given = tiny_model("FluxTransformer2DModel").inputs(0) | {CONTROL[0]: [2 * part]}
    for name in ("other ranks", "alone"):
        try:
            output_of(pipe.transformer, given)
        except cache_dit.CacheDiTError as error:
            found[name] = str(error)
        cache_dit.disable_cache(pipe)
    return found
