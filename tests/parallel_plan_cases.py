"""Every context plan, and every mode, against one process; part of `parallel_worker_context`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from parallel_harness import once
from tiny.models import FLUX, QWEN_IMAGE, TINY_MODELS, WAN, TinyModel, output_of, tiny_model
from torch import Tensor, nn

import cache_dit
from cache_dit.caching.models.rows import row_of
from cache_dit.parallelism import ParallelismConfig
from cache_dit.parallelism.context.plans import CONTEXT_PLANS

Case = Callable[[], Any]


def with_config(tiny: TinyModel, label: str, **changes: Any) -> TinyModel:
    """The same with other entries in its config."""
    assert isinstance(tiny.build, functools.partial)
    name, seed, config, gains = tiny.build.args
    build = functools.partial(tiny.build.func, name, seed, {**config, **changes}, gains)
    return dataclasses.replace(tiny, build=build, label=label)


def _with_mask(tiny: TinyModel) -> TinyModel:
    mask = {"video_self_attention_mask": torch.ones(2, 32, 32)}
    return dataclasses.replace(tiny, variants={"video_mask": lambda seed: tiny.inputs(seed) | mask})


# What the plans of diffusers get wrong, and more forms of it.
MORE = (
    _with_mask(with_config(tiny_model("LTX2VideoTransformer3DModel"), "split", rope_type="split")),
    with_config(tiny_model("HeliosTransformer3DModel"), "amplified", is_amplify_history=True),
)
PLANNED = {tiny.id: tiny for tiny in (*TINY_MODELS, *MORE) if tiny.name in CONTEXT_PLANS}
MODELS = {name: tiny for name, tiny in PLANNED.items() if not CONTEXT_PLANS[tiny.name].controls}
# Inputs with which tokens do not go side by side, and are said not to.
REFUSED = {
    **{
        (f"SD3Transformer2DModel{label}", variant): "left out"
        for label in ("", "-dual_attention")
        for variant in ("skip_layers", "skip_first_layer", "skip_last_layer", "skip_layers_controlnet")
    },
    **{
        ("ChromaTransformer2DModel", variant): "told by their number"
        for variant in ("controlnet", "controlnet_repeat")
    },
    ("Flux2Transformer2DModel-kv", "kv_cached"): "not covered",
    ("GlmImageTransformer2DModel", "condition_image"): "not covered",
    ("LTX2VideoTransformer3DModel-split", "video_mask"): "changes that mask",
}
FAMILIES = (FLUX, QWEN_IMAGE, WAN, tiny_model("ZImageTransformer2DModel"))
OVERLAPPED = (
    *FAMILIES[:2],
    *(tiny_model(f"{name}Transformer2DModel") for name in ("Flux2", "ZImage", "OvisImage", "LongCatImage")),
)
ASYNC = {"ulysses_size": 2, "ulysses_async": True}
MODES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "ulysses": {"ulysses_size": 2},
        "ring": {"ring_size": 2},
        "ring_p2p": {"ring_size": 2, "ring_rotate_method": "p2p"},
    },
    4: {
        "ulysses": {"ulysses_size": 4},
        "ring": {"ring_size": 4},
        "ring_p2p": {"ring_size": 4, "ring_rotate_method": "p2p"},
        "usp": {"ring_size": 2, "ulysses_size": 2},
        "usp_p2p": {"ring_size": 2, "ulysses_size": 2, "ring_rotate_method": "p2p"},
        "tp_ulysses": {"tp_size": 2, "ulysses_size": 2},
        "tp_ring": {"tp_size": 2, "ring_size": 2},
    },
}
# Lengths and heads that are no multiple of the ranks, and masks, in these modes too.
UNEVEN = {2: ("ulysses", "ring", "ring_p2p"), 4: ("ulysses", "ring_p2p", "usp", "usp_p2p")}
MASKED = {"QwenImageTransformer2DModel": "padded_text", "ChromaTransformer2DModel": "attention_mask"}
HEADS = (3, 5, 6, 7)
# Few layers, for what is run on many ranks.
LAYERS: dict[str, dict[str, int]] = {
    "ChromaTransformer2DModel": {"num_layers": 2, "num_single_layers": 2},
    "FluxTransformer2DModel": {"num_layers": 2, "num_single_layers": 2},
    "QwenImageTransformer2DModel": {"num_layers": 2},
    "WanTransformer3DModel": {"num_layers": 2},
    "ZImageTransformer2DModel": {"n_layers": 2},
}
built = functools.cache(lambda tiny: tiny.build())


def cases(size: int) -> Iterator[tuple[str, Case]]:
    """All cases for so many ranks, with their names."""
    if size == 2:
        for tiny in MODELS.values():
            yield f"plan {tiny.id}", functools.partial(planned, tiny)
        for tiny in OVERLAPPED:
            yield f"async {tiny.name}", functools.partial(exactness, tiny, ASYNC)
    for tiny in map(short, FAMILIES):
        for mode, sizes in MODES[size].items():
            yield f"{mode} {tiny.name}", functools.partial(exactness, tiny, sizes)
    flux = short(FLUX)
    odd = dataclasses.replace(flux, inputs=_odd)
    masked = {name: _variant(tiny_model(name), variant) for name, variant in MASKED.items()}
    for mode in UNEVEN[size]:
        yield f"odd {mode}", functools.partial(exactness, odd, MODES[size][mode])
        for name, tiny in masked.items():
            yield f"masked {mode} {name}", functools.partial(exactness, tiny, MODES[size][mode])
    for heads in HEADS if size == 4 else ():
        tiny = with_config(flux, f"{heads} heads", num_attention_heads=heads)
        yield f"heads {heads}", functools.partial(exactness, tiny, MODES[size]["ulysses"])


def _odd(seed: int) -> dict[str, Any]:
    """Inputs of Flux with 5 tokens of text and 15 of the picture."""
    inputs = FLUX.inputs(seed)
    return inputs | {"hidden_states": inputs["hidden_states"][:, :15], "img_ids": inputs["img_ids"][:15]}


def _variant(tiny: TinyModel, name: str) -> TinyModel:
    return dataclasses.replace(short(tiny), inputs=tiny.variants[name])


def short(tiny: TinyModel) -> TinyModel:
    """The same with few layers."""
    return with_config(tiny, "", **LAYERS[tiny.name])


def error(wanted: tuple[Tensor, ...], got: tuple[Tensor, ...]) -> float:
    """Largest absolute difference."""
    return max(float((a - b).abs().max()) for a, b in zip(wanted, got, strict=True))


@functools.cache
def alone(tiny: TinyModel) -> tuple[Tensor, ...]:
    """A forward of one process."""
    return once(lambda: output_of(built(tiny), tiny.inputs(0)))


def exactness(tiny: TinyModel, sizes: dict[str, Any]) -> float:
    """A forward of ranks together against one process, and one after it."""
    model, wanted = built(tiny), alone(tiny)
    kinds = [type(getattr(part, "processor", part)) for part in model.modules()]
    cache_dit.enable_cache(model, parallelism_config=ParallelismConfig(ulysses_anything=True, **sizes))
    got = output_of(model, tiny.inputs(0))
    cache_dit.disable_cache(model)
    assert kinds == [type(getattr(part, "processor", part)) for part in model.modules()]
    return max(error(wanted, got), error(wanted, once(lambda: output_of(model, tiny.inputs(0)))))


def planned(tiny: TinyModel) -> dict[str, Any]:
    """A plan with all inputs that its class knows, by their names."""
    model, inputs = built(tiny), {"": tiny.inputs, **tiny.variants}
    lengths = lengths_in(model)
    wanted = once(lambda: {name: (output_of(model, given(0)), lengths()) for name, given in inputs.items()})
    lengths()
    config = ParallelismConfig(ulysses_size=2, ulysses_anything=True)
    cache_dit.enable_cache(model, parallelism_config=config)
    found: dict[str, Any] = {}
    for name, given in inputs.items():
        alone, whole = wanted[name]
        try:
            got, own = output_of(model, given(0)), lengths()
        except cache_dit.CacheDiTError as refused:
            found[name] = {"refused": str(refused)}
            continue
        together = torch.tensor(own)
        dist.all_reduce(together)
        shared = together.tolist() == whole and all(map(operator.lt, own, whole))
        found[name] = {"error": error(alone, got), "scale": float(got[0].abs().max()), "shared": shared}
    cache_dit.disable_cache(model)
    return found


def lengths_in(model: nn.Module) -> Callable[[], list[int]]:
    """What tells how many tokens of the main stream entered the last block of each list since then."""
    row, seen = row_of(type(model)), []
    assert row is not None

    def note(stream: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = inspect.signature(module.forward).parameters
        seen.append({**dict(zip(names, args, strict=False)), **kwargs}[stream].shape[1])

    for flow in row.lists:
        for block in flow.members(model)[-1:]:
            block.register_forward_pre_hook(functools.partial(note, flow.main), with_kwargs=True)

    def told() -> list[int]:
        found = list(seen)
        seen.clear()
        return found

    return told
