"""Tiny video transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import wan_models
from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra

_FRAMES, _SIDE = 2, 4
_TOKENS = _FRAMES * _SIDE**2
_TEXT, _TEXT_DIM = 5, 24
_HEADS: Inputs = {"num_attention_heads": 2, "attention_head_dim": 16}
_WIDTH = 32


def _timestep(draw: Draw) -> Tensor:
    return torch.full((BATCH,), int(1000 * draw.time))


def _inputs(seed: int, **more: Any) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, _FRAMES, 2 * _SIDE, 2 * _SIDE),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": _timestep(draw),
    } | more


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


def _ltx2_first_frame_given(draw: Draw) -> Inputs:
    """The first frame is at time 0, the sound is not; the texts are padded."""
    timestep = torch.full((BATCH, _TOKENS), int(1000 * draw.time))
    timestep[:, : _SIDE**2] = 0
    keep = keep_all_but(2, _TEXT)
    return {
        "timestep": timestep,
        "audio_timestep": _timestep(draw),
        "encoder_attention_mask": keep,
        "audio_encoder_attention_mask": keep,
    }


def _ltx2_guidance(_: Draw) -> Inputs:
    """What the pipelines take apart for guidance: some blocks perturbed, or sound from picture."""
    return {
        "spatio_temporal_guidance_blocks": [2, 3],
        "perturbation_mask": torch.tensor([0.0, 1.0]),
        "isolate_modalities": True,
    }


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
        "first_frame_given": with_extra(_ltx2_inputs, _ltx2_first_frame_given),
        "guidance": with_extra(_ltx2_inputs, _ltx2_guidance),
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
    inputs=lambda seed: _inputs(seed, encoder_attention_mask=keep_all_but(0, _TEXT)),
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": lambda seed: _inputs(seed, encoder_attention_mask=keep_all_but(2, _TEXT)),
    },
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
    inputs=_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, _TEXT)}),
        "controlnet": with_extra(
            _inputs,
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
    inputs=_inputs,
    block_lists=("transformer_blocks/temporal_transformer_blocks",),
    variants={
        "spatial_only": with_extra(_inputs, lambda _: {"enable_temporal_attentions": False}),
        "padded_text": with_extra(
            _inputs,
            lambda _: {
                "encoder_attention_mask": keep_all_but(2, _TEXT).repeat_interleave(_FRAMES, dim=0)[:, None]
            },
        ),
    },
)

# --- two loops over one list ---

MOTIF = TinyModel(
    name="MotifVideoTransformer3DModel",
    build=builder(
        "MotifVideoTransformer3DModel",
        seed=209,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_single_layers=9,
        num_decoder_layers=4,
        mlp_ratio=2.0,
        text_embed_dim=_TEXT_DIM,
        image_embed_dim=10,
        rope_axes_dim=(4, 6, 6),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
        **_HEADS,
    ),
    inputs=_inputs,
    block_lists=(
        "transformer_blocks",
        "single_transformer_blocks[:-num_decoder_layers]",
        "single_transformer_blocks[-num_decoder_layers:]",
    ),
    variants={
        "image_and_padded_text": with_extra(
            _inputs,
            lambda draw: {
                "image_embeds": draw(BATCH, 3, 10),
                "encoder_attention_mask": keep_all_but(2, _TEXT),
            },
        ),
    },
)

# --- all kinds of tokens in one sequence ---


def _minimax_h3_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    video, audio = 8, 4
    kinds = torch.tensor([1] * _TEXT + [0] * video + [2] * audio)
    places = torch.arange(len(kinds))
    given = (places >= _TEXT) & (places < _TEXT + 2)
    return {
        "hidden_states": draw(BATCH, video, 16),
        "audio_hidden_states": draw(BATCH, audio, 6),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        # The first two rows of the video are given, at a time of their own.
        "timestep": torch.tensor([0.0, draw.time]),
        "timestep_indices": 1 - given.long(),
        "token_tags": kinds,
        "position_ids": torch.stack([places, places % 3, places % 2], dim=1),
        "text_indices": places[kinds == 1],
        "video_indices": places[kinds == 0],
        "audio_indices": places[kinds == 2],
    }


MINIMAX_H3 = TinyModel(
    name="MiniMaxH3Transformer3DModel",
    build=builder(
        "MiniMaxH3Transformer3DModel",
        seed=210,
        hidden_size=_WIDTH,
        num_layers=6,
        num_refiner_layers=1,
        ffn_dim=64,
        in_channels=4,
        audio_in_channels=6,
        text_dim=_TEXT_DIM,
        freq_dim=32,
        time_embed_hidden_dim=_WIDTH,
        time_embed_dim=16,
        rope_freq_dim=2,
        **_HEADS,
    ),
    inputs=_minimax_h3_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "attention_kwargs": with_extra(_minimax_h3_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)

# --- worlds ---


def _sana_wm_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, _FRAMES, _SIDE, _SIDE),
        "encoder_hidden_states": draw(BATCH, 1, _TEXT, _TEXT_DIM),
        "encoder_attention_mask": keep_all_but(2, _TEXT),
        # The first frame is given.
        "timestep": torch.tensor([[[0.0, 1000 * draw.time]]] * BATCH),
    }


def _cameras(draw: Draw) -> Inputs:
    """Poses that move along the axes, focal lengths and centres."""
    poses = torch.eye(4).repeat(BATCH, _FRAMES, 1, 1)
    poses[..., :3, 3] = draw(BATCH, _FRAMES, 3, scale=0.1)
    lens = torch.tensor([4.0, 4.0, _SIDE / 2, _SIDE / 2]).expand(BATCH, _FRAMES, 4)
    return {"camera_conditions": torch.cat([poses.flatten(2), lens], dim=-1)}


SANA_WM = TinyModel(
    name="SanaWMTransformer3DModel",
    build=builder(
        "SanaWMTransformer3DModel",
        seed=211,
        in_channels=4,
        num_layers=6,
        hidden_size=_WIDTH,
        num_attention_heads=2,
        softmax_every_n=3,
        linear_head_dim=16,
        chunk_plucker_channels=6,
        caption_channels=_TEXT_DIM,
        mlp_ratio=2.0,
    ),
    inputs=_sana_wm_inputs,
    block_lists=("blocks",),
    variants={
        "cameras": with_extra(_sana_wm_inputs, _cameras),
        "rays": with_extra(
            _sana_wm_inputs, lambda draw: {"chunk_plucker": draw(BATCH, 6, _FRAMES, _SIDE, _SIDE)}
        ),
        "padded_frames": with_extra(
            _sana_wm_inputs, lambda _: {"frame_valid_mask": keep_all_but(1, _FRAMES)}
        ),
    },
)

_REFINER_LAYERS = 6


def _refiner_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _TOKENS, 8),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": torch.full((BATCH, _TOKENS), 1000 * draw.time),
        "video_rotary_emb": _angles(_TOKENS),
    }


def _angles(tokens: int) -> tuple[Tensor, Tensor]:
    angles = Draw(0)(BATCH, tokens, _WIDTH // 2).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def _refined_before(draw: Draw) -> Inputs:
    """A denoising step of a later window: it attends to earlier frames, too."""
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache

    cache = SanaWMRefinerKVCache(_REFINER_LAYERS)
    cache.sink_pe = _angles(3)
    for layer in cache.layer_caches:
        layer.store_sink(draw(BATCH, 3, _WIDTH), draw(BATCH, 3, _WIDTH))
        layer.store_history(draw(BATCH, 4, _WIDTH), draw(BATCH, 4, _WIDTH))
    return {
        "encoder_attention_mask": keep_all_but(2, _TEXT),
        "kv_cache": cache,
        "kv_cache_mode": "inject",
    }


SANA_WM_REFINER = TinyModel(
    name="SanaWMLTX2RefinerTransformer3DModel",
    build=builder(
        "SanaWMLTX2RefinerTransformer3DModel",
        seed=212,
        in_channels=8,
        out_channels=8,
        cross_attention_dim=_WIDTH,
        audio_in_channels=6,
        audio_out_channels=6,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=_REFINER_LAYERS,
        caption_channels=_TEXT_DIM,
        **_HEADS,
    ),
    inputs=_refiner_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "window": with_extra(_refiner_inputs, _refined_before),
    },
    bypassed=with_extra(
        _refiner_inputs,
        lambda draw: _refined_before(draw) | {"kv_cache_mode": "inject_and_capture_post_rope"},
    ),
)

MODELS: tuple[TinyModel, ...] = (
    LTX2,
    *wan_models.MODELS,
    MOCHI,
    SANA_VIDEO,
    LATTE,
    MOTIF,
    MINIMAX_H3,
    SANA_WM,
    SANA_WM_REFINER,
)
