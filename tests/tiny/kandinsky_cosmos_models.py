"""Tiny video transformers of the Kandinsky and Cosmos families."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra

_FRAMES, _SIDE = 2, 4
_TOKENS = _FRAMES * _SIDE**2
_TEXT, _TEXT_DIM, _POOLED = 5, 24, 20
_WIDTH = 32


def _timestep(draw: Draw) -> Tensor:
    return torch.full((BATCH,), int(1000 * draw.time))


# --- Kandinsky ---


def _kandinsky5_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        # The conditioning latents and their mask come with the noisy ones.
        "hidden_states": draw(BATCH, _FRAMES, 2 * _SIDE, 2 * _SIDE, 9),
        "timestep": _timestep(draw),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "pooled_projections": draw(BATCH, _POOLED),
        "visual_rope_pos": [torch.arange(_FRAMES), torch.arange(_SIDE), torch.arange(_SIDE)],
        "text_rope_pos": torch.arange(_TEXT),
    }


_KANDINSKY5_LAYERS = 5

KANDINSKY5 = TinyModel(
    name="Kandinsky5Transformer3DModel",
    build=builder(
        "Kandinsky5Transformer3DModel",
        seed=403,
        # Queries and keys are rounded to bfloat16 on their way, whatever the model's dtype: with weaker
        # scores, a last digit in which two streams differ does not become visible there.
        gains={
            f"visual_transformer_blocks.{index}.self_attention.{norm}.weight": 0.3
            for index in range(_KANDINSKY5_LAYERS)
            for norm in ("query_norm", "key_norm")
        },
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=_TEXT_DIM,
        in_text_dim2=_POOLED,
        time_dim=16,
        model_dim=_WIDTH,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=_KANDINSKY5_LAYERS,
        axes_dims=(4, 6, 6),
        visual_cond=True,
    ),
    inputs=_kandinsky5_inputs,
    block_lists=("visual_transformer_blocks",),
)


def _kandinsky6_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _FRAMES, 2 * _SIDE, 2 * _SIDE, 9),
        "timestep": _timestep(draw),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "pooled_projections": draw(BATCH, _POOLED),
        "audio_hidden_states": draw(BATCH, 6, 5),
    }


KANDINSKY6 = TinyModel(
    name="Kandinsky6Transformer3DModel",
    build=builder(
        "Kandinsky6Transformer3DModel",
        seed=404,
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=_TEXT_DIM,
        in_text_dim2=_POOLED,
        time_dim=16,
        model_dim=_WIDTH,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=5,
        axes_dims=(4, 6, 6),
        in_audio_dim=5,
        out_audio_dim=5,
        model_dim_a=48,
        axes_dims_a=(4, 6, 6),
        text_token_padding=True,
        ca_rope=True,
        cross_gates=True,
        fix_modulation=True,
    ),
    inputs=_kandinsky6_inputs,
    block_lists=("visual_transformer_blocks",),
    variants={
        "no_audio": with_extra(_kandinsky6_inputs, lambda _: {"audio_hidden_states": None}),
        "padded_text": with_extra(
            _kandinsky6_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, _TEXT)}
        ),
    },
)


def _super_resolution_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    # Attention is chosen in blocks of 8 x 8 tokens.
    return {"hidden_states": draw(BATCH, _FRAMES, 8, 8, 9), "timestep": _timestep(draw)}


KANDINSKY6_SR = TinyModel(
    name="Kandinsky6SRTransformer3DModel",
    build=builder(
        "Kandinsky6SRTransformer3DModel",
        seed=415,
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        model_dim=_WIDTH,
        ff_dim=64,
        num_visual_blocks=4,
        axes_dims=(4, 6, 6),
        nabla_threshold=0.3,
        nabla_window=(1, 1, 1),
    ),
    inputs=_super_resolution_inputs,
    block_lists=("visual_transformer_blocks",),
)

# --- Cosmos ---


def _cosmos_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, _FRAMES, 2 * _SIDE, 2 * _SIDE),
        "timestep": torch.full((BATCH,), draw.time),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "fps": 16,
    }


def _timestep_per_frame(draw: Draw) -> Inputs:
    """First frame given (time 0), as video-to-world pipelines ask for."""
    timestep = torch.full((BATCH, 1, _FRAMES, 1, 1), draw.time)
    timestep[:, :, 0] = 0
    return {"timestep": timestep}


_COSMOS_CONFIG: Inputs = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 6,
    "mlp_ratio": 2.0,
    "text_embed_dim": _TEXT_DIM,
    "adaln_lora_dim": 8,
    "max_size": (4, 16, 16),
    # The mask is resized with torchvision, which is not needed for anything else; it is one more channel.
    "concat_padding_mask": False,
    "controlnet_block_every_n": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 18,
}
_COSMOS_WIDTH = 36

COSMOS = TinyModel(
    name="CosmosTransformer3DModel",
    build=builder("CosmosTransformer3DModel", seed=405, **_COSMOS_CONFIG),
    inputs=_cosmos_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "controlnet": with_extra(
            _cosmos_inputs,
            lambda draw: {"block_controlnet_hidden_states": draw.residuals(3, BATCH, _TOKENS, _COSMOS_WIDTH)},
        ),
        "padded_text": with_extra(_cosmos_inputs, lambda _: {"attention_mask": keep_all_but(2, _TEXT)}),
        "timestep_per_frame": with_extra(_cosmos_inputs, _timestep_per_frame),
    },
)


def _cosmos_image_inputs(seed: int) -> Inputs:
    inputs = _cosmos_inputs(seed)
    context = Draw(seed + 1_000)(BATCH, 3, 12)
    return inputs | {"encoder_hidden_states": (inputs["encoder_hidden_states"], context)}


COSMOS_IMAGE = TinyModel(
    name="CosmosTransformer3DModel",
    build=builder(
        "CosmosTransformer3DModel",
        seed=406,
        **_COSMOS_CONFIG,
        extra_pos_embed_type=None,
        img_context_dim_in=12,
        img_context_num_tokens=3,
        img_context_dim_out=_COSMOS_WIDTH,
    ),
    inputs=_cosmos_image_inputs,
    block_lists=("transformer_blocks",),
    label="image",
)

_COSMOS3_SOUND = 3


def _cosmos3_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    length = _TEXT + _TOKENS
    vision = torch.arange(_TEXT, length)
    return {
        "input_ids": torch.tensor([3, 1, 4, 1, 5]),
        "text_indexes": torch.arange(_TEXT),
        "position_ids": torch.arange(length).expand(3, -1),
        "und_len": _TEXT,
        "sequence_length": length,
        "vision_tokens": [draw(1, 4, _FRAMES, 2 * _SIDE, 2 * _SIDE)],
        "vision_token_shapes": [(_FRAMES, _SIDE, _SIDE)],
        "vision_sequence_indexes": vision,
        "vision_mse_loss_indexes": vision,
        "vision_timesteps": torch.full((_TOKENS,), 1000 * draw.time),
        "vision_noisy_frame_indexes": [torch.arange(_FRAMES)],
    }


def _first_frame_given(draw: Draw) -> Inputs:
    noisy = _TOKENS - _SIDE**2
    return {
        "vision_mse_loss_indexes": torch.arange(_TEXT + _SIDE**2, _TEXT + _TOKENS),
        "vision_timesteps": torch.full((noisy,), 1000 * draw.time),
        "vision_noisy_frame_indexes": [torch.arange(1, _FRAMES)],
    }


def _sound(draw: Draw) -> Inputs:
    length = _TEXT + _TOKENS + _COSMOS3_SOUND
    sound = torch.arange(_TEXT + _TOKENS, length)
    return {
        "position_ids": torch.arange(length).expand(3, -1),
        "sequence_length": length,
        "sound_tokens": [draw(6, _COSMOS3_SOUND)],
        "sound_token_shapes": [(_COSMOS3_SOUND, 1, 1)],
        "sound_sequence_indexes": sound,
        "sound_mse_loss_indexes": sound,
        "sound_timesteps": torch.full((_COSMOS3_SOUND,), 1000 * draw.time),
        "sound_noisy_frame_indexes": [torch.arange(_COSMOS3_SOUND)],
    }


COSMOS3 = TinyModel(
    name="Cosmos3OmniTransformer",
    build=builder(
        "Cosmos3OmniTransformer",
        seed=407,
        head_dim=16,
        hidden_size=_WIDTH,
        intermediate_size=64,
        latent_channel=4,
        num_attention_heads=2,
        num_hidden_layers=5,
        num_key_value_heads=1,
        patch_latent_dim=16,
        rope_axes_dim=(4, 2, 2),
        vocab_size=10,
        sound_gen=True,
        sound_dim=6,
    ),
    inputs=_cosmos3_inputs,
    block_lists=("layers",),
    variants={
        "first_frame_given": with_extra(_cosmos3_inputs, _first_frame_given),
        "sound": with_extra(_cosmos3_inputs, _sound),
    },
)

MODELS: tuple[TinyModel, ...] = (KANDINSKY5, KANDINSKY6, KANDINSKY6_SR, COSMOS, COSMOS_IMAGE, COSMOS3)
