"""A transformer in a loop of your own, without a pipeline: say how many steps a run has."""

import torch
from flux_model import inputs_of, load, picture_of, scheduler_of

import cache_dit
from cache_dit import DBCacheConfig

pipe, size = load(__doc__)
transformer = pipe.transformer
steps = size["num_inference_steps"]


@torch.no_grad()
def denoise(latents, inputs, steps):
    scheduler = scheduler_of(pipe, steps)
    for time in scheduler.timesteps:
        velocity = transformer(latents, timestep=time.expand(1) / 1000, **inputs)[0]
        latents = scheduler.step(velocity, time, latents, return_dict=False)[0]
    return latents


cache_dit.enable_cache(
    transformer,
    DBCacheConfig(
        num_inference_steps=steps, Fn_compute_blocks=1, max_warmup_steps=4, residual_diff_threshold=0.12
    ),
)
latents, inputs = inputs_of(pipe, "a yellow tree on snow at day", size, seed=0)
picture_of(pipe, denoise(latents, inputs, steps), size).save("transformer_only.png")
cache_dit.summary(transformer)

cache_dit.refresh_context(transformer, num_inference_steps=2 * steps)
denoise(latents, inputs, 2 * steps)
cache_dit.summary(transformer)
