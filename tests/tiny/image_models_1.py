"""Tiny image transformers."""

from __future__ import annotations

from typing import Any

import torch

from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra
from .bria_hunyuan_models import (
    BRIA,
    BRIA_FIBO,
    BRIA_FIBO2,
    HUNYUAN_DIT,
    HUNYUAN_IMAGE,
    HUNYUAN_IMAGE_REFINER,
)
from .flux_2_3_models import FLUX2, FLUX2_KV, FLUX3
from .image_inputs import (
    HEAD,
    HEADS,
    IMAGE,
    NUM_HEADS,
    POOLED,
    ROPE,
    SIDE,
    TEXT,
    TEXT_DIM,
    WIDTH,
    grid,
    size,
    times,
)


def _hidream_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "timesteps": times(draw, 1000),
        "encoder_hidden_states_t5": draw(BATCH, TEXT, TEXT_DIM),
        "encoder_hidden_states_llama3": draw(10, BATCH, 3, 20),
        "pooled_embeds": draw(BATCH, POOLED),
    }


def _hidream_mask(draw: Draw) -> Inputs:
    return {
        "hidden_states": draw(BATCH, IMAGE, 16),
        "hidden_states_masks": keep_all_but(4, IMAGE).float(),
        "img_ids": grid(3).expand(BATCH, -1, -1),
        "img_sizes": [(SIDE, SIDE)] * BATCH,
    }


HIDREAM = TinyModel(
    name="HiDreamImageTransformer2DModel",
    build=builder(
        "HiDreamImageTransformer2DModel",
        seed=104,
        patch_size=2,
        in_channels=4,
        num_layers=4,
        num_single_layers=6,
        caption_channels=[TEXT_DIM, 20],
        text_emb_dim=POOLED,
        num_routed_experts=3,
        axes_dims_rope=ROPE,
        max_resolution=(8, 8),
        llama_layers=list(range(10)),
        **HEADS,
    ),
    inputs=_hidream_inputs,
    block_lists=("double_stream_blocks", "single_stream_blocks"),
    variants={"masked": with_extra(_hidream_inputs, _hidream_mask)},
)


def _cogview_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw(BATCH, TEXT, TEXT_DIM),
        "timestep": times(draw, 1000),
        "original_size": size(64, 64),
        "target_size": size(64, 64),
        "crop_coords": size(0, 0),
    }


_COGVIEW_CONFIG: Inputs = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 6,
    "text_embed_dim": TEXT_DIM,
    "time_embed_dim": 16,
    "condition_dim": 8,
    **HEADS,
}

COGVIEW3 = TinyModel(
    name="CogView3PlusTransformer2DModel",
    build=builder(
        "CogView3PlusTransformer2DModel",
        seed=107,
        pos_embed_max_size=8,
        sample_size=8,
        **_COGVIEW_CONFIG,
    ),
    inputs=_cogview_inputs,
    block_lists=("transformer_blocks",),
)
COGVIEW4 = TinyModel(
    name="CogView4Transformer2DModel",
    build=builder(
        "CogView4Transformer2DModel", seed=108, sample_size=8, rope_axes_dim=(8, 8), **_COGVIEW_CONFIG
    ),
    inputs=_cogview_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(_cogview_inputs, lambda _: {"attention_mask": keep_all_but(2, TEXT)}),
        "attention_kwargs": with_extra(_cogview_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)


def _glm_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw(BATCH, TEXT, TEXT_DIM),
        "prior_token_id": torch.arange(BATCH * IMAGE).reshape(BATCH, IMAGE),
        "prior_token_drop": torch.zeros(BATCH, IMAGE, dtype=torch.bool),
        "timestep": times(draw, 1000),
        "target_size": size(64, 64),
        "crop_coords": size(0, 0),
    }


_GLM_LAYERS = 6


def _glm_caches(mode: str) -> Any:
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    caches = GlmImageKVCache(_GLM_LAYERS)
    caches.set_mode(mode)
    return caches


def _glm_condition_image(draw: Draw) -> Inputs:
    caches = _glm_caches("read")
    for layer in caches.caches:
        layer.store(draw(1, 4, NUM_HEADS, HEAD), draw(1, 4, NUM_HEADS, HEAD))
    return {"kv_caches": caches}


def _glm_write(seed: int) -> Inputs:
    return _glm_inputs(seed) | {"kv_caches": _glm_caches("write")}


GLM_IMAGE = TinyModel(
    name="GlmImageTransformer2DModel",
    build=builder(
        "GlmImageTransformer2DModel",
        seed=109,
        in_channels=4,
        out_channels=4,
        num_layers=_GLM_LAYERS,
        text_embed_dim=TEXT_DIM,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=BATCH * IMAGE,
        **HEADS,
    ),
    inputs=_glm_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "condition_image": with_extra(_glm_inputs, _glm_condition_image),
        "padded_text": with_extra(_glm_inputs, lambda _: {"attention_mask": keep_all_but(2, TEXT)}),
    },
    bypassed=_glm_write,
)


def _aura_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw(BATCH, TEXT, TEXT_DIM),
        "timestep": times(draw),
    }


AURA_FLOW = TinyModel(
    name="AuraFlowTransformer2DModel",
    build=builder(
        "AuraFlowTransformer2DModel",
        seed=110,
        sample_size=8,
        num_mmdit_layers=4,
        num_single_dit_layers=6,
        joint_attention_dim=TEXT_DIM,
        caption_projection_dim=WIDTH,
        pos_embed_max_size=IMAGE,
        **HEADS,
    ),
    inputs=_aura_inputs,
    block_lists=("joint_transformer_blocks", "single_transformer_blocks"),
    variants={
        "attention_kwargs": with_extra(_aura_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)


def _ernie_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 16, SIDE, SIDE),
        "timestep": times(draw, 1000),
        "text_bth": draw(BATCH, TEXT, TEXT_DIM),
        "text_lens": torch.tensor([TEXT] * BATCH),
    }


ERNIE_IMAGE = TinyModel(
    name="ErnieImageTransformer2DModel",
    build=builder(
        "ErnieImageTransformer2DModel",
        seed=114,
        hidden_size=WIDTH,
        num_attention_heads=NUM_HEADS,
        num_layers=6,
        ffn_hidden_size=2 * WIDTH,
        in_channels=16,
        out_channels=16,
        text_in_dim=TEXT_DIM,
        rope_axes_dim=ROPE,
    ),
    inputs=_ernie_inputs,
    block_lists=("layers",),
    variants={
        "padded_text": with_extra(
            _ernie_inputs, lambda _: {"text_lens": torch.tensor([TEXT] * (BATCH - 1) + [TEXT - 2])}
        ),
    },
)


def _ideogram_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    length = TEXT + IMAGE
    text = torch.arange(TEXT)[:, None].expand(-1, 3)
    positions = torch.cat([text, 65536 + grid(3).long()])
    roles = torch.tensor([3] * TEXT + [2] * IMAGE)
    return {
        "hidden_states": draw(BATCH, length, 16),
        # This model's time runs from noise at 0 to the image at 1.
        "timestep": 1 - times(draw),
        "encoder_hidden_states": draw(BATCH, length, TEXT_DIM),
        "position_ids": positions.expand(BATCH, -1, -1),
        "segment_ids": torch.ones(BATCH, length, dtype=torch.long),
        "indicator": roles.expand(BATCH, -1),
    }


def _ideogram_padding(_: Draw) -> Inputs:
    plain = _ideogram_inputs(0)
    padded = torch.zeros_like(plain["segment_ids"], dtype=torch.bool)
    padded[1, :2] = True
    return {name: plain[name].masked_fill(padded, -1) for name in ("segment_ids", "indicator")}


IDEOGRAM4 = TinyModel(
    name="Ideogram4Transformer2DModel",
    build=builder(
        "Ideogram4Transformer2DModel",
        seed=115,
        in_channels=16,
        num_layers=6,
        intermediate_size=2 * WIDTH,
        adaln_dim=16,
        llm_features_dim=TEXT_DIM,
        mrope_section=(4, 2, 2),
        **HEADS,
    ),
    inputs=_ideogram_inputs,
    block_lists=("layers",),
    variants={"padded_text": with_extra(_ideogram_inputs, _ideogram_padding)},
)

MODELS: tuple[TinyModel, ...] = (
    FLUX2,
    FLUX2_KV,
    FLUX3,
    HIDREAM,
    HUNYUAN_IMAGE,
    HUNYUAN_IMAGE_REFINER,
    COGVIEW3,
    COGVIEW4,
    GLM_IMAGE,
    AURA_FLOW,
    BRIA,
    BRIA_FIBO,
    BRIA_FIBO2,
    ERNIE_IMAGE,
    IDEOGRAM4,
    HUNYUAN_DIT,
)
