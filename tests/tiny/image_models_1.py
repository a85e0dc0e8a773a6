"""Tiny image transformers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux2 import (
    Flux2KVAttnProcessor,
    Flux2KVCache,
    Flux2KVParallelSelfAttnProcessor,
)
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from torch import Tensor, nn

from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra

_SIDE, _TEXT, _TEXT_DIM, _POOLED = 4, 5, 24, 20
_IMAGE = _SIDE**2
_NUM_HEADS, _HEAD = 2, 16
_WIDTH = _NUM_HEADS * _HEAD
_HEADS: Inputs = {"num_attention_heads": _NUM_HEADS, "attention_head_dim": _HEAD}
_ROPE = (4, 6, 6)
_ROPE_4 = (4, 4, 4, 4)


def _grid(axes: int, time: float = 0) -> Tensor:
    """Position of every image token; the second and third axes are row and column."""
    ids = torch.zeros(_SIDE, _SIDE, axes)
    ids[..., 0] = time
    ids[..., 1] += torch.arange(_SIDE)[:, None]
    ids[..., 2] += torch.arange(_SIDE)[None, :]
    return ids.reshape(_IMAGE, axes)


def _times(draw: Draw, scale: float = 1) -> Tensor:
    return torch.full((BATCH,), scale * draw.time)


def _size(*values: int) -> Tensor:
    return torch.tensor([values] * BATCH, dtype=torch.float32)


# --- Flux 2 and 3 ---


def _flux2_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _IMAGE, 16),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": _times(draw),
        "img_ids": _grid(4),
        "txt_ids": torch.zeros(_TEXT, 4),
        "guidance": torch.full((BATCH,), 3.5),
    }


_FLUX2_CONFIG: Inputs = {
    "in_channels": 16,
    "num_layers": 4,
    "num_single_layers": 6,
    "joint_attention_dim": _TEXT_DIM,
    "timestep_guidance_channels": 16,
    "axes_dims_rope": _ROPE_4,
    **_HEADS,
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
    for block in model.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    return model


def _flux2_kv_cache(draw: Draw) -> Inputs:
    cache = Flux2KVCache(_FLUX2_CONFIG["num_layers"], _FLUX2_CONFIG["num_single_layers"])
    cache.num_ref_tokens = 4
    for layer in (*cache.double_block_caches, *cache.single_block_caches):
        layer.store(draw(BATCH, 4, _NUM_HEADS, _HEAD), draw(BATCH, 4, _NUM_HEADS, _HEAD))
    return {"kv_cache": cache, "kv_cache_mode": "cached"}


def flux2_extract(seed: int) -> Inputs:
    """The first step of an edit: half of the tokens are those of the reference image."""
    return _flux2_inputs(seed) | {"kv_cache_mode": "extract", "num_ref_tokens": _IMAGE // 2}


def flux2_cached(seed: int, cache: Flux2KVCache) -> Inputs:
    """A later step of it, with the other half of the tokens."""
    inputs = _flux2_inputs(seed)
    new = {name: inputs[name][..., _IMAGE // 2 :, :] for name in ("hidden_states", "img_ids")}
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
        joint_attention_dim=_TEXT_DIM,
        timestep_channels=16,
        axes_dims_rope=_ROPE_4,
        **_HEADS,
    ),
    inputs=_flux3_inputs,
    block_lists=("mode_blocks.image", "single_transformer_blocks"),
    variants={
        "reference_image": with_extra(
            _flux3_inputs,
            lambda draw: {
                "image_cond_hidden_states": draw(BATCH, _IMAGE, 16),
                "image_cond_ids": _grid(4, time=10),
            },
        ),
    },
)

# --- two streams ---


def _hidream_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "timesteps": _times(draw, 1000),
        "encoder_hidden_states_t5": draw(BATCH, _TEXT, _TEXT_DIM),
        "encoder_hidden_states_llama3": draw(10, BATCH, 3, 20),
        "pooled_embeds": draw(BATCH, _POOLED),
    }


def _hidream_mask(draw: Draw) -> Inputs:
    return {
        "hidden_states": draw(BATCH, _IMAGE, 16),
        "hidden_states_masks": keep_all_but(4, _IMAGE).float(),
        "img_ids": _grid(3).expand(BATCH, -1, -1),
        "img_sizes": [(_SIDE, _SIDE)] * BATCH,
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
        caption_channels=[_TEXT_DIM, 20],
        text_emb_dim=_POOLED,
        num_routed_experts=3,
        axes_dims_rope=_ROPE,
        max_resolution=(8, 8),
        llama_layers=list(range(10)),
        **_HEADS,
    ),
    inputs=_hidream_inputs,
    block_lists=("double_stream_blocks", "single_stream_blocks"),
    variants={"masked": with_extra(_hidream_inputs, _hidream_mask)},
)


def _hunyuan_image_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 8, _SIDE, _SIDE),
        "timestep": _times(draw, 1000),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "encoder_attention_mask": keep_all_but(0, _TEXT),
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
    "text_embed_dim": _TEXT_DIM,
    "guidance_embeds": True,
    "use_meanflow": True,
    **_HEADS,
}

HUNYUAN_IMAGE = TinyModel(
    name="HunyuanImageTransformer2DModel",
    build=builder("HunyuanImageTransformer2DModel", seed=105, rope_axes_dim=(8, 8), **_HUNYUAN_IMAGE_CONFIG),
    inputs=_hunyuan_image_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={
        "padded_text": with_extra(
            _hunyuan_image_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, _TEXT)}
        ),
        "meanflow": with_extra(_hunyuan_image_inputs, lambda draw: {"timestep_r": _times(draw, 500)}),
        "attention_kwargs": with_extra(_hunyuan_image_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)
HUNYUAN_IMAGE_REFINER = TinyModel(
    name="HunyuanImageTransformer2DModel",
    build=builder(
        "HunyuanImageTransformer2DModel",
        seed=106,
        patch_size=(1, 1, 1),
        rope_axes_dim=_ROPE,
        **_HUNYUAN_IMAGE_CONFIG,
    ),
    inputs=_hunyuan_refiner_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    label="refiner",
)


def _cogview_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": _times(draw, 1000),
        "original_size": _size(64, 64),
        "target_size": _size(64, 64),
        "crop_coords": _size(0, 0),
    }


_COGVIEW_CONFIG: Inputs = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 6,
    "text_embed_dim": _TEXT_DIM,
    "time_embed_dim": 16,
    "condition_dim": 8,
    **_HEADS,
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
        "padded_text": with_extra(_cogview_inputs, lambda _: {"attention_mask": keep_all_but(2, _TEXT)}),
        "attention_kwargs": with_extra(_cogview_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)


def _glm_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "prior_token_id": torch.arange(BATCH * _IMAGE).reshape(BATCH, _IMAGE),
        "prior_token_drop": torch.zeros(BATCH, _IMAGE, dtype=torch.bool),
        "timestep": _times(draw, 1000),
        "target_size": _size(64, 64),
        "crop_coords": _size(0, 0),
    }


_GLM_LAYERS = 6


def _glm_condition_image(draw: Draw) -> Inputs:
    caches = GlmImageKVCache(_GLM_LAYERS)
    caches.set_mode("read")
    for layer in caches.caches:
        layer.store(draw(1, 4, _NUM_HEADS, _HEAD), draw(1, 4, _NUM_HEADS, _HEAD))
    return {"kv_caches": caches}


def _glm_write(seed: int) -> Inputs:
    caches = GlmImageKVCache(_GLM_LAYERS)
    caches.set_mode("write")
    return _glm_inputs(seed) | {"kv_caches": caches}


GLM_IMAGE = TinyModel(
    name="GlmImageTransformer2DModel",
    build=builder(
        "GlmImageTransformer2DModel",
        seed=109,
        in_channels=4,
        out_channels=4,
        num_layers=_GLM_LAYERS,
        text_embed_dim=_TEXT_DIM,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=BATCH * _IMAGE,
        **_HEADS,
    ),
    inputs=_glm_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "condition_image": with_extra(_glm_inputs, _glm_condition_image),
        "padded_text": with_extra(_glm_inputs, lambda _: {"attention_mask": keep_all_but(2, _TEXT)}),
    },
    bypassed=_glm_write,
)


def _aura_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": _times(draw),
    }


AURA_FLOW = TinyModel(
    name="AuraFlowTransformer2DModel",
    build=builder(
        "AuraFlowTransformer2DModel",
        seed=110,
        sample_size=8,
        num_mmdit_layers=4,
        num_single_dit_layers=6,
        joint_attention_dim=_TEXT_DIM,
        caption_projection_dim=_WIDTH,
        pos_embed_max_size=_IMAGE,
        **_HEADS,
    ),
    inputs=_aura_inputs,
    block_lists=("joint_transformer_blocks", "single_transformer_blocks"),
    variants={
        "attention_kwargs": with_extra(_aura_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)

# --- Bria ---


def _bria_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _IMAGE, 16),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": _times(draw, 1000),
        "img_ids": _grid(3),
        "txt_ids": torch.zeros(_TEXT, 3),
    }


def _fibo_inputs(seed: int) -> Inputs:
    draw = Draw(seed + 1_000)
    return _bria_inputs(seed) | {"text_encoder_layers": [draw(BATCH, _TEXT, 12) for _ in range(10)]}


def _fibo_mask(_: Draw) -> Inputs:
    keep = torch.cat([keep_all_but(2, _TEXT), torch.ones(BATCH, _IMAGE, dtype=torch.bool)], dim=1)
    return {"joint_attention_kwargs": {"attention_mask": keep[:, None, None, :]}}


_BRIA_CONFIG: Inputs = {
    "in_channels": 16,
    "num_layers": 4,
    "num_single_layers": 6,
    "joint_attention_dim": _TEXT_DIM,
    "axes_dims_rope": _ROPE,
    **_HEADS,
}

BRIA = TinyModel(
    name="BriaTransformer2DModel",
    build=builder("BriaTransformer2DModel", seed=111, **_BRIA_CONFIG),
    inputs=_bria_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={
        # Residuals of single blocks fail in the model itself: it adds them to a part that has another length.
        "controlnet": with_extra(
            _bria_inputs, lambda draw: {"controlnet_block_samples": draw.residuals(3, BATCH, _IMAGE, _WIDTH)}
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
        "timestep": _times(draw),
        "encoder_hidden_states": draw(BATCH, 3, 8, _TEXT_DIM),
    }


BRIA_FIBO2 = TinyModel(
    name="BriaFibo2Transformer2DModel",
    build=builder(
        "BriaFibo2Transformer2DModel",
        seed=113,
        in_channels=4,
        dim=_WIDTH,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=_NUM_HEADS,
        cap_feat_dim=_TEXT_DIM,
        injection_layer_ids=(2, 4),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=4,
        gist_max_text_len=12,
        axes_dims=_ROPE,
        axes_lens=(16, 8, 8),
    ),
    inputs=_fibo2_inputs,
    block_lists=("layers",),
    variants={
        "context_image": with_extra(_fibo2_inputs, lambda draw: {"context_latents": [draw(BATCH, 4, 4, 8)]}),
        "padded_text": with_extra(_fibo2_inputs, lambda _: {"encoder_attention_mask": keep_all_but(4, 8)}),
    },
)

# --- one stream ---


def _ernie_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 16, _SIDE, _SIDE),
        "timestep": _times(draw, 1000),
        "text_bth": draw(BATCH, _TEXT, _TEXT_DIM),
        "text_lens": torch.tensor([_TEXT] * BATCH),
    }


ERNIE_IMAGE = TinyModel(
    name="ErnieImageTransformer2DModel",
    build=builder(
        "ErnieImageTransformer2DModel",
        seed=114,
        hidden_size=_WIDTH,
        num_attention_heads=_NUM_HEADS,
        num_layers=6,
        ffn_hidden_size=2 * _WIDTH,
        in_channels=16,
        out_channels=16,
        text_in_dim=_TEXT_DIM,
        rope_axes_dim=_ROPE,
    ),
    inputs=_ernie_inputs,
    block_lists=("layers",),
    variants={
        "padded_text": with_extra(
            _ernie_inputs, lambda _: {"text_lens": torch.tensor([_TEXT] * (BATCH - 1) + [_TEXT - 2])}
        ),
    },
)


def _ideogram_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    length = _TEXT + _IMAGE
    text = torch.arange(_TEXT)[:, None].expand(-1, 3)
    positions = torch.cat([text, 65536 + _grid(3).long()])
    roles = torch.tensor([3] * _TEXT + [2] * _IMAGE)
    return {
        "hidden_states": draw(BATCH, length, 16),
        # This model's time runs from noise at 0 to the image at 1.
        "timestep": 1 - _times(draw),
        "encoder_hidden_states": draw(BATCH, length, _TEXT_DIM),
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
        intermediate_size=2 * _WIDTH,
        adaln_dim=16,
        llm_features_dim=_TEXT_DIM,
        mrope_section=(4, 2, 2),
        **_HEADS,
    ),
    inputs=_ideogram_inputs,
    block_lists=("layers",),
    variants={"padded_text": with_extra(_ideogram_inputs, _ideogram_padding)},
)


def _hunyuan_dit_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "timestep": _times(draw, 1000),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "text_embedding_mask": keep_all_but(1, _TEXT),
        "encoder_hidden_states_t5": draw(BATCH, 6, 16),
        "text_embedding_mask_t5": keep_all_but(2, 6),
        "image_meta_size": _size(64, 64, 64, 64, 0, 0),
        "style": torch.zeros(BATCH, dtype=torch.long),
        "image_rotary_emb": _rotations(),
    }


def _rotations() -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(_IMAGE), 0.3 ** torch.arange(_HEAD // 2)).repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()


HUNYUAN_DIT = TinyModel(
    name="HunyuanDiT2DModel",
    build=builder(
        "HunyuanDiT2DModel",
        seed=116,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=_WIDTH,
        num_layers=8,
        cross_attention_dim=_TEXT_DIM,
        cross_attention_dim_t5=16,
        pooled_projection_dim=_POOLED,
        text_len=_TEXT,
        text_len_t5=6,
        **_HEADS,
    ),
    inputs=_hunyuan_dit_inputs,
    block_lists=("blocks",),
    variants={
        "controlnet": with_extra(
            _hunyuan_dit_inputs,
            lambda draw: {"controlnet_block_samples": draw.residuals(3, BATCH, _IMAGE, _WIDTH)},
        ),
    },
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
