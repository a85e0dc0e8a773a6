"""Tiny video transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra

_FRAMES, _SIDE = 2, 4
_TOKENS = _FRAMES * _SIDE**2
_TEXT, _TEXT_DIM = 5, 24
_HEADS: Inputs = {"num_attention_heads": 2, "attention_head_dim": 16}
_WIDTH = 32


def _timestep(draw: Draw) -> Tensor:
    return torch.full((BATCH,), int(1000 * draw.time))


def _video_inputs(seed: int, channels: int = 4, **more: Any) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, channels, _FRAMES, 2 * _SIDE, 2 * _SIDE),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": _timestep(draw),
    } | more


def _scaled(_: Draw) -> Inputs:
    return {"attention_kwargs": {"scale": 1.0}}


# --- video with sound ---

_AUDIO_TOKENS = 6


def _ltx2_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _TOKENS, 8),
        "audio_hidden_states": draw(BATCH, _AUDIO_TOKENS, 6),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "audio_encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": _timestep(draw),
        "num_frames": _FRAMES,
        "height": _SIDE,
        "width": _SIDE,
        "audio_num_frames": _AUDIO_TOKENS,
    }


def _ltx2_timestep_per_token(draw: Draw) -> Inputs:
    """First frame given (time 0), the sound not."""
    timestep = torch.full((BATCH, _TOKENS), int(1000 * draw.time))
    timestep[:, : _SIDE**2] = 0
    return {"timestep": timestep, "audio_timestep": _timestep(draw)}


def _ltx2_masks(_: Draw) -> Inputs:
    keep = keep_all_but(2, _TEXT)
    return {"encoder_attention_mask": keep, "audio_encoder_attention_mask": keep}


LTX2 = TinyModel(
    name="LTX2VideoTransformer3DModel",
    build=builder(
        "LTX2VideoTransformer3DModel",
        seed=201,
        in_channels=8,
        out_channels=8,
        cross_attention_dim=_WIDTH,
        audio_in_channels=6,
        audio_out_channels=6,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=6,
        caption_channels=_TEXT_DIM,
        perturbed_attn=True,
        **_HEADS,
    ),
    inputs=_ltx2_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "masks": with_extra(_ltx2_inputs, _ltx2_masks),
        "timestep_per_token": with_extra(_ltx2_inputs, _ltx2_timestep_per_token),
        "isolated": with_extra(_ltx2_inputs, lambda _: {"isolate_modalities": True}),
        "perturbed": with_extra(
            _ltx2_inputs,
            lambda _: {
                "spatio_temporal_guidance_blocks": [2, 3],
                "perturbation_mask": torch.tensor([0.0, 1.0]),
            },
        ),
    },
)

# --- one or two streams ---

MOCHI = TinyModel(
    name="MochiTransformer3DModel",
    build=builder(
        "MochiTransformer3DModel",
        seed=202,
        num_layers=6,
        pooled_projection_dim=20,
        in_channels=4,
        text_embed_dim=_TEXT_DIM,
        time_embed_dim=16,
        **_HEADS,
    ),
    inputs=lambda seed: _video_inputs(seed, encoder_attention_mask=keep_all_but(0, _TEXT)),
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": lambda seed: _video_inputs(seed, encoder_attention_mask=keep_all_but(2, _TEXT)),
    },
)


def _frame_time(draw: Draw) -> Inputs:
    """Diffusion forcing: each frame at a time of its own."""
    time = int(1000 * draw.time)
    return {"enable_diffusion_forcing": True, "timestep": torch.tensor([[time, time + 20]] * BATCH)}


_SKYREELS_CONFIG: Inputs = {
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": _TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 6,
    "rope_max_seq_len": 32,
    **_HEADS,
}
SKYREELS = TinyModel(
    name="SkyReelsV2Transformer3DModel",
    build=builder("SkyReelsV2Transformer3DModel", seed=203, **_SKYREELS_CONFIG),
    inputs=_video_inputs,
    block_lists=("blocks",),
    variants={
        "diffusion_forcing": with_extra(_video_inputs, _frame_time),
        "attention_kwargs": with_extra(_video_inputs, _scaled),
    },
)
SKYREELS_CAUSAL = TinyModel(
    name="SkyReelsV2Transformer3DModel",
    build=builder(
        "SkyReelsV2Transformer3DModel",
        seed=204,
        inject_sample_info=True,
        num_frame_per_block=2,
        **_SKYREELS_CONFIG,
    ),
    inputs=lambda seed: _video_inputs(seed, fps=[0, 1]),
    block_lists=("blocks",),
    label="causal",
)

SANA_VIDEO = TinyModel(
    name="SanaVideoTransformer3DModel",
    build=builder(
        "SanaVideoTransformer3DModel",
        seed=205,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=_WIDTH,
        caption_channels=_TEXT_DIM,
        sample_size=2 * _SIDE,
        rope_max_seq_len=32,
        **_HEADS,
    ),
    inputs=_video_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(
            _video_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, _TEXT)}
        ),
        "controlnet": with_extra(
            _video_inputs,
            lambda draw: {"controlnet_block_samples": tuple(draw.residuals(3, BATCH, _TOKENS, _WIDTH))},
        ),
    },
)

LATTE = TinyModel(
    name="LatteTransformer3DModel",
    build=builder(
        "LatteTransformer3DModel",
        seed=206,
        in_channels=4,
        out_channels=8,
        num_layers=5,
        cross_attention_dim=_WIDTH,
        attention_bias=True,
        sample_size=2 * _SIDE,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=_TEXT_DIM,
        video_length=_FRAMES,
        **_HEADS,
    ),
    inputs=_video_inputs,
    block_lists=("transformer_blocks/temporal_transformer_blocks",),
    variants={
        "padded_text": with_extra(
            _video_inputs,
            lambda _: {
                "encoder_attention_mask": keep_all_but(2, _TEXT).repeat_interleave(_FRAMES, dim=0)[:, None]
            },
        ),
    },
)

# --- kinds of Wan ---

_WAN_CONFIG = _SKYREELS_CONFIG


def _vace_inputs(seed: int) -> Inputs:
    return _video_inputs(seed) | {
        "control_hidden_states": Draw(seed + 1_000)(BATCH, 6, _FRAMES, 2 * _SIDE, 2 * _SIDE)
    }


WAN_VACE = TinyModel(
    name="WanVACETransformer3DModel",
    build=builder(
        "WanVACETransformer3DModel",
        seed=207,
        vace_layers=[0, 2, 3, 5],
        vace_in_channels=6,
        **_WAN_CONFIG,
    ),
    inputs=_vace_inputs,
    block_lists=("vace_blocks", "blocks"),
    variants={
        "scaled": with_extra(
            _vace_inputs, lambda _: {"control_hidden_states_scale": torch.tensor([1.0, 0.5, 0.0, 2.0])}
        ),
    },
)


def _animate_inputs(seed: int) -> Inputs:
    draw = Draw(seed + 1_000)
    return _video_inputs(seed, channels=12) | {
        "hidden_states": draw(BATCH, 12, _FRAMES + 1, 2 * _SIDE, 2 * _SIDE),
        "pose_hidden_states": draw(BATCH, 4, _FRAMES, 2 * _SIDE, 2 * _SIDE),
        "face_pixel_values": draw(BATCH, 3, 4 * _FRAMES, 16, 16),
    }


WAN_ANIMATE = TinyModel(
    name="WanAnimateTransformer3DModel",
    build=builder(
        "WanAnimateTransformer3DModel",
        seed=208,
        **(_WAN_CONFIG | {"in_channels": 12, "latent_channels": 4}),
        image_dim=None,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    ),
    inputs=_animate_inputs,
    block_lists=("blocks",),
)

MODELS: tuple[TinyModel, ...] = (
    LTX2,
    WAN_VACE,
    WAN_ANIMATE,
    SKYREELS,
    SKYREELS_CAUSAL,
    MOCHI,
    SANA_VIDEO,
    LATTE,
)
