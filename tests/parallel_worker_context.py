"""What every rank does in the tests of context parallelism; started by `parallel_harness`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import parallel_control_cases
import parallel_plan_cases
import torch
import torch.distributed as dist
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from parallel_harness import once
from parallel_plan_cases import error, short
from tiny.models import FLUX, QWEN_IMAGE, WAN, TinyModel, output_of, tiny_model
from tiny.runs import Denoising, decisions, small_flux
from torch import Tensor, nn

import cache_dit
from cache_dit import (
    CacheConfig,
    CalibratorConfig,
    DBCacheConfig,
    DiCacheCalibratorConfig,
    DiCacheConfig,
    DMDCalibratorConfig,
    EasyCacheConfig,
    FreqCaCalibratorConfig,
    IntervalConfig,
    Place,
    SpeCaConfig,
    SurpriseConfig,
    TaylorSeerCalibratorConfig,
    TeaCacheConfig,
    ToCaConfig,
    ToleranceConfig,
)
from cache_dit.parallelism import ParallelismConfig

Case = Callable[[], Any]
STEPS = 8
GATED: dict[str, Any] = {
    "Fn_compute_blocks": 1,
    "max_warmup_steps": 2,
    "residual_diff_threshold": 0.65,
    "max_continuous_cached_steps": 2,
    "num_inference_steps": STEPS,
}
METHODS: dict[str, tuple[CacheConfig, CalibratorConfig | None]] = {
    "dbcache": (DBCacheConfig(**GATED), None),
    "taylor": (DBCacheConfig(**GATED), TaylorSeerCalibratorConfig()),
    "teacache": (TeaCacheConfig(rel_l1_thresh=0.4, num_inference_steps=STEPS), None),
    "dicache": (DiCacheConfig(threshold=0.6, num_inference_steps=STEPS), DiCacheCalibratorConfig()),
    "surprise": (SurpriseConfig(threshold=0.85, num_inference_steps=STEPS), None),
    "tolerance": (
        ToleranceConfig(place=Place.MIDDLE, tolerance=1.0, num_inference_steps=STEPS),
        TaylorSeerCalibratorConfig(),
    ),
    "speca": (
        SpeCaConfig(tolerance=1.2, decay=1.0, unchecked_drafts=0, num_inference_steps=STEPS),
        TaylorSeerCalibratorConfig(),
    ),
    "easycache": (EasyCacheConfig(threshold=0.6, max_warmup_steps=2, num_inference_steps=STEPS), None),
    "interval": (IntervalConfig(interval=2, num_inference_steps=STEPS), None),
    "attention": (IntervalConfig(interval=2, num_inference_steps=STEPS, place=Place.ATTENTION), None),
    "dmd": (IntervalConfig(interval=3, max_warmup_steps=5, num_inference_steps=STEPS), DMDCalibratorConfig()),
}


METHODS_OF = {2: tuple(METHODS), 4: ("dbcache", "dicache", "tolerance")}


def cases(size: int) -> dict[str, Case]:
    """All cases for so many ranks, by name."""
    found: dict[str, Case] = dict((*parallel_plan_cases.cases(size), *parallel_control_cases.cases(size)))
    for method in METHODS_OF[size]:
        found[f"cached {method}"] = functools.partial(cached, method, size)
    if size == 2:
        found |= {
            "skips_block_0": skips_block_0,
            "disagreement": disagreement,
            "refusals": refusals,
            "failed": failed_installation,
            "requests": requests_of_their_own,
            "order": order_of_installation,
            "float8": float8,
            "lengths": lengths_inside,
            "compiled": compiled,
            "backend": backend,
            "processors": processors,
        }
    if size == 4:
        found |= {
            f"hybrid {method}": functools.partial(cached, method, size, ring_size=1, tp_size=2)
            for method in METHODS_OF[size]
        }
        found |= {"replicas": replicas, "engine": engine_of_the_user, "mesh": mesh}
    return found


def run(model: nn.Module, method: str) -> tuple[Tensor, str]:
    """A whole run with one method; its result and its decisions."""
    cache_config, calibrator = METHODS[method]
    cache_dit.enable_cache(model, cache_config, calibrator)
    made = Denoising(model, 3, STEPS).finish()
    return made, decisions(model)


@functools.cache
def run_alone(method: str) -> tuple[Tensor, str]:
    """The same of one process."""
    return once(lambda: run(small_flux(), method))


def cached(method: str, size: int, **others: int) -> dict[str, Any]:
    """Decisions and result of ranks together against one process."""
    model, (wanted, steps) = small_flux(), run_alone(method)
    sizes: dict[str, Any] = {"ulysses_size": 2, "ring_size": size // 2, **others}
    cache_dit.enable_cache(model, parallelism_config=ParallelismConfig(ulysses_anything=True, **sizes))
    got, together = run(model, method)
    return {"error": error((wanted,), (got,)), "alone": steps, "together": together}


def skips_block_0() -> dict[str, Any]:
    """Qwen-Image and Wan, whose sequence is cut at the first block, where that one is skipped too."""
    found = {}
    for tiny in map(short, (QWEN_IMAGE, WAN)):
        model = tiny.build()

        def run_once(tiny: TinyModel = tiny, model: nn.Module = model) -> tuple[list[Any], str]:
            config = IntervalConfig(interval=2, max_warmup_steps=1, num_inference_steps=4)
            cache_dit.enable_cache(model, config)
            return [output_of(model, tiny.inputs(seed)) for seed in range(4)], decisions(model)

        wanted, steps = once(run_once)
        cache_dit.disable_cache(model)
        cache_dit.enable_cache(
            model, parallelism_config=ParallelismConfig(ulysses_size=2, ulysses_anything=True)
        )
        got, shared = run_once()
        found[tiny.name] = {"error": max(map(error, wanted, got)), "alone": steps, "together": shared}
    return found


def disagreement() -> dict[str, float]:
    """Runs whose ranks would decide differently, each for itself, again and again."""
    apart, together = 0, 0
    model = small_flux()
    config = ParallelismConfig(ulysses_size=2, ulysses_anything=True)
    cache_dit.enable_cache(model, parallelism_config=config)
    inputs = FLUX.inputs(0) | {"return_dict": False}
    changed = inputs["hidden_states"].clone()
    half = changed.shape[1] // 2
    # One rank's half of the picture moves, the other's stays.
    changed[:, half:] += 0.5 * torch.randn(
        changed[:, half:].shape, generator=torch.Generator().manual_seed(1)
    )
    change = _local_change(model, inputs, changed)
    low, high = sorted(_everywhere(change))
    for turn in range(50):
        threshold = low + (high - low) * (turn + 0.5) / 50
        gate = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=threshold)
        cache_dit.enable_cache(model, gate)
        with cache_dit.Request(num_inference_steps=2):
            _two_steps(model, inputs, changed)
        chosen = _everywhere(decisions(model) == "CS")
        local = _everywhere(change < threshold)
        apart += local[0] != local[1]
        together += chosen[0] == chosen[1]
    return {"apart": apart, "together": together, "change": change}


@torch.no_grad()
def _two_steps(model: nn.Module, inputs: dict[str, Any], changed: Tensor) -> None:
    for step, latents in enumerate((inputs["hidden_states"], changed)):
        model(**inputs | {"hidden_states": latents, "timestep": torch.full((2,), 1 - 0.001 * step)})


def _local_change(model: nn.Module, inputs: dict[str, Any], changed: Tensor) -> float:
    """What this rank would measure of its own tokens, from the residual of the first block."""
    parts: list[Tensor] = []
    block = model.get_submodule("transformer_blocks.0")
    handle = block.register_forward_hook(
        lambda _, args, kwargs, out: parts.append(out[1] - kwargs["hidden_states"]), with_kwargs=True
    )
    _two_steps(model, inputs, changed)
    handle.remove()
    return float((parts[1] - parts[0]).abs().mean() / parts[0].abs().mean())


def _everywhere(number: float) -> list[float]:
    mine = torch.tensor([number], dtype=torch.float64)
    both = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(both, mine)
    return [float(one) for one in both]


def refusals() -> dict[str, str]:
    """What is said where something does not go together; the model is as it was."""

    def said(target: Any, **options: Any) -> str:
        try:
            cache_dit.enable_cache(target, **options)
        except cache_dit.CacheDiTError as refused:
            return str(refused)
        cache_dit.disable_cache(target)
        return ""

    ulysses = ParallelismConfig(ulysses_size=2, ulysses_anything=True)
    flux = small_flux()
    found = {
        "along_tokens": said(
            flux,
            cache_config=DBCacheConfig(Fn_compute_blocks=1),
            calibrator_config=FreqCaCalibratorConfig(),
            parallelism_config=ulysses,
        ),
        "chooses_tokens": said(flux, cache_config=ToCaConfig(), parallelism_config=ulysses),
        "budget": said(
            flux,
            cache_config=IntervalConfig(interval=2),
            calibrator_config=TaylorSeerCalibratorConfig(memory_budget=2**30),
            parallelism_config=ulysses,
        ),
        "no_plan": said(tiny_model("SanaTransformer2DModel").build(), parallelism_config=ulysses),
        "size": said(flux, parallelism_config=ParallelismConfig(ulysses_size=3)),
    }
    cache_dit.enable_cache(flux, parallelism_config=ulysses)
    found["twice"] = said(flux, parallelism_config=ulysses)
    cache_dit.disable_cache(flux)
    cache_dit.enable_cache(flux, parallelism_config=ParallelismConfig(ulysses_size=2))
    try:
        output_of(flux, FLUX.inputs(0))
    except cache_dit.CacheDiTError as refused:
        found["uneven"] = str(refused)
    cache_dit.disable_cache(flux)
    return found


def requests_of_their_own() -> dict[str, Any]:
    """Configurations of single requests to a model that is spread: right, or refused as in enable_cache."""
    model = small_flux()
    chosen: dict[str, dict[str, Any]] = {
        "taylor": {"calibrator_config": TaylorSeerCalibratorConfig()},
        "dmd": {"calibrator_config": DMDCalibratorConfig()},
        "freqca": {"calibrator_config": FreqCaCalibratorConfig()},
        "toca": {"cache_config": ToCaConfig()},
        "whole": {
            "cache_config": EasyCacheConfig(threshold=0.6, max_warmup_steps=2),
            "calibrator_config": FreqCaCalibratorConfig(),
        },
    }

    def run_with(options: dict[str, Any]) -> Tensor:
        request = cache_dit.Request(num_inference_steps=STEPS, **options)
        return Denoising(model, 3, STEPS, request=request).finish()

    cache_dit.enable_cache(model, *METHODS["interval"])
    wanted = {name: run_with(options) for name, options in chosen.items()}
    config = ParallelismConfig(ulysses_size=2, ulysses_anything=True)
    cache_dit.enable_cache(model, parallelism_config=config)
    found: dict[str, Any] = {}
    for name, options in chosen.items():
        try:
            found[name] = error((wanted[name],), (run_with(options),))
        except cache_dit.CacheDiTError as refused:
            found[name] = str(refused)
    # What was refused leaves the model for other requests.
    return found | {"afterwards": error((wanted["taylor"],), (run_with(chosen["taylor"]),))}


def order_of_installation() -> dict[str, str]:
    """Context parallelism that diffusers installs, before and after a cache, and its tensor parallelism."""
    found, config = {}, DBCacheConfig(Fn_compute_blocks=1)

    def said(name: str, model: Any, call: Callable[[], Any]) -> None:
        try:
            call()
            found[name] = ""
        except cache_dit.CacheDiTError as refused:
            found[name] = str(refused)

    spread = ParallelismConfig(ulysses_size=2, ulysses_anything=True)
    model = FLUX.build()
    split_by_diffusers(model)
    said("before", model, lambda: cache_dit.enable_cache(model, config))
    said("before both", model, lambda: cache_dit.enable_cache(model, config, parallelism_config=spread))
    found["untouched"] = str(sorted(name for name in vars(model) if name.startswith("_cache_dit")))
    for name, options in (("after", {}), ("after both", {"parallelism_config": spread})):
        other = FLUX.build()
        cache_dit.enable_cache(other, config, **options)
        split_by_diffusers(other)
        said(name, other, functools.partial(output_of, other, _even(FLUX.inputs(0))))
    divided: Any = FLUX.build()
    divided._parallel_config = SimpleNamespace(context_parallel_config=None)
    said("tensors", divided, lambda: cache_dit.enable_cache(divided, config))
    return found


def split_by_diffusers(model: Any) -> None:
    """What `enable_parallelism` does, which asks for the number of accelerators in between."""
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig

    mesh = dist.device_mesh.init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    config.setup(dist.get_rank(), 2, torch.device("cpu"), mesh=mesh)
    model._parallel_config = config
    for part in model.modules():
        if hasattr(getattr(part, "processor", None), "_parallel_config"):
            part.processor._parallel_config = config
    apply_context_parallel(model, config.context_parallel_config, model._cp_plan)


def failed_installation() -> dict[str, Any]:
    """A cache that does not fit, with the ranks or before them, leaves a model neither cached nor spread."""
    model = small_flux()
    spread = ParallelismConfig(ulysses_size=2, ulysses_anything=True)

    def classes() -> list[type]:
        return [type(getattr(part, "processor", part)) for part in model.modules()]

    def said(**options: Any) -> str:
        try:
            cache_dit.enable_cache(model, **options)
        except cache_dit.CacheDiTError as refused:
            return str(refused)
        return ""

    kinds, wanted = classes(), output_of(model, FLUX.inputs(0))
    found: dict[str, Any] = {"together": said(cache_config=ToCaConfig(), parallelism_config=spread)}
    same = [classes() == kinds]
    cache_dit.enable_cache(model, IntervalConfig(interval=2), FreqCaCalibratorConfig())
    cached = classes()
    found["afterwards"] = said(parallelism_config=spread)
    same.append(classes() == cached)
    cache_dit.disable_cache(model)
    same.append(classes() == kinds)
    return found | {"same": same, "equal": error(wanted, output_of(model, FLUX.inputs(0))) == 0.0}


def float8() -> float:
    """Relative L2 error of a forward whose queries and values travel as float8."""
    model = FLUX.build()
    wanted = output_of(model, FLUX.inputs(0))[0]
    config = ParallelismConfig(ulysses_size=2, ulysses_anything=True, ulysses_float8=True)
    cache_dit.enable_cache(model, parallelism_config=config)
    got = output_of(model, FLUX.inputs(0))[0]
    return float((wanted - got).norm() / wanted.norm())


def lengths_inside() -> list[int]:
    """How many tokens of image and text a block works on."""
    model = small_flux()
    seen: list[int] = []
    block = model.get_submodule("transformer_blocks.1")
    block.register_forward_hook(lambda _, args, out: seen.extend(part.shape[1] for part in out))
    cache_dit.enable_cache(model, parallelism_config=ParallelismConfig(ulysses_size=2, ulysses_anything=True))
    output_of(model, FLUX.inputs(0))
    return seen


def compiled() -> dict[str, Any]:
    """Blocks compiled in one piece, with even sequences and any."""
    found = {}
    for name, options in (("even", {}), ("uneven", {"ulysses_anything": True})):
        torch._dynamo.reset()
        model = small_flux()
        model.transformer_blocks = model.transformer_blocks[:1]
        model.single_transformer_blocks = model.single_transformer_blocks[:1]
        inputs = _even(FLUX.inputs(0)) if name == "even" else FLUX.inputs(0)
        wanted = output_of(model, inputs)
        cache_dit.enable_cache(model, parallelism_config=ParallelismConfig(ulysses_size=2, **options))
        model.compile_repeated_blocks(fullgraph=name == "even", backend="eager")
        found[name] = error(wanted, output_of(model, inputs))
    return found


def _even(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {
        "encoder_hidden_states": inputs["encoder_hidden_states"][:, :4],
        "txt_ids": inputs["txt_ids"][:4],
    }


def backend() -> dict[str, Any]:
    """The attention backend of the configuration, on one model alone."""
    model, other = small_flux(), small_flux()
    wanted = output_of(model, FLUX.inputs(0))
    config = ParallelismConfig(ulysses_size=2, ulysses_anything=True, attention_backend="_native_math")
    cache_dit.enable_cache(model, parallelism_config=config)
    inside = str(model.transformer_blocks[0].attn.processor._attention_backend)
    found = {"error": error(wanted, output_of(model, FLUX.inputs(0))), "inside": inside}
    cache_dit.disable_cache(model)
    return found | {
        "after": model.transformer_blocks[0].attn.processor._attention_backend,
        "other": other.transformer_blocks[0].attn.processor._attention_backend,
    }


def processors() -> dict[str, Any]:
    """Processors and kernels that are set while the sequence is shared."""
    model, mine = small_flux(), FluxAttnProcessor()
    given = FLUX.inputs(0)
    wanted = output_of(model, given)
    cache_dit.enable_cache(model, parallelism_config=ParallelismConfig(ulysses_size=2, ulysses_anything=True))
    found, first = [error(wanted, output_of(model, given))], dict(model.attn_processors)
    for one in (mine, first, mine):
        model.set_attn_processor(one)
        found.append(error(wanted, output_of(model, given)))
    with cache_dit.set_attn_backend(model, "_native_math"):
        found.append(error(wanted, output_of(model, given)))
    inside = cache_dit.set_attn_backend(model, "native")
    cache_dit.disable_cache(model)
    kept = {one.processor is mine for one in model.modules() if hasattr(one, "processor")}
    chosen = str(mine._attention_backend)
    inside.close()
    found.append(error(wanted, output_of(model, given)))
    return {"error": max(found), "kept": list(kept), "chosen": chosen, "after": mine._attention_backend}


def replicas() -> dict[str, Any]:
    """Two samples on two ranks each: they decide for themselves."""
    seed = 3 + dist.get_rank() // 2
    model = small_flux()
    cache_dit.enable_cache(model, *METHODS["dbcache"])
    alone = decisions_of(model, seed)
    cache_dit.disable_cache(model)
    config = ParallelismConfig(ulysses_size=2, ulysses_anything=True)
    cache_dit.enable_cache(model, *METHODS["dbcache"], parallelism_config=config)
    return {"alone": alone, "together": decisions_of(model, seed)}


def decisions_of(model: nn.Module, seed: int) -> str:
    """Those of a run from one seed."""
    Denoising(model, seed, STEPS).finish()
    return decisions(model)


def engine_of_the_user() -> dict[str, Any]:
    """A process group alone: nothing is installed, and ranks with different inputs decide together."""
    rank = dist.get_rank()
    group = dist.new_group([rank // 2 * 2, rank // 2 * 2 + 1], use_local_synchronization=True)
    model = small_flux()
    kinds = [type(part.processor) for part in model.modules() if hasattr(part, "processor")]
    config = ParallelismConfig(process_group=group)
    cache_dit.enable_cache(model, *METHODS["dbcache"], parallelism_config=config)
    same = kinds == [type(part.processor) for part in model.modules() if hasattr(part, "processor")]
    return {"same": same, "decisions": decisions_of(model, 3 + rank)}


def mesh() -> dict[str, Any]:
    """Sizes and members of the groups."""
    from cache_dit.parallelism.mesh import share

    made = share(ParallelismConfig(ulysses_size="auto", tp_size=2))
    assert made.mesh is not None
    assert made.context is not None
    return {
        "shape": list(made.mesh.shape),
        "names": list(made.mesh.mesh_dim_names or ()),
        "context": dist.get_process_group_ranks(made.context),
        "group": dist.get_process_group_ranks(made.group),
        "label": made.label,
    }
