"""Tiny pipelines with a ControlNet, whose picture controls all of a run or a part of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .base import Draw, Inputs, TinyModel
from .control_models import FLUX_CONTROL, QWEN_IMAGE_CONTROL, SD3_CONTROL
from .image_models import FLUX, QWEN_IMAGE, SD3

_TEXT, _TEXT_DIM, _POOLED = 5, 24, 20


@dataclass(frozen=True, eq=False)
class ControlPipeline:
    """One tiny pipeline with a transformer and the ControlNet that controls it."""

    name: str
    """Class name in diffusers."""
    transformer: TinyModel
    controlnet: TinyModel
    autoencoder: Callable[[], nn.Module]
    absent: tuple[str, ...]
    """Parts that prompt embeddings make unnecessary."""
    prompt: Callable[[Draw], Inputs]
    branches: int = 1
    """Forwards of the transformer in a step."""

    def build(self) -> Any:
        """The pipeline, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            autoencoder = self.autoencoder().eval()
        pipe: DiffusionPipeline = getattr(diffusers, self.name)(
            transformer=self.transformer.build(),
            controlnet=self.controlnet.build(),
            vae=autoencoder,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            **dict.fromkeys(self.absent),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, pipe: Any, steps: int, **options: Any) -> Tensor:
        """Final latents of a run with a fixed prompt and picture."""
        draw = Draw(0)
        given = self.prompt(draw) | {"control_image": draw(1, 3, 8, 8).sigmoid()} | options
        with torch.random.fork_rng(devices=[]):
            # SD3's pipeline draws from the latents of the picture without the generator.
            torch.manual_seed(0)
            latents: Tensor = pipe(
                height=8,
                width=8,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
                return_dict=False,
                **given,
            )[0]
        return latents


def _autoencoder() -> nn.Module:
    """Without compression: as many pixels as latents."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, shift_factor=0.1
    )


def _video_autoencoder() -> nn.Module:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1],
        num_res_blocks=1,
        temperal_downsample=[],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def _embeds(draw: Draw, *names: str, **others: Any) -> Inputs:
    sizes: Mapping[bool, tuple[int, ...]] = {True: (1, _POOLED), False: (1, _TEXT, _TEXT_DIM)}
    return {f"{name}_embeds": draw(*sizes["pooled" in name]) for name in names} | others


_masks = functools.partial(dict.fromkeys, ("prompt_embeds_mask", "negative_prompt_embeds_mask"))

FLUX_CONTROLNET = ControlPipeline(
    name="FluxControlNetPipeline",
    transformer=FLUX,
    controlnet=FLUX_CONTROL,
    autoencoder=_autoencoder,
    absent=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    prompt=lambda draw: _embeds(draw, "prompt", "pooled_prompt"),
)
SD3_CONTROLNET = ControlPipeline(
    name="StableDiffusion3ControlNetPipeline",
    transformer=SD3,
    controlnet=SD3_CONTROL,
    autoencoder=_autoencoder,
    absent=(*FLUX_CONTROLNET.absent, "text_encoder_3", "tokenizer_3"),
    prompt=lambda draw: _embeds(
        draw, "prompt", "pooled_prompt", "negative_prompt", "negative_pooled_prompt", guidance_scale=3.0
    ),
)
QWEN_IMAGE_CONTROLNET = ControlPipeline(
    name="QwenImageControlNetPipeline",
    transformer=QWEN_IMAGE,
    controlnet=QWEN_IMAGE_CONTROL,
    autoencoder=_video_autoencoder,
    absent=("text_encoder", "tokenizer"),
    prompt=lambda draw: _embeds(
        draw, "prompt", "negative_prompt", true_cfg_scale=4.0, **_masks(torch.ones(1, _TEXT))
    ),
    branches=2,
)

CONTROL_PIPELINES = (FLUX_CONTROLNET, SD3_CONTROLNET, QWEN_IMAGE_CONTROLNET)
