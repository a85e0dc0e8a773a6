"""Tiny audio transformers."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra

_LENGTH, _CHANNELS = 12, 8
_TEXT, _TEXT_DIM = 5, 24
_WIDTH, _HEAD = 32, 16


def _time(draw: Draw) -> Tensor:
    return torch.full((BATCH,), draw.time)


# --- stable audio ---


def _stable_audio_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    # The global tokens go in front of the sound.
    angles = Draw(0)(_LENGTH + 1, _HEAD // 4).repeat(1, 2)
    return {
        "hidden_states": draw(BATCH, _CHANNELS, _LENGTH),
        "timestep": _time(draw),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "global_hidden_states": draw(BATCH, 1, 10),
        "rotary_embedding": (angles.cos(), angles.sin()),
    }


STABLE_AUDIO = TinyModel(
    name="StableAudioDiTModel",
    build=builder(
        "StableAudioDiTModel",
        seed=301,
        sample_size=_LENGTH,
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        num_layers=6,
        attention_head_dim=_HEAD,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=_HEAD,
        time_proj_dim=16,
        global_states_input_dim=10,
        cross_attention_input_dim=_TEXT_DIM,
    ),
    inputs=_stable_audio_inputs,
    block_lists=("transformer_blocks",),
)


def _stable_audio_3_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _CHANNELS, _LENGTH),
        "timestep": _time(draw),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "global_hidden_states": draw(BATCH, _TEXT_DIM),
    }


STABLE_AUDIO_3 = TinyModel(
    name="StableAudio3DiTModel",
    build=builder(
        "StableAudio3DiTModel",
        seed=302,
        io_channels=_CHANNELS,
        embed_dim=_WIDTH,
        depth=6,
        num_heads=2,
        cond_token_dim=_TEXT_DIM,
        global_cond_dim=_TEXT_DIM,
        local_add_cond_dim=_CHANNELS + 1,
        timestep_features_dim=16,
        ff_mult=2.0,
        num_memory_tokens=3,
    ),
    inputs=_stable_audio_3_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(
            _stable_audio_3_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, _TEXT)}
        ),
        "inpainting": with_extra(
            _stable_audio_3_inputs,
            lambda draw: {"local_add_cond": draw(BATCH, _CHANNELS + 1, _LENGTH)},
        ),
    },
)

# --- music ---


def _ace_step_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        # An odd length: the model pads it to whole patches.
        "hidden_states": draw(BATCH, _LENGTH - 1, _CHANNELS),
        "timestep": _time(draw),
        "timestep_r": _time(draw),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "context_latents": draw(BATCH, _LENGTH - 1, 2 * _CHANNELS),
    }


ACE_STEP = TinyModel(
    name="AceStepTransformer1DModel",
    build=builder(
        "AceStepTransformer1DModel",
        seed=303,
        hidden_size=_WIDTH,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=_HEAD,
        in_channels=3 * _CHANNELS,
        audio_acoustic_hidden_dim=_CHANNELS,
        sliding_window=2,
        encoder_hidden_size=_TEXT_DIM,
    ),
    inputs=_ace_step_inputs,
    block_lists=("layers",),
    variants={
        "mean_flow": with_extra(
            _ace_step_inputs, lambda draw: {"timestep_r": torch.full((BATCH,), draw.time - 0.3)}
        ),
        "attention_kwargs": with_extra(_ace_step_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)


def _minimax_music_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _CHANNELS, _LENGTH),
        "timestep": 1 - _time(draw),
        "encoder_hidden_states": draw(BATCH, _LENGTH, _TEXT_DIM),
    }


MINIMAX_MUSIC_3 = TinyModel(
    name="MiniMaxMusic3Transformer1DModel",
    build=builder(
        "MiniMaxMusic3Transformer1DModel",
        seed=304,
        in_channels=_CHANNELS,
        condition_dim=_TEXT_DIM,
        num_layers=6,
        num_attention_heads=2,
        attention_head_dim=_HEAD,
        ff_inner_dim=64,
        rotary_dim=8,
        fourier_embedding_dim=16,
    ),
    inputs=_minimax_music_inputs,
    block_lists=("transformer_blocks",),
)

# --- sound effects ---


def _longcat_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _LENGTH, _CHANNELS),
        "timestep": _time(draw),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "encoder_attention_mask": keep_all_but(2, _TEXT),
    }


_LONGCAT_CONFIG: Inputs = {
    "dit_dim": _WIDTH,
    "dit_depth": 6,
    "dit_heads": 2,
    "dit_text_dim": _TEXT_DIM,
    "latent_dim": _CHANNELS,
    "ff_mult": 2.0,
}

LONGCAT_AUDIO = TinyModel(
    name="LongCatAudioDiTTransformer",
    build=builder("LongCatAudioDiTTransformer", seed=305, **_LONGCAT_CONFIG),
    inputs=_longcat_inputs,
    block_lists=("blocks",),
    variants={
        "latent_condition": with_extra(
            _longcat_inputs, lambda draw: {"latent_cond": draw(BATCH, _LENGTH, _CHANNELS)}
        ),
        "padded_sound": with_extra(_longcat_inputs, lambda _: {"attention_mask": keep_all_but(3, _LENGTH)}),
    },
)
LONGCAT_AUDIO_LOCAL = TinyModel(
    name="LongCatAudioDiTTransformer",
    build=builder("LongCatAudioDiTTransformer", seed=306, **_LONGCAT_CONFIG, adaln_type="local"),
    inputs=_longcat_inputs,
    block_lists=("blocks",),
    label="local",
)

MODELS: tuple[TinyModel, ...] = (
    ACE_STEP,
    STABLE_AUDIO,
    STABLE_AUDIO_3,
    LONGCAT_AUDIO,
    LONGCAT_AUDIO_LOCAL,
    MINIMAX_MUSIC_3,
)
