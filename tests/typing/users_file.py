"""What a user's file would say, for `mypy --strict`; never run.

`assert_type` holds what users get. Each `type: ignore` names a mistake that must be found in its line; where
it is not, mypy says that the comment is not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import torch
from torch import nn

import cache_dit
from cache_dit import (
    BlockAdapter,
    BlockAdapterRegister,
    CacheConfig,
    CacheStats,
    CacheType,
    CalibratorConfig,
    DBCacheConfig,
    Finding,
    ForwardPattern,
    ParallelismConfig,
    ParamsModifier,
    PatchFunctor,
    Place,
    Preset,
    Request,
    Schedule,
    TaylorSeerCalibratorConfig,
    Trajectory,
    presets,
)
from cache_dit.compile import compile_repeated_blocks
from cache_dit.metrics import Measured, compute_psnr
from cache_dit.quantize import QuantType
from cache_dit.tune import Bisection, Family, Profile, Tuned, calibrate, observe, tune


def caching(pipe: Any, transformer: nn.Linear) -> None:
    assert_type(cache_dit.enable_cache(transformer), nn.Linear)
    assert_type(cache_dit.disable_cache(transformer), nn.Linear)
    config = DBCacheConfig(Fn_compute_blocks=8, residual_diff_threshold=0.12, place=Place.MIDDLE)
    assert_type(config.residual_diff_threshold, float)
    assert_type(config.strify(), str)
    modifiers = [ParamsModifier(cache_config=DBCacheConfig().reset(max_warmup_steps=2)), ParamsModifier()]
    cache_dit.enable_cache(
        pipe,
        cache_config=config,
        calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=1),
        params_modifiers=modifiers,
        parallelism_config=ParallelismConfig(ulysses_size=2, tp_size="auto"),
    )
    cache_dit.enable_cache(pipe, presets.taylorseer_lite(interval=5, order=1))
    cache_dit.enable_cache(pipe, cache_dit.parse_config("F8B0_W8M0MC3_R0.12_T1O1"))
    cache_dit.enable_cache(pipe, **cache_dit.load_configs("cache.yaml"))
    cache_dit.refresh_context(transformer, num_inference_steps=50)
    with Request(num_inference_steps=28, cache_config=config) as request:
        assert_type(request, Request)
    assert_type(cache_dit.steps_mask(mask_policy="fast", total_steps=28), list[int])


def mistakes(pipe: Any) -> None:
    DBCacheConfig(residual_diff_treshold=0.1)  # type: ignore[call-arg]
    DBCacheConfig(max_warmup_steps="8")  # type: ignore[arg-type]
    DBCacheConfig(place="OUTPUT")  # type: ignore[arg-type]
    cache_dit.enable_cache(pipe, TaylorSeerCalibratorConfig())  # type: ignore[arg-type]
    cache_dit.summary(pipe, detail=True)  # type: ignore[call-arg]
    cache_dit.enable_caches(pipe)  # type: ignore[attr-defined]
    presets.fora(interval="3")  # type: ignore[arg-type]
    compute_psnr("a", "b", batchsize=4)  # type: ignore[call-arg]


def reading(pipe: Any) -> None:
    stats = cache_dit.summary(pipe, details=True, logging=False)
    assert_type(stats, list[CacheStats])
    assert_type(stats[0].cached_steps, list[int])
    assert_type(stats[0].residual_diffs, dict[int, float])
    assert_type(stats[0].flops_saved, float | None)
    assert_type(cache_dit.diagnose(pipe), list[Finding])
    assert_type(cache_dit.strify(pipe), str)
    assert_type(cache_dit.report(pipe, "run.html", seconds=1.0), Path)
    assert_type(cache_dit.supported_pipelines(), tuple[int, list[str]])
    assert_type(cache_dit.DBCache, CacheType)


class Unrolled(PatchFunctor):
    def apply(self, transformer: nn.Module, **kwargs: Any) -> nn.Module:
        return transformer


@BlockAdapterRegister.register("Mine")
def mine(pipe: Any, **options: Any) -> BlockAdapter:
    return BlockAdapter(
        pipe=pipe,
        blocks_name="layers",
        forward_pattern=ForwardPattern.Pattern_1,
        patch_functor=Unrolled(),
        **options,
    )


def learning(pipe: Any, prompts: list[str]) -> Preset:
    assert_type(calibrate(pipe, prompts, num_inference_steps=28, height=1024), Trajectory)
    assert_type(observe(pipe, prompts, num_inference_steps=28).schedule(14), Schedule)
    space = [Family(name="FORA", make=presets.fora, mild=2, strong=6, whole=True)]
    found = tune(pipe, prompts, "2x", num_inference_steps=28, space=space, search=Bisection(trials=3))
    assert_type(found, Tuned)
    found.profile.save("profile.json")
    return Profile.load(Path("profile.json"))


def stacking(model: nn.Linear) -> None:
    assert_type(cache_dit.quantize(model, QuantType.INT8_WEIGHT_ONLY), nn.Linear)
    assert_type(compile_repeated_blocks(model, mode="max-autotune-no-cudagraphs"), nn.Linear)
    with cache_dit.set_compile_configs(recompile_limit=16), cache_dit.set_attn_backend(model, "native"):
        model(torch.zeros(1))


def measuring() -> float:
    measured = compute_psnr("true", Path("test"), per_item="psnr.csv", batch_size=4)
    assert_type(measured, Measured)
    value, n = measured
    return value / n


def either(config: CacheConfig | None, calibrator: CalibratorConfig | None) -> Preset:
    return Preset(config or DBCacheConfig(), calibrator or CalibratorConfig())
