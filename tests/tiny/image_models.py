"""Tiny image transformers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .base import BATCH, Draw, Inputs, InputsOf, TinyModel, builder, if_taken, keep_all_but, with_extra

# --- images, two streams ---

_IMAGE_SIDE, _TEXT, _TEXT_DIM, _POOLED = 4, 5, 24, 20
_IMAGE = _IMAGE_SIDE**2
_WIDTH = 32
_HEADS: Inputs = {"num_attention_heads": 2, "attention_head_dim": 16}
_ROPE = (4, 6, 6)


def _image_ids() -> Tensor:
    ids = torch.zeros(_IMAGE_SIDE, _IMAGE_SIDE, 3)
    ids[..., 1] += torch.arange(_IMAGE_SIDE)[:, None]
    ids[..., 2] += torch.arange(_IMAGE_SIDE)[None, :]
    return ids.reshape(-1, 3)


def _chroma_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _IMAGE, 16),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": torch.full((BATCH,), draw.time),
        "img_ids": _image_ids(),
        "txt_ids": torch.zeros(_TEXT, 3),
    }


def _flux_inputs(seed: int) -> Inputs:
    draw = Draw(seed + 1_000)
    return _chroma_inputs(seed) | {
        "pooled_projections": draw(BATCH, _POOLED),
        "guidance": torch.full((BATCH,), 3.5),
    }


def _both_controlnets(draw: Draw) -> Inputs:
    # Fewer residuals than blocks: diffusers then shares one residual among several neighbouring blocks.
    return {
        "controlnet_block_samples": draw.residuals(3, BATCH, _IMAGE, _WIDTH),
        "controlnet_single_block_samples": draw.residuals(4, BATCH, _IMAGE, _WIDTH),
    }


def _repeated_controlnet(draw: Draw) -> Inputs:
    return {
        "controlnet_block_samples": draw.residuals(2, BATCH, _IMAGE, _WIDTH),
        "controlnet_blocks_repeat": True,
    }


def _chroma_mask(_: Draw) -> Inputs:
    # The pipeline passes this mask as floating point numbers: the blocks then *add* it to the scores.
    keep = torch.cat([keep_all_but(2, _TEXT), torch.ones(BATCH, _IMAGE, dtype=torch.bool)], dim=1)
    return {"attention_mask": keep.float()}


FLUX = TinyModel(
    name="FluxTransformer2DModel",
    build=builder(
        "FluxTransformer2DModel",
        seed=1,
        in_channels=16,
        num_layers=6,
        num_single_layers=5,
        joint_attention_dim=_TEXT_DIM,
        pooled_projection_dim=_POOLED,
        guidance_embeds=True,
        axes_dims_rope=_ROPE,
        **_HEADS,
    ),
    inputs=_flux_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={
        "controlnet": with_extra(_flux_inputs, _both_controlnets),
        "controlnet_repeat": with_extra(_flux_inputs, _repeated_controlnet),
        "attention_kwargs": with_extra(_flux_inputs, lambda _: {"joint_attention_kwargs": {"scale": 1.0}}),
    },
)

CHROMA = TinyModel(
    name="ChromaTransformer2DModel",
    build=builder(
        "ChromaTransformer2DModel",
        seed=2,
        # At unit gain the modulation, which is all that this layer puts out, drowns the streams.
        gains={"distilled_guidance_layer.out_proj.weight": 0.3},
        in_channels=16,
        num_layers=4,
        num_single_layers=6,
        joint_attention_dim=_TEXT_DIM,
        axes_dims_rope=_ROPE,
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=2,
        **_HEADS,
    ),
    inputs=_chroma_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={
        "controlnet": with_extra(_chroma_inputs, _both_controlnets),
        "controlnet_repeat": with_extra(_chroma_inputs, _repeated_controlnet),
        "attention_mask": with_extra(_chroma_inputs, _chroma_mask),
    },
)


def _qwen_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, _IMAGE, 16),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "encoder_hidden_states_mask": keep_all_but(0, _TEXT),
        "timestep": torch.full((BATCH,), draw.time),
        "img_shapes": [[(1, _IMAGE_SIDE, _IMAGE_SIDE)]] * BATCH,
        **if_taken("QwenImageTransformer2DModel", txt_seq_lens=[_TEXT] * BATCH),
    }


QWEN_IMAGE = TinyModel(
    name="QwenImageTransformer2DModel",
    build=builder(
        "QwenImageTransformer2DModel",
        seed=3,
        in_channels=16,
        out_channels=4,
        num_layers=6,
        joint_attention_dim=_TEXT_DIM,
        axes_dims_rope=_ROPE,
        **_HEADS,
    ),
    inputs=_qwen_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "controlnet": with_extra(
            _qwen_inputs, lambda draw: {"controlnet_block_samples": draw.residuals(3, BATCH, _IMAGE, _WIDTH)}
        ),
        "padded_text": with_extra(
            _qwen_inputs, lambda _: {"encoder_hidden_states_mask": keep_all_but(2, _TEXT)}
        ),
        "attention_kwargs": with_extra(_qwen_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)


def _sd3_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "pooled_projections": draw(BATCH, _POOLED),
        "timestep": torch.full((BATCH,), 1000 * draw.time),
    }


def _sd3_controlnet(draw: Draw) -> Inputs:
    return {"block_controlnet_hidden_states": draw.residuals(3, BATCH, _IMAGE, _WIDTH)}


_SD3_CONFIG: Inputs = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 6,
    "joint_attention_dim": _TEXT_DIM,
    "caption_projection_dim": _WIDTH,
    "pooled_projection_dim": _POOLED,
    "pos_embed_max_size": 8,
    **_HEADS,
}
_SD3_VARIANTS: Mapping[str, InputsOf] = {
    "controlnet": with_extra(_sd3_inputs, _sd3_controlnet),
    "skip_layers": with_extra(_sd3_inputs, lambda _: {"skip_layers": [2, 3]}),
    "skip_first_layer": with_extra(_sd3_inputs, lambda _: {"skip_layers": [0]}),
    "skip_last_layer": with_extra(_sd3_inputs, lambda _: {"skip_layers": [5]}),
    # A left-out block still gets its ControlNet residual.
    "skip_layers_controlnet": with_extra(
        _sd3_inputs, lambda draw: _sd3_controlnet(draw) | {"skip_layers": [2, 3]}
    ),
}

SD3 = TinyModel(
    name="SD3Transformer2DModel",
    build=builder("SD3Transformer2DModel", seed=4, **_SD3_CONFIG),
    inputs=_sd3_inputs,
    block_lists=("transformer_blocks",),
    variants=_SD3_VARIANTS,
)
SD35 = TinyModel(
    name="SD3Transformer2DModel",
    build=builder(
        "SD3Transformer2DModel", seed=5, **_SD3_CONFIG, dual_attention_layers=(0, 1, 2), qk_norm="rms_norm"
    ),
    inputs=_sd3_inputs,
    block_lists=("transformer_blocks",),
    variants=_SD3_VARIANTS,
    label="dual_attention",
)

# --- images, one stream ---


def _dit_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "timestep": torch.full((BATCH,), int(1000 * draw.time)),
        "class_labels": torch.tensor([seed % 10, 1000]),
    }


DIT = TinyModel(
    name="DiTTransformer2DModel",
    build=builder(
        "DiTTransformer2DModel",
        seed=6,
        in_channels=4,
        out_channels=8,
        num_layers=6,
        sample_size=8,
        num_embeds_ada_norm=1000,
        **_HEADS,
    ),
    inputs=_dit_inputs,
    block_lists=("transformer_blocks",),
)


def _pixart_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": torch.full((BATCH,), int(1000 * draw.time)),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


PIXART = TinyModel(
    name="PixArtTransformer2DModel",
    build=builder(
        "PixArtTransformer2DModel",
        seed=7,
        in_channels=4,
        out_channels=8,
        num_layers=6,
        sample_size=8,
        cross_attention_dim=_WIDTH,
        caption_channels=_TEXT_DIM,
        **_HEADS,
    ),
    inputs=_pixart_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(
            _pixart_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, _TEXT)}
        ),
    },
)
