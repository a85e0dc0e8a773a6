"""Tiny transformers of Flux 2 and Flux 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import BATCH, Draw, Inputs, TinyModel, builder, with_extra
from .image_inputs import HEAD, HEADS, IMAGE, NUM_HEADS, ROPE_4, TEXT, TEXT_DIM, grid, times


def _flux2_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, IMAGE, 16),
        "encoder_hidden_states": draw(BATCH, TEXT, TEXT_DIM),
        "timestep": times(draw),
        "img_ids": grid(4),
        "txt_ids": torch.zeros(TEXT, 4),
        "guidance": torch.full((BATCH,), 3.5),
    }


_FLUX2_CONFIG: Inputs = {
    "in_channels": 16,
    "num_layers": 4,
    "num_single_layers": 6,
    "joint_attention_dim": TEXT_DIM,
    "timestep_guidance_channels": 16,
    "axes_dims_rope": ROPE_4,
    **HEADS,
}

FLUX2 = TinyModel(
    name="Flux2Transformer2DModel",
    build=builder("Flux2Transformer2DModel", seed=101, **_FLUX2_CONFIG),
    inputs=_flux2_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={
        "attention_kwargs": with_extra(_flux2_inputs, lambda _: {"joint_attention_kwargs": {"scale": 1.0}}),
    },
)


def _flux2_with_kv() -> nn.Module:
    model: Any = builder("Flux2Transformer2DModel", seed=102, **_FLUX2_CONFIG)()
    from diffusers.models.transformers.transformer_flux2 import (
        Flux2KVAttnProcessor,
        Flux2KVParallelSelfAttnProcessor,
    )

    for block in model.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    return model


def _flux2_kv_cache(draw: Draw) -> Inputs:
    from diffusers.models.transformers.transformer_flux2 import Flux2KVCache

    cache = Flux2KVCache(_FLUX2_CONFIG["num_layers"], _FLUX2_CONFIG["num_single_layers"])
    cache.num_ref_tokens = 4
    for layer in (*cache.double_block_caches, *cache.single_block_caches):
        layer.store(draw(BATCH, 4, NUM_HEADS, HEAD), draw(BATCH, 4, NUM_HEADS, HEAD))
    return {"kv_cache": cache, "kv_cache_mode": "cached"}


def flux2_extract(seed: int) -> Inputs:
    """The first step of an edit: half of the tokens are those of the reference image."""
    return _flux2_inputs(seed) | {"kv_cache_mode": "extract", "num_ref_tokens": IMAGE // 2}


def flux2_cached(seed: int, cache: Any) -> Inputs:
    """A later step of it, with the other half of the tokens."""
    inputs = _flux2_inputs(seed)
    new = {name: inputs[name][..., IMAGE // 2 :, :] for name in ("hidden_states", "img_ids")}
    return inputs | new | {"kv_cache": cache, "kv_cache_mode": "cached"}


FLUX2_KV = TinyModel(
    name="Flux2Transformer2DModel",
    build=_flux2_with_kv,
    inputs=_flux2_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={"kv_cached": with_extra(_flux2_inputs, _flux2_kv_cache)},
    label="kv",
)


def _flux3_inputs(seed: int) -> Inputs:
    inputs = _flux2_inputs(seed)
    del inputs["guidance"]
    return inputs


FLUX3 = TinyModel(
    name="Flux3Transformer2DModel",
    build=builder(
        "Flux3Transformer2DModel",
        seed=103,
        in_channels=16,
        cond_in_channels=16,
        num_layers=4,
        num_single_layers=6,
        joint_attention_dim=TEXT_DIM,
        timestep_channels=16,
        axes_dims_rope=ROPE_4,
        **HEADS,
    ),
    inputs=_flux3_inputs,
    block_lists=("mode_blocks.image", "single_transformer_blocks"),
    variants={
        "reference_image": with_extra(
            _flux3_inputs,
            lambda draw: {
                "image_cond_hidden_states": draw(BATCH, IMAGE, 16),
                "image_cond_ids": grid(4, time=10),
            },
        ),
    },
)
