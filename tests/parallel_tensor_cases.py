"""What every rank does in the tests of tensor parallelism; started by `parallel_harness`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from parallel_harness import once
from tiny.models import TINY_MODELS, TinyModel, output_of, tiny_model
from tiny.runs import decisions
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import cache_dit
from cache_dit import DBCacheConfig
from cache_dit.parallelism import ParallelismConfig
from cache_dit.parallelism.tensor import (
    TENSOR_PLANS,
    Blocks,
    TensorPlan,
    attention,
    divide,
    feed_forward,
)
from cache_dit.quantize import quantize

Case = Callable[[], Any]
PLANNED = {plan.name for plan in TENSOR_PLANS}
STEPS = 4
GATED = DBCacheConfig(
    Fn_compute_blocks=1,
    num_inference_steps=STEPS,
    max_warmup_steps=1,
    residual_diff_threshold=0.9,
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


# Few layers, for what is run on many ranks.
SHORT = {
    "FluxTransformer2DModel": {"num_layers": 2, "num_single_layers": 2},
    "Flux2Transformer2DModel": {"num_layers": 2, "num_single_layers": 2},
    "QwenImageTransformer2DModel": {"num_layers": 3},
    "WanTransformer3DModel": {"num_layers": 3},
}


def with_config(tiny: TinyModel, **changes: Any) -> Callable[[], nn.Module]:
    """The builder of a tiny model with other entries in its config."""
    assert isinstance(tiny.build, functools.partial)
    name, seed, config, gains = tiny.build.args
    return functools.partial(tiny.build.func, name, seed, {**config, **changes}, gains)


def glide(tiny: TinyModel, step: int) -> Any:
    """Inputs that move from one draw to another, quickly at first."""

    def between(first: Any, last: Any, own: Any) -> Any:
        floating = isinstance(own, Tensor) and own.is_floating_point()
        return torch.lerp(first, last, 0.2 * (step / STEPS) ** 0.5) if floating else own

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
    expected, cached = once(
        lambda: (list(output_of(model, inputs)), cached_run(model, tiny) if cache else ([], ""))
    )
    undo = divide(model, dist.group.WORLD)
    local = numel(model)
    found, again = list(output_of(model, inputs)), cached_run(model, tiny) if cache else ([], "")
    undo()
    after = once(lambda: output_of(model, inputs))
    return {
        "error": furthest(expected, found),
        "cached_error": furthest(cached[0], again[0]) if cache else 0.0,
        "decisions": [cached[1], again[1]],
        "local": local,
        "whole": whole,
        "restored": structure(model) == before
        and all(torch.equal(value, kept[name]) for name, value in model.state_dict().items()),
        "same_output": all(torch.equal(a, b) for a, b in zip(expected, after, strict=True)),
    }


def plans() -> dict[str, Case]:
    """Every plan, on the first tiny model of its class."""
    found: dict[str, Case] = {}
    for tiny in TINY_MODELS:
        if tiny.name in PLANNED and f"plan/{tiny.name}" not in found:
            build = with_config(tiny, **GROUPED[tiny.name]) if tiny.name in GROUPED else tiny.build
            # Without the extraction its inputs hold the keys and values of all heads.
            cache = tiny.name != "WanAnimate2Transformer3DModel"
            found[f"plan/{tiny.name}"] = functools.partial(compare, tiny, build, cache)
    return found


def four_heads(name: str) -> Any:
    tiny = tiny_model(name)
    return compare(tiny, with_config(tiny, num_attention_heads=4, **SHORT[name]))


def uneven(name: str, heads: int) -> Any:
    """So many heads of 3 or 5 as are no multiple of the ranks, and an uneven number of channels."""
    tiny = tiny_model(name)
    return compare(tiny, with_config(tiny, num_attention_heads=heads, **SHORT[name]))


def message_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except cache_dit.CacheDiTError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def refused() -> dict[str, str]:
    """What each misuse is answered with; nothing may have changed after it."""
    from peft import LoraConfig
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    group = dist.group.WORLD
    found = {}

    def ask(name: str, model: nn.Module, plan: TensorPlan | None = None) -> None:
        before = structure(model)
        found[name] = message_of(lambda: divide(model, group, plan))
        assert structure(model) == before, name

    flux = tiny_model("FluxTransformer2DModel")
    ask("too few heads", with_config(flux, num_attention_heads=1)())
    lora: Any = flux.build()
    lora.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    ask("lora", lora)
    fused: Any = flux.build()
    fused.fuse_qkv_projections()
    ask("fused", fused)
    adapted: Any = flux.build()
    adapted.transformer_blocks[0].attn.processor = nn.Linear(2, 2)
    ask("adapter", adapted)
    ask("offloaded", flux.build().to("meta"))
    quantized: Any = flux.build()
    quantize_(quantized, Int8WeightOnlyConfig(), lambda module, path: path.endswith("1.attn.to_q"))
    ask("quantized", quantized)
    ask("unknown class", nn.Linear(2, 2))
    ask("no such layer", flux.build(), TensorPlan("Mine", (Blocks("layers", (attention("attn"),)),)))
    divided = flux.build()
    undo = divide(divided, group)
    ask("divided already", divided)
    quantize_(divided, Int8WeightOnlyConfig(), lambda module, path: path.endswith("1.attn.to_q"))
    found["quantized since"] = message_of(undo)
    return found


def own_plan() -> Any:
    """A class without a plan, with one given by the user."""
    torch.manual_seed(0)
    model = Perceptron().eval()
    inputs = torch.randn(3, 8)
    with torch.no_grad():
        expected = model(inputs)
        plan = TensorPlan("Perceptron", (Blocks("layers", (feed_forward("", "widen", "narrow"),)),))
        undo = divide(model, dist.group.WORLD, plan)
        error = float((model(inputs) - expected).abs().max())
    widths = [layer.widen.out_features for layer in model.layers]  # type: ignore[union-attr]
    undo()
    return {"error": error, "widths": widths}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(8, 21), nn.Linear(21, 8)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.narrow(self.widen(hidden_states).relu())


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, hidden_states: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


def bytes_of_layers() -> Any:
    """Bytes of what the plan names in FLUX, before and after."""
    model = tiny_model("FluxTransformer2DModel").build()

    def count() -> dict[str, int]:
        return {
            name: sum(p.untyped_storage().nbytes() for p in module.parameters())
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and ("attn." in name or "ff" in name or "proj_" in name)
        }

    before = count()
    divide(model, dist.group.WORLD)
    return [before, count()]


def quantized_after() -> Any:
    """Divided, then quantized to int8: near the whole model, quantized alike."""
    tiny = tiny_model("FluxTransformer2DModel")
    whole, divided = tiny.build(), tiny.build()
    divide(divided, dist.group.WORLD)
    for model in (whole, divided):
        quantize(model, "int8_weight_only", filter_fn=lambda _, path: "blocks" in path, report=None)
    expected, found = output_of(whole, tiny.inputs(0))[0], output_of(divided, tiny.inputs(0))[0]
    exact = output_of(tiny.build(), tiny.inputs(0))[0]
    return {
        "from_exact": float((found - exact).norm() / exact.norm()),
        "whole_from_exact": float((expected - exact).norm() / exact.norm()),
        "rows_quantized": type(divided.transformer_blocks[0].ff.net[2].weight).__name__,  # type: ignore[index, union-attr]
    }


def compiled() -> Any:
    """Blocks compiled in one graph each, after they were divided."""
    tiny = tiny_model("WanTransformer3DModel")
    model: Any = tiny.build()
    expected = list(output_of(model, tiny.inputs(0)))
    divide(model, dist.group.WORLD)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(fullgraph=True, backend="eager")
    return {"error": furthest(expected, list(output_of(model, tiny.inputs(0))))}


def even_tokens(seed: int) -> Any:
    """FLUX's inputs with 4 tokens of text, which two ranks can share."""
    inputs = tiny_model("FluxTransformer2DModel").inputs(seed)
    text = {"encoder_hidden_states": inputs["encoder_hidden_states"][:, :4], "txt_ids": inputs["txt_ids"][:4]}
    return inputs | text


def through_enable_cache(**sizes: int | bool) -> Any:
    """A run of FLUX with parallelism and cache, by `enable_cache` alone, and what `disable_cache` leaves."""
    tiny = tiny_model("FluxTransformer2DModel")
    if not sizes.get("ulysses_anything"):
        tiny = dataclasses.replace(tiny, inputs=even_tokens)
    build = with_config(tiny, num_attention_heads=4, **SHORT[tiny.name])
    (expected, taken), model = once(lambda: cached_run(build(), tiny)), build()
    before, kept = structure(model), {name: value.clone() for name, value in model.state_dict().items()}
    cache_dit.enable_cache(model, GATED, parallelism_config=ParallelismConfig(**sizes))
    query: Any = model.get_submodule("transformer_blocks.0.attn.to_q")
    seen: list[Any] = []
    hook = query.register_forward_hook(lambda _, given, put: seen.append([given[0].shape[1], put.shape[2]]))
    outputs = [output for step in range(STEPS) for output in output_of(model, glide(tiny, step))]
    hook.remove()
    again = decisions(model)
    cache_dit.disable_cache(model)
    plain = list(output_of(model, tiny.inputs(0)))
    return {
        "error": 0.0,
        "cached_error": furthest(expected, outputs),
        "decisions": [taken, again],
        "local": seen[0][1],
        "whole": query.out_features,
        "tokens": [seen[0][0], tiny.inputs(0)["hidden_states"].shape[1]],
        "restored": structure(model) == before
        and all(torch.equal(value, kept[name]) for name, value in model.state_dict().items()),
        "same_output": all(
            torch.equal(a, b) for a, b in zip(plain, output_of(build(), tiny.inputs(0)), strict=True)
        ),
    }


def cases(size: int) -> dict[str, Case]:
    if size == 4:
        flux, wan, qwen = (
            f"{name}Model" for name in ("FluxTransformer2D", "WanTransformer3D", "QwenImageTransformer2D")
        )
        sizes = {
            "TP4": {"tp_size": 4},
            "TP2 x Ulysses2": {"tp_size": 2, "ulysses_size": 2},
            "TP2 x Ring2": {"tp_size": 2, "ring_size": 2},
            "TP2 x UAA2": {"tp_size": 2, "ulysses_size": 2, "ulysses_anything": True},
        }
        return {
            **{f"four/{name}": functools.partial(four_heads, name) for name in (flux, wan, qwen)},
            **{f"uneven/{heads}": functools.partial(uneven, flux, heads) for heads in (5,)},
            **{
                f"hybrid/{name}": functools.partial(through_enable_cache, **given)
                for name, given in sizes.items()
            },
        }
    return {
        **plans(),
        **{
            f"uneven/{name}": functools.partial(uneven, name, 3)
            for name in ("FluxTransformer2DModel", "Flux2Transformer2DModel", "WanTransformer3DModel")
        },
        "refused": refused,
        "own plan": own_plan,
        "bytes": bytes_of_layers,
        "quantized": quantized_after,
        "compiled": compiled,
        "enable_cache": functools.partial(through_enable_cache, tp_size=2),
    }
