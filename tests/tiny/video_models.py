"""Tiny video transformers."""

from __future__ import annotations

import torch

from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra

_FRAMES, _SIDE = 2, 4
_TOKENS = _FRAMES * _SIDE**2
_TEXT, _TEXT_DIM, _POOLED = 5, 24, 20
_HEADS: Inputs = {"num_attention_heads": 2, "attention_head_dim": 16}


def _timestep(draw: Draw) -> torch.Tensor:
    return torch.full((BATCH,), int(1000 * draw.time))


def _timestep_per_token(draw: Draw) -> Inputs:
    """First frame given (time 0), as image-to-video pipelines ask for."""
    timestep = torch.full((BATCH, _TOKENS), int(1000 * draw.time))
    timestep[:, : _SIDE**2] = 0
    return {"timestep": timestep}


def _wan_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, _FRAMES, 2 * _SIDE, 2 * _SIDE),
        "timestep": _timestep(draw),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
    }


_WAN_CONFIG: Inputs = {
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": _TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 6,
    "rope_max_seq_len": 32,
    **_HEADS,
}

WAN = TinyModel(
    name="WanTransformer3DModel",
    build=builder("WanTransformer3DModel", seed=11, **_WAN_CONFIG),
    inputs=_wan_inputs,
    block_lists=("blocks",),
    variants={"timestep_per_token": with_extra(_wan_inputs, _timestep_per_token)},
)
# The low-noise expert of a pipeline with two transformers: same class, other weights, other depth.
WAN_SECOND = TinyModel(
    name="WanTransformer3DModel",
    build=builder("WanTransformer3DModel", seed=17, **(_WAN_CONFIG | {"num_layers": 4})),
    inputs=_wan_inputs,
    block_lists=("blocks",),
    label="second",
)


def _wan_image_inputs(seed: int) -> Inputs:
    return _wan_inputs(seed) | {"encoder_hidden_states_image": Draw(seed + 1_000)(BATCH, 3, 12)}


WAN_IMAGE = TinyModel(
    name="WanTransformer3DModel",
    build=builder("WanTransformer3DModel", seed=12, **_WAN_CONFIG, image_dim=12, added_kv_proj_dim=32),
    inputs=_wan_image_inputs,
    block_lists=("blocks",),
    label="image",
)


def _hunyuan_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, _FRAMES, 2 * _SIDE, 2 * _SIDE),
        "timestep": _timestep(draw),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "encoder_attention_mask": keep_all_but(2, _TEXT),
        "pooled_projections": draw(BATCH, _POOLED),
        "guidance": torch.full((BATCH,), 6000.0),
    }


_HUNYUAN_CONFIG: Inputs = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "num_single_layers": 6,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": _TEXT_DIM,
    "pooled_projection_dim": _POOLED,
    "rope_axes_dim": (4, 6, 6),
    **_HEADS,
}
_HUNYUAN_LISTS = ("transformer_blocks", "single_transformer_blocks")

HUNYUAN_VIDEO = TinyModel(
    name="HunyuanVideoTransformer3DModel",
    build=builder("HunyuanVideoTransformer3DModel", seed=13, **_HUNYUAN_CONFIG),
    inputs=_hunyuan_inputs,
    block_lists=_HUNYUAN_LISTS,
    variants={
        "attention_kwargs": with_extra(_hunyuan_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)
HUNYUAN_VIDEO_TOKEN_REPLACE = TinyModel(
    name="HunyuanVideoTransformer3DModel",
    build=builder(
        "HunyuanVideoTransformer3DModel", seed=14, **_HUNYUAN_CONFIG, image_condition_type="token_replace"
    ),
    inputs=_hunyuan_inputs,
    block_lists=_HUNYUAN_LISTS,
    label="token_replace",
)


def _cogvideox_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _FRAMES, 4, 2 * _SIDE, 2 * _SIDE),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": _timestep(draw),
    }


def _rotary(draw: Draw) -> Inputs:
    angle = draw(_TOKENS, _HEADS["attention_head_dim"] // 2).repeat_interleave(2, dim=-1)
    return {"image_rotary_emb": (angle.cos(), angle.sin())}


COGVIDEOX = TinyModel(
    name="CogVideoXTransformer3DModel",
    build=builder(
        "CogVideoXTransformer3DModel",
        seed=15,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=_TEXT_DIM,
        num_layers=6,
        sample_width=2 * _SIDE,
        sample_height=2 * _SIDE,
        sample_frames=4 * (_FRAMES - 1) + 1,
        max_text_seq_length=_TEXT,
        **_HEADS,
    ),
    inputs=_cogvideox_inputs,
    block_lists=("transformer_blocks",),
    variants={"rotary": with_extra(_cogvideox_inputs, _rotary)},
)


def _ltx_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _TOKENS, 8),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": _timestep(draw),
        "encoder_attention_mask": keep_all_but(2, _TEXT),
        "num_frames": _FRAMES,
        "height": _SIDE,
        "width": _SIDE,
    }


LTX = TinyModel(
    name="LTXVideoTransformer3DModel",
    build=builder(
        "LTXVideoTransformer3DModel",
        seed=16,
        in_channels=8,
        out_channels=8,
        cross_attention_dim=32,
        num_layers=6,
        caption_channels=_TEXT_DIM,
        **_HEADS,
    ),
    inputs=_ltx_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "timestep_per_token": with_extra(_ltx_inputs, _timestep_per_token),
        "rope_interpolation_scale": with_extra(
            _ltx_inputs, lambda _: {"rope_interpolation_scale": (8 / 25, 32, 32)}
        ),
    },
)
