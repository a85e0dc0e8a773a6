"""Wan 2.2 has two transformers, for high and for low noise: each gets its own state and its own options."""

import argparse

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import cache_dit
from cache_dit import DBCacheConfig, ParamsModifier, TaylorSeerCalibratorConfig

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument(
    "--model", default="Wan-AI/Wan2.2-T2V-A14B-Diffusers", help="a folder or a name on the hub"
)
parser.add_argument("--steps", type=int, default=40)
given = parser.parse_args()

pipe = WanPipeline.from_pretrained(given.model, dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()  # one expert on the GPU at a time

cache_dit.enable_cache(
    pipe,
    cache_config=DBCacheConfig(
        Fn_compute_blocks=1, residual_diff_threshold=0.12, max_continuous_cached_steps=3
    ),
    calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=1),
    # One for each transformer, which counts its own steps: the second takes over in the middle of the run,
    # when nothing of it is cached yet, so it has a warm-up too.
    params_modifiers=[
        ParamsModifier(cache_config=DBCacheConfig().reset(max_warmup_steps=4, max_cached_steps=8)),
        ParamsModifier(cache_config=DBCacheConfig().reset(max_warmup_steps=2, max_cached_steps=20)),
    ],
)

frames = pipe(
    "a cat walks on the grass",
    height=480,
    width=832,
    num_frames=81,
    guidance_scale=4.0,
    guidance_scale_2=3.0,
    num_inference_steps=given.steps,
    generator=torch.Generator("cpu").manual_seed(0),
).frames[0]
export_to_video(frames, "wan_two_experts.mp4", fps=16)
for name, stats in zip(("high noise", "low noise"), cache_dit.summary(pipe, logging=False), strict=True):
    print(f"{name}: {stats.total_steps} steps, skipped {stats.cached_steps}")
