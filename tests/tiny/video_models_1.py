"""Tiny video transformers."""

from __future__ import annotations

import torch
from torch import Tensor

from . import kandinsky_cosmos_models
from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra

_FRAMES, _SIDE = 2, 4
_TOKENS = _FRAMES * _SIDE**2
_TEXT, _TEXT_DIM, _POOLED = 5, 24, 20
_WIDTH = 32
_HEADS: Inputs = {"num_attention_heads": 2, "attention_head_dim": 16}


def _timestep(draw: Draw) -> Tensor:
    return torch.full((BATCH,), int(1000 * draw.time))


def _latents(draw: Draw, frames: int = _FRAMES) -> Tensor:
    return draw(BATCH, 4, frames, 2 * _SIDE, 2 * _SIDE)


def _text_to_video_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": _latents(draw),
        "timestep": _timestep(draw),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
    }


# --- Hunyuan ---


def _hunyuan15_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, _FRAMES, _SIDE, _SIDE),
        "timestep": torch.full((BATCH,), 1000 * draw.time),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "encoder_attention_mask": keep_all_but(2, _TEXT),
        "encoder_hidden_states_2": draw(BATCH, 3, 12),
        "encoder_attention_mask_2": keep_all_but(1, 3),
        "image_embeds": torch.zeros(BATCH, 3, 12),
    }


HUNYUAN_VIDEO_15 = TinyModel(
    name="HunyuanVideo15Transformer3DModel",
    build=builder(
        "HunyuanVideo15Transformer3DModel",
        seed=401,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=_TEXT_DIM,
        text_embed_2_dim=12,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
        **_HEADS,
    ),
    inputs=_hunyuan15_inputs,
    block_lists=("transformer_blocks",),
    variants={"image": with_extra(_hunyuan15_inputs, lambda draw: {"image_embeds": draw(BATCH, 3, 12)})},
)


def _framepack_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return _text_to_video_inputs(seed) | {
        "encoder_attention_mask": keep_all_but(2, _TEXT),
        "pooled_projections": draw(BATCH, _POOLED),
        "guidance": torch.full((BATCH,), 6000.0),
        "image_embeds": draw(BATCH, 3, 12),
        "indices_latents": torch.arange(7, 7 + _FRAMES),
        "latents_clean": _latents(draw, frames=2),
        "indices_latents_clean": torch.tensor([0, 9]),
        "latents_history_2x": _latents(draw, frames=2),
        "indices_latents_history_2x": torch.tensor([5, 6]),
        "latents_history_4x": _latents(draw, frames=4),
        "indices_latents_history_4x": torch.arange(1, 5),
    }


FRAMEPACK = TinyModel(
    name="HunyuanVideoFramepackTransformer3DModel",
    build=builder(
        "HunyuanVideoFramepackTransformer3DModel",
        seed=402,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_single_layers=5,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=_TEXT_DIM,
        pooled_projection_dim=_POOLED,
        rope_axes_dim=(4, 6, 6),
        has_image_proj=True,
        image_proj_dim=12,
        has_clean_x_embedder=True,
        **_HEADS,
    ),
    inputs=_framepack_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
)

# --- relatives of Wan ---

_WAN_CONFIG: Inputs = {
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": _TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 5,
}


def _chrono_edit_inputs(seed: int) -> Inputs:
    return _text_to_video_inputs(seed) | {"encoder_hidden_states_image": Draw(seed + 1_000)(BATCH, 3, 12)}


CHRONO_EDIT = TinyModel(
    name="ChronoEditTransformer3DModel",
    build=builder(
        "ChronoEditTransformer3DModel",
        seed=408,
        **_WAN_CONFIG,
        image_dim=12,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
        num_attention_heads=2,
        attention_head_dim=12,
    ),
    inputs=_chrono_edit_inputs,
    block_lists=("blocks",),
)


def _anyflow_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _FRAMES, 4, 2 * _SIDE, 2 * _SIDE),
        "timestep": torch.full((BATCH, _FRAMES), 1000 * draw.time),
        "r_timestep": torch.full((BATCH, _FRAMES), 1000 * draw.time - 90),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
    }


ANYFLOW = TinyModel(
    name="AnyFlowTransformer3DModel",
    build=builder(
        "AnyFlowTransformer3DModel", seed=409, **_WAN_CONFIG, image_dim=12, rope_max_seq_len=32, **_HEADS
    ),
    inputs=_anyflow_inputs,
    block_lists=("blocks",),
    variants={
        "image": with_extra(_anyflow_inputs, lambda draw: {"encoder_hidden_states_image": draw(BATCH, 3, 12)})
    },
)


_FAR_LAYERS = 4


def _far_cache(draw: Draw, scale: float) -> Inputs:
    """Room for the keys and values of two chunks in full and of one compressed, in every layer."""
    rows = {"full_cache": 2 * _TOKENS, "compressed_cache": _TOKENS // 4}
    return {
        layer: {name: draw(2, BATCH, 2, count, 16, scale=scale) for name, count in rows.items()}
        for layer in range(_FAR_LAYERS)
    }


def _far_inputs(seed: int) -> Inputs:
    return _anyflow_inputs(seed) | {
        "chunk_partition": [1, _FRAMES, _FRAMES],
        "kv_cache": _far_cache(Draw(seed + 1_000), scale=1.0),
        "kv_cache_flag": {"num_cached_chunks": 2, "is_cache_step": False},
    }


def _far_prefill(seed: int) -> Inputs:
    return _far_inputs(seed) | {
        "chunk_partition": [_FRAMES],
        "kv_cache": _far_cache(Draw(seed), scale=0.0),
        "kv_cache_flag": {"num_cached_chunks": 0, "is_cache_step": True},
    }


ANYFLOW_FAR = TinyModel(
    name="AnyFlowFARTransformer3DModel",
    build=builder(
        "AnyFlowFARTransformer3DModel",
        seed=416,
        **(_WAN_CONFIG | {"num_layers": _FAR_LAYERS}),
        rope_max_seq_len=32,
        full_chunk_limit=2,
        chunk_partition=(1, _FRAMES, _FRAMES),
        **_HEADS,
    ),
    inputs=_far_inputs,
    block_lists=("blocks",),
    bypassed=_far_prefill,
)


def _history(draw: Draw) -> Inputs:
    def indices(*frames: int) -> Tensor:
        return torch.tensor(frames).expand(BATCH, -1)

    return {
        "indices_hidden_states": indices(*range(7, 7 + _FRAMES)),
        "indices_latents_history_short": indices(0, 6),
        "latents_history_short": _latents(draw, frames=2),
        "indices_latents_history_mid": indices(4, 5),
        "latents_history_mid": _latents(draw, frames=2),
        "indices_latents_history_long": indices(0, 1, 2, 3),
        "latents_history_long": _latents(draw, frames=4),
    }


HELIOS = TinyModel(
    name="HeliosTransformer3DModel",
    build=builder("HeliosTransformer3DModel", seed=410, **_WAN_CONFIG, rope_dim=(4, 6, 6), **_HEADS),
    inputs=_text_to_video_inputs,
    block_lists=("blocks",),
    variants={"history": with_extra(_text_to_video_inputs, _history)},
)

# --- relatives of CogVideoX ---


def _easy_animate_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return _text_to_video_inputs(seed) | {
        "encoder_hidden_states_t5": draw(BATCH, 3, 12),
        "inpaint_latents": _latents(draw),
    }


EASY_ANIMATE = TinyModel(
    name="EasyAnimateTransformer3DModel",
    build=builder(
        "EasyAnimateTransformer3DModel",
        seed=411,
        in_channels=8,
        out_channels=4,
        patch_size=2,
        num_layers=6,
        mmdit_layers=3,
        time_embed_dim=16,
        text_embed_dim=_TEXT_DIM,
        text_embed_dim_t5=12,
        **_HEADS,
    ),
    inputs=_easy_animate_inputs,
    block_lists=("transformer_blocks",),
)


def _consisid_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _FRAMES, 4, 2 * _SIDE, 2 * _SIDE),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": _timestep(draw),
        "id_cond": draw(BATCH, 12),
        "id_vit_hidden": [draw(BATCH, 5, 16) for _ in range(2)],
    }


def _rotary(draw: Draw) -> Inputs:
    angle = draw(_TOKENS, 8).repeat_interleave(2, dim=-1)
    return {"image_rotary_emb": (angle.cos(), angle.sin())}


CONSISID = TinyModel(
    name="ConsisIDTransformer3DModel",
    build=builder(
        "ConsisIDTransformer3DModel",
        seed=412,
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=_TEXT_DIM,
        num_layers=6,
        sample_width=2 * _SIDE,
        sample_height=2 * _SIDE,
        sample_frames=4 * (_FRAMES - 1) + 1,
        max_text_seq_length=_TEXT,
        is_train_face=True,
        cross_attn_interval=2,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=12,
        LFE_vit_dim=16,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=3,
        LFE_output_dim=32,
        LFE_ff_mult=2,
        LFE_num_scale=2,
    ),
    inputs=_consisid_inputs,
    block_lists=("transformer_blocks",),
    variants={"rotary": with_extra(_consisid_inputs, _rotary)},
)

# --- others ---


def _allegro_mask(_: Draw) -> Inputs:
    mask = torch.ones(BATCH, _FRAMES, 2 * _SIDE, 2 * _SIDE)
    mask[1, :, _SIDE:] = 0
    return {"attention_mask": mask, "encoder_attention_mask": keep_all_but(2, _TEXT)}


ALLEGRO = TinyModel(
    name="AllegroTransformer3DModel",
    build=builder(
        "AllegroTransformer3DModel",
        seed=413,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        cross_attention_dim=_WIDTH,
        sample_height=2 * _SIDE,
        sample_width=2 * _SIDE,
        sample_frames=_FRAMES,
        caption_channels=_TEXT_DIM,
        **_HEADS,
    ),
    inputs=_text_to_video_inputs,
    block_lists=("transformer_blocks",),
    variants={"masks": with_extra(_text_to_video_inputs, _allegro_mask)},
)


def _temporal_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH * 3, 8, 2, 2),
        "timestep": _timestep(draw),
        "num_frames": 3,
    }


TEMPORAL = TinyModel(
    name="TransformerTemporalModel",
    build=builder(
        "TransformerTemporalModel", seed=414, in_channels=8, num_layers=5, norm_num_groups=2, **_HEADS
    ),
    inputs=_temporal_inputs,
    block_lists=("transformer_blocks",),
)

MODELS: tuple[TinyModel, ...] = (
    HUNYUAN_VIDEO_15,
    FRAMEPACK,
    *kandinsky_cosmos_models.MODELS,
    CHRONO_EDIT,
    ANYFLOW,
    ANYFLOW_FAR,
    HELIOS,
    EASY_ANIMATE,
    CONSISID,
    ALLEGRO,
    TEMPORAL,
)
