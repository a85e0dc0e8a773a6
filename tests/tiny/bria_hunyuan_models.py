"""Tiny image transformers of Bria and Hunyuan."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra
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


def _bria_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, IMAGE, 16),
        "encoder_hidden_states": draw(BATCH, TEXT, TEXT_DIM),
        "timestep": times(draw, 1000),
        "img_ids": grid(3),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def _fibo_inputs(seed: int) -> Inputs:
    draw = Draw(seed + 1_000)
    return _bria_inputs(seed) | {"text_encoder_layers": [draw(BATCH, TEXT, 12) for _ in range(10)]}


def _fibo_mask(_: Draw) -> Inputs:
    keep = torch.cat([keep_all_but(2, TEXT), torch.ones(BATCH, IMAGE, dtype=torch.bool)], dim=1)
    return {"joint_attention_kwargs": {"attention_mask": keep[:, None, None, :]}}


_BRIA_CONFIG: Inputs = {
    "in_channels": 16,
    "num_layers": 4,
    "num_single_layers": 6,
    "joint_attention_dim": TEXT_DIM,
    "axes_dims_rope": ROPE,
    **HEADS,
}

BRIA = TinyModel(
    name="BriaTransformer2DModel",
    build=builder("BriaTransformer2DModel", seed=111, **_BRIA_CONFIG),
    inputs=_bria_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={
        # Residuals of single blocks fail in the model itself: it adds them to a part that has another length.
        "controlnet": with_extra(
            _bria_inputs, lambda draw: {"controlnet_block_samples": draw.residuals(3, BATCH, IMAGE, WIDTH)}
        ),
    },
)
BRIA_FIBO = TinyModel(
    name="BriaFiboTransformer2DModel",
    build=builder("BriaFiboTransformer2DModel", seed=112, text_encoder_dim=12, **_BRIA_CONFIG),
    inputs=_fibo_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={"padded_text": with_extra(_fibo_inputs, _fibo_mask)},
)


def _fibo2_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "timestep": times(draw),
        "encoder_hidden_states": draw(BATCH, 3, 8, TEXT_DIM),
    }


BRIA_FIBO2 = TinyModel(
    name="BriaFibo2Transformer2DModel",
    build=builder(
        "BriaFibo2Transformer2DModel",
        seed=113,
        in_channels=4,
        dim=WIDTH,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=NUM_HEADS,
        cap_feat_dim=TEXT_DIM,
        injection_layer_ids=(2, 4),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=4,
        gist_max_text_len=12,
        axes_dims=ROPE,
        axes_lens=(16, 8, 8),
    ),
    inputs=_fibo2_inputs,
    block_lists=("layers",),
    variants={
        "context_image": with_extra(_fibo2_inputs, lambda draw: {"context_latents": [draw(BATCH, 4, 4, 8)]}),
        "padded_text": with_extra(_fibo2_inputs, lambda _: {"encoder_attention_mask": keep_all_but(4, 8)}),
    },
)


def _hunyuan_image_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 8, SIDE, SIDE),
        "timestep": times(draw, 1000),
        "encoder_hidden_states": draw(BATCH, TEXT, TEXT_DIM),
        "encoder_attention_mask": keep_all_but(0, TEXT),
        "guidance": torch.full((BATCH,), 3500.0),
    }


def _hunyuan_refiner_inputs(seed: int) -> Inputs:
    inputs = _hunyuan_image_inputs(seed)
    return inputs | {"hidden_states": inputs["hidden_states"].unsqueeze(2)}


_HUNYUAN_IMAGE_CONFIG: Inputs = {
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 4,
    "num_single_layers": 6,
    "num_refiner_layers": 1,
    "text_embed_dim": TEXT_DIM,
    "guidance_embeds": True,
    "use_meanflow": True,
    **HEADS,
}

HUNYUAN_IMAGE = TinyModel(
    name="HunyuanImageTransformer2DModel",
    build=builder("HunyuanImageTransformer2DModel", seed=105, rope_axes_dim=(8, 8), **_HUNYUAN_IMAGE_CONFIG),
    inputs=_hunyuan_image_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={
        "padded_text": with_extra(
            _hunyuan_image_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, TEXT)}
        ),
        "meanflow": with_extra(_hunyuan_image_inputs, lambda draw: {"timestep_r": times(draw, 500)}),
        "attention_kwargs": with_extra(_hunyuan_image_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)
HUNYUAN_IMAGE_REFINER = TinyModel(
    name="HunyuanImageTransformer2DModel",
    build=builder(
        "HunyuanImageTransformer2DModel",
        seed=106,
        patch_size=(1, 1, 1),
        rope_axes_dim=ROPE,
        **_HUNYUAN_IMAGE_CONFIG,
    ),
    inputs=_hunyuan_refiner_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    label="refiner",
)


def _hunyuan_dit_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "timestep": times(draw, 1000),
        "encoder_hidden_states": draw(BATCH, TEXT, TEXT_DIM),
        "text_embedding_mask": keep_all_but(1, TEXT),
        "encoder_hidden_states_t5": draw(BATCH, 6, 16),
        "text_embedding_mask_t5": keep_all_but(2, 6),
        "image_meta_size": size(64, 64, 64, 64, 0, 0),
        "style": torch.zeros(BATCH, dtype=torch.long),
        "image_rotary_emb": _rotations(),
    }


def _rotations() -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(IMAGE), 0.3 ** torch.arange(HEAD // 2)).repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()


HUNYUAN_DIT = TinyModel(
    name="HunyuanDiT2DModel",
    build=builder(
        "HunyuanDiT2DModel",
        seed=116,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=WIDTH,
        num_layers=8,
        cross_attention_dim=TEXT_DIM,
        cross_attention_dim_t5=16,
        pooled_projection_dim=POOLED,
        text_len=TEXT,
        text_len_t5=6,
        **HEADS,
    ),
    inputs=_hunyuan_dit_inputs,
    block_lists=("blocks",),
    variants={
        "controlnet": with_extra(
            _hunyuan_dit_inputs,
            lambda draw: {"controlnet_block_samples": draw.residuals(3, BATCH, IMAGE, WIDTH)},
        ),
    },
)
