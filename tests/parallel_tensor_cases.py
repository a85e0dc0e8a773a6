"""What every rank does in the tests of tensor parallelism; started by `parallel_harness`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from tiny.models import TINY_MODELS, TinyModel, output_of
from tiny.runs import decisions
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import cache_dit
from cache_dit import DBCacheConfig
from cache_dit.parallelism.tensor import (
    TENSOR_PLANS,
    divide,
)

Case = Callable[[], Any]
PLANNED = {plan.name for plan in TENSOR_PLANS}
STEPS = 4
GATED = DBCacheConfig(
    Fn_compute_blocks=1,
    num_inference_steps=STEPS,
    max_warmup_steps=1,
    residual_diff_threshold=0.6,
    max_accumulated_residual_diff_threshold=None,
    max_continuous_cached_steps=3,
)
# The plain configurations of these have one head of keys and values, which two ranks cannot divide.
GROUPED = {
    "AceStepTransformer1DModel": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "Cosmos3OmniTransformer": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "Krea2Transformer2DModel": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "Lumina2Transformer2DModel": {"hidden_size": 64, "num_attention_heads": 4, "num_kv_heads": 2},
    "StableAudioDiTModel": {"num_attention_heads": 4, "num_key_value_attention_heads": 2},
}
# Their inputs hold keys and values of all heads, which on a rank are those of its own heads.
WITH_OWN_KEYS = {"QwenImage21Transformer2DModel-kv_cached"}


def with_config(tiny: TinyModel, **changes: Any) -> Callable[[], nn.Module]:
    """The builder of a tiny model with other entries in its config."""
    assert isinstance(tiny.build, functools.partial)
    name, seed, config, gains = tiny.build.args
    return functools.partial(tiny.build.func, name, seed, {**config, **changes}, gains)


def glide(tiny: TinyModel, step: int) -> Any:
    """Inputs that move from one draw to another, quickly at first."""

    def between(first: Any, last: Any, own: Any) -> Any:
        floating = isinstance(own, Tensor) and own.is_floating_point()
        return torch.lerp(first, last, 0.4 * (step / STEPS) ** 0.5) if floating else own

    inputs: Any = tree_map(between, tiny.inputs(0), tiny.inputs(9), tiny.inputs(step))
    return inputs


def furthest(ones: list[Tensor], others: list[Tensor]) -> float:
    """Largest absolute difference, as a share of the largest value where that is above 1."""
    return max(
        float((one - other).abs().max() / one.abs().max().clamp(min=1))
        for one, other in zip(ones, others, strict=True)
    )


def cached_run(model: nn.Module, tiny: TinyModel) -> tuple[list[Tensor], str]:
    cache_dit.enable_cache(model, GATED)
    outputs = [output for step in range(STEPS) for output in output_of(model, glide(tiny, step))]
    taken = decisions(model)
    cache_dit.disable_cache(model)
    return outputs, taken


def numel(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def structure(model: nn.Module) -> list[Any]:
    """What of a model must be the same after `undo`."""
    return [
        (name, id(module), type(module), {k: v for k, v in vars(module).items() if isinstance(v, int)})
        for name, module in model.named_modules()
    ] + [(name, id(parameter), parameter.shape) for name, parameter in model.named_parameters()]


def compare(tiny: TinyModel, build: Callable[[], nn.Module], cache: bool = True) -> Any:
    """One model in one process and divided, without and with the cache, and after undoing it."""
    model = build()
    inputs: Any = tiny.inputs(0) if tiny.name != "WanAnimate2Transformer3DModel" else tiny.bypassed(0)  # type: ignore[misc]
    before, kept, whole = (
        structure(model),
        {n: v.clone() for n, v in model.state_dict().items()},
        numel(model),
    )
    expected, cached = list(output_of(model, inputs)), cached_run(model, tiny) if cache else ([], "")
    undo = divide(model, dist.group.WORLD)
    local = numel(model)
    found, again = list(output_of(model, inputs)), cached_run(model, tiny) if cache else ([], "")
    undo()
    return {
        "error": furthest(expected, found),
        "cached_error": furthest(cached[0], again[0]) if cache else 0.0,
        "decisions": [cached[1], again[1]],
        "local": local,
        "whole": whole,
        "restored": structure(model) == before
        and all(torch.equal(value, kept[name]) for name, value in model.state_dict().items()),
        "same_output": all(
            torch.equal(a, b) for a, b in zip(expected, output_of(model, inputs), strict=True)
        ),
    }


def plans(size: int) -> dict[str, Case]:
    """Every plan on the first configuration of its class that can be divided."""
    found: dict[str, Case] = {}
    for tiny in TINY_MODELS:
        if tiny.name in PLANNED and tiny.id not in WITH_OWN_KEYS:
            build = with_config(tiny, **GROUPED[tiny.name]) if tiny.name in GROUPED else tiny.build
            cache = tiny.name != "WanAnimate2Transformer3DModel"
            found[f"plan/{tiny.id}"] = functools.partial(compare, tiny, build, cache)
    return found


def cases(size: int) -> dict[str, Case]:
    if size == 2:
        return plans(size)
    return {}
