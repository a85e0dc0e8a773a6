"""A model distilled to a few steps: a short warm-up, many blocks always computed, no two skips in a row."""

import argparse
import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline

import cache_dit
from cache_dit import DBCacheConfig

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="Qwen/Qwen-Image", help="a folder or a name on the hub")
parser.add_argument("--lora", default="lightx2v/Qwen-Image-Lightning", help="likewise")
parser.add_argument("--steps", type=int, choices=(4, 8), default=4)
given = parser.parse_args()

pipe = QwenImagePipeline.from_pretrained(given.model, dtype=torch.bfloat16).to("cuda")
released = {4: "4steps-V1.0", 8: "8steps-V1.1"}[given.steps]
pipe.load_lora_weights(given.lora, weight_name=f"Qwen-Image-Lightning-{released}.safetensors")
# The noise levels that the LoRA was trained with.
pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
    pipe.scheduler.config, base_shift=math.log(3), max_shift=math.log(3), shift_terminal=None
)

cache_dit.enable_cache(
    pipe,
    DBCacheConfig(
        Fn_compute_blocks=16,
        Bn_compute_blocks=16,
        max_warmup_steps=2 if given.steps == 4 else 4,
        max_continuous_cached_steps=1,
        residual_diff_threshold=0.9,  # from step to step much changes; what is skipped is bounded by the rest
    ),
)

image = pipe(
    "a coffee shop with a chalkboard in front of it",
    true_cfg_scale=1.0,  # distilled: no guidance, so one forward a step
    num_inference_steps=given.steps,
    generator=torch.Generator("cpu").manual_seed(0),
).images[0]
image.save("qwen_image_lightning.png")
cache_dit.summary(pipe)
