"""What the examples with FLUX share: the model that they load, and what surrounds its loop of steps."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from torch import Tensor

from cache_dit import demo


def load(about: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline that the command line asks for, and what it is called with besides a prompt."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument(
        "--model",
        default="black-forest-labs/FLUX.1-dev",
        help="a FLUX.1 model: a folder or a name on the hub",
    )
    parser.add_argument("--demo", action="store_true", help="the small model of cache_dit, on the CPU")
    parser.add_argument("--steps", type=int, default=28, help="denoising steps")
    given = parser.parse_args()
    if given.demo:
        size = {"height": 64, "width": 64, "max_sequence_length": 10}
        return demo.load_pipeline(), {"num_inference_steps": given.steps, **size}
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(given.model, dtype=torch.bfloat16)
    size = {"height": 1024, "width": 1024, "max_sequence_length": 512}
    return pipe.to("cuda"), {"num_inference_steps": given.steps, **size}


def seeded(number: int = 0) -> torch.Generator:
    """The same noise for runs that are compared."""
    return torch.Generator("cpu").manual_seed(number)


def scheduler_of(pipe: Any, steps: int) -> Any:
    """A scheduler for one picture; several in the making need one each, since it counts its steps."""
    scheduler = copy.deepcopy(pipe.scheduler)
    # mu moves the noise levels of pictures of 1024 x 1024; the small model has no use for it.
    sigmas = [1 - step / steps for step in range(steps)]
    scheduler.set_timesteps(sigmas=sigmas, mu=1.15, device=pipe.transformer.device)
    return scheduler


@torch.no_grad()
def inputs_of(pipe: Any, prompt: str, size: dict[str, Any], seed: int) -> tuple[Tensor, dict[str, Any]]:
    """Noise to begin with, and what the transformer takes in every step besides latents and time."""
    device, kind = pipe.transformer.device, pipe.transformer.dtype
    text, pooled, text_ids = pipe.encode_prompt(
        prompt, None, device=device, max_sequence_length=size["max_sequence_length"]
    )
    channels = pipe.transformer.config.in_channels // 4
    latents, image_ids = pipe.prepare_latents(
        1, channels, size["height"], size["width"], kind, device, seeded(seed)
    )
    guided = pipe.transformer.config.guidance_embeds
    return latents, {
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "txt_ids": text_ids,
        "img_ids": image_ids,
        "guidance": torch.full([1], 3.5, device=device) if guided else None,
        "return_dict": False,
    }


@torch.no_grad()
def picture_of(pipe: Any, latents: Tensor, size: dict[str, Any]) -> Any:
    """The finished latents as a PIL picture."""
    latents = pipe._unpack_latents(latents, size["height"], size["width"], pipe.vae_scale_factor)
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    return pipe.image_processor.postprocess(pipe.vae.decode(latents, return_dict=False)[0])[0]
