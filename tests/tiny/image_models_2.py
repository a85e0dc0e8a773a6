"""Tiny image transformers with text and image in one stream, or in two."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra

SIDE, TEXT, TEXT_DIM = 4, 5, 24
IMAGE = SIDE**2
WIDTH, HEAD = 32, 16
ROPE = (4, 6, 6)
HEADS: Inputs = {"num_attention_heads": 2, "attention_head_dim": HEAD}


def latents(draw: Draw, *, patch: int = 2) -> Inputs:
    """Latents of `IMAGE` tokens, with a text and a time from 1 to 0."""
    return {
        "hidden_states": draw(BATCH, 4, patch * SIDE, patch * SIDE),
        "encoder_hidden_states": draw(BATCH, TEXT, TEXT_DIM),
        "timestep": torch.full((BATCH,), draw.time),
    }


def tokens(draw: Draw) -> Inputs:
    return latents(draw) | {"hidden_states": draw(BATCH, IMAGE, 16)}


def scaled(inputs: Inputs) -> Inputs:
    """The time from 1000 to 0 instead."""
    return inputs | {"timestep": 1000 * inputs["timestep"]}


def grid(first: int) -> Tensor:
    """Position of every token of the image."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.stack([torch.full_like(rows, first), rows, columns], dim=-1).reshape(-1, 3).float()


# --- text and image in one stream ---


def _z_image_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "x": [draw(4, 1, 2 * SIDE, 2 * SIDE) for _ in range(BATCH)],
        # This model's time rises, from 0 to 1.
        "t": torch.full((BATCH,), 1 - draw.time),
        "cap_feats": [draw(length, TEXT_DIM) for length in (TEXT, TEXT - 2)],
    }


def _z_image_controlnet(draw: Draw) -> Inputs:
    # Image and text are each padded to 32 tokens.
    residuals = draw.residuals(3, BATCH, 64, WIDTH)
    return {"controlnet_block_samples": dict(zip((0, 2, 4), residuals, strict=True))}


def _z_image_omni_inputs(seed: int) -> Inputs:
    """Per sample a given image and the one in the making, with a text before each and one behind."""
    draw = Draw(seed)
    return {
        "x": [[draw(4, 1, 2 * SIDE, 2 * SIDE) for _ in range(2)] for _ in range(BATCH)],
        "t": torch.full((BATCH,), 1 - draw.time),
        "cap_feats": [[draw(TEXT, TEXT_DIM) for _ in range(3)] for _ in range(BATCH)],
        "siglip_feats": [[draw(2, 2, 12), None] for _ in range(BATCH)],
        "image_noise_mask": [[0, 1]] * BATCH,
    }


_Z_IMAGE_CONFIG: Inputs = {
    "in_channels": 4,
    "dim": WIDTH,
    "n_layers": 5,
    "n_refiner_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": TEXT_DIM,
    "axes_dims": ROPE,
    "axes_lens": (128, 32, 32),
}
Z_IMAGE = TinyModel(
    name="ZImageTransformer2DModel",
    build=builder("ZImageTransformer2DModel", seed=51, **_Z_IMAGE_CONFIG),
    inputs=_z_image_inputs,
    block_lists=("layers",),
    variants={
        "controlnet": with_extra(_z_image_inputs, _z_image_controlnet),
        "unequal_text": with_extra(
            _z_image_inputs, lambda draw: {"cap_feats": [draw(TEXT, TEXT_DIM), draw(40, TEXT_DIM)]}
        ),
        "attention_kwargs": with_extra(_z_image_inputs, lambda _: {"joint_attention_kwargs": {"scale": 1.0}}),
    },
)
Z_IMAGE_OMNI = TinyModel(
    name="ZImageTransformer2DModel",
    build=builder("ZImageTransformer2DModel", seed=52, siglip_feat_dim=12, **_Z_IMAGE_CONFIG),
    inputs=_z_image_omni_inputs,
    block_lists=("layers",),
    label="omni",
)


def _lumina2_inputs(seed: int) -> Inputs:
    return latents(Draw(seed)) | {"encoder_attention_mask": keep_all_but(0, TEXT)}


LUMINA2 = TinyModel(
    name="Lumina2Transformer2DModel",
    build=builder(
        "Lumina2Transformer2DModel",
        seed=53,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=5,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=ROPE,
        axes_lens=(32, 32, 32),
        cap_feat_dim=TEXT_DIM,
    ),
    inputs=_lumina2_inputs,
    block_lists=("layers",),
    variants={
        "padded_text": with_extra(
            _lumina2_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, TEXT)}
        ),
        "attention_kwargs": with_extra(_lumina2_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)


def _krea2_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return tokens(draw) | {
        "encoder_hidden_states": draw(BATCH, TEXT, 3, TEXT_DIM),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), grid(0)]),
    }


KREA2 = TinyModel(
    name="Krea2Transformer2DModel",
    build=builder(
        "Krea2Transformer2DModel",
        seed=54,
        in_channels=16,
        num_layers=5,
        num_key_value_heads=1,
        intermediate_size=48,
        timestep_embed_dim=32,
        text_hidden_dim=TEXT_DIM,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=32,
        axes_dims_rope=ROPE,
        **HEADS,
    ),
    inputs=_krea2_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(_krea2_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, TEXT)}),
        "attention_kwargs": with_extra(_krea2_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)


def _omnigen_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    length = TEXT + 1 + IMAGE
    return {
        "hidden_states": latents(draw)["hidden_states"],
        "timestep": torch.full((BATCH,), draw.time),
        "input_ids": torch.arange(BATCH * TEXT).reshape(BATCH, TEXT),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(BATCH, length, length),
        "position_ids": torch.arange(length).expand(BATCH, length),
    }


def _omnigen_image(draw: Draw) -> Inputs:
    # The image takes the place of the last four tokens of the second sample's text.
    return {
        "input_img_latents": [draw(1, 4, 4, 4)],
        "input_image_sizes": {1: [[TEXT - 4, TEXT]]},
    }


def _omnigen_mask(_: Draw) -> Inputs:
    length = TEXT + 1 + IMAGE
    keep = torch.ones(BATCH, length, length)
    keep[1, :, :2] = 0
    return {"attention_mask": keep}


OMNIGEN = TinyModel(
    name="OmniGenTransformer2DModel",
    build=builder(
        "OmniGenTransformer2DModel",
        seed=55,
        in_channels=4,
        hidden_size=WIDTH,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        num_layers=5,
        pad_token_id=0,
        vocab_size=16,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
        pos_embed_max_size=8,
        time_step_dim=32,
    ),
    inputs=_omnigen_inputs,
    block_lists=("layers",),
    variants={
        "input_image": with_extra(_omnigen_inputs, _omnigen_image),
        "attention_mask": with_extra(_omnigen_inputs, _omnigen_mask),
    },
)


def _qwen21_inputs(seed: int) -> Inputs:
    return tokens(Draw(seed)) | {
        "img_shapes": [[(1, SIDE, SIDE)]] * BATCH,
        # Every slot of an image stands for 2 x 2 of its tokens.
        "img_mask": (torch.arange(TEXT + IMAGE // 4) >= TEXT).expand(BATCH, -1),
    }


def _qwen21_image_inputs(seed: int) -> Inputs:
    """An image of four tokens is given in the second place of the text."""
    inputs = _qwen21_inputs(seed)
    mask = inputs["img_mask"].clone()
    mask[:, 1] = True
    return inputs | {
        "hidden_states": torch.cat([Draw(seed + 1_000)(BATCH, 4, 16), inputs["hidden_states"]], dim=1),
        "img_shapes": [[(1, 2, 2), (1, SIDE, SIDE)]] * BATCH,
        "img_mask": mask,
    }


def _qwen21_kv_inputs(seed: int) -> Inputs:
    """Later steps of a run: keys and values of the text are there already."""
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    draw, cache = Draw(seed + 1_000), QwenImage21KVCache(5)
    for layer in cache.layer_caches:
        layer.store(draw(BATCH, TEXT, 2, HEAD), draw(BATCH, TEXT, 2, HEAD))
    return _qwen21_inputs(seed) | {"kv_cache": cache, "kv_cache_mode": "cached"}


_QWEN21_CONFIG: Inputs = {
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 5,
    "context_in_dim": TEXT_DIM,
    "axes_dims_rope": ROPE,
    **HEADS,
}
QWEN_IMAGE21 = TinyModel(
    name="QwenImage21Transformer2DModel",
    build=builder("QwenImage21Transformer2DModel", seed=56, **_QWEN21_CONFIG),
    inputs=_qwen21_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(
            _qwen21_inputs, lambda _: {"encoder_hidden_states_mask": keep_all_but(2, TEXT)}
        ),
        "attention_kwargs": with_extra(_qwen21_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)
QWEN_IMAGE21_IMAGE = TinyModel(
    name="QwenImage21Transformer2DModel",
    build=builder("QwenImage21Transformer2DModel", seed=57, **_QWEN21_CONFIG),
    inputs=_qwen21_image_inputs,
    block_lists=("transformer_blocks",),
    label="image",
)
QWEN_IMAGE21_KV = TinyModel(
    name="QwenImage21Transformer2DModel",
    build=builder("QwenImage21Transformer2DModel", seed=56, **_QWEN21_CONFIG),
    inputs=_qwen21_kv_inputs,
    block_lists=("transformer_blocks",),
    label="kv_cached",
)

# --- text and image in two streams ---


def _longcat_inputs(seed: int) -> Inputs:
    text = torch.zeros(TEXT, 3)
    text[:, 1] = text[:, 2] = torch.arange(TEXT)
    return tokens(Draw(seed)) | {"txt_ids": text, "img_ids": grid(1)}


_DOUBLE_AND_SINGLE: Inputs = {
    "in_channels": 16,
    "num_layers": 4,
    "num_single_layers": 5,
    "joint_attention_dim": TEXT_DIM,
    "axes_dims_rope": ROPE,
    **HEADS,
}
LONGCAT = TinyModel(
    name="LongCatImageTransformer2DModel",
    build=builder("LongCatImageTransformer2DModel", seed=63, **_DOUBLE_AND_SINGLE),
    inputs=_longcat_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
)
OVIS = TinyModel(
    name="OvisImageTransformer2DModel",
    build=builder("OvisImageTransformer2DModel", seed=64, out_channels=16, **_DOUBLE_AND_SINGLE),
    inputs=_longcat_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={
        "attention_kwargs": with_extra(_longcat_inputs, lambda _: {"joint_attention_kwargs": {"scale": 1.0}})
    },
)


def _joy_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return scaled(latents(draw)) | {"hidden_states": draw(BATCH, 4, 1, 2 * SIDE, 2 * SIDE)}


def _joy_items_inputs(seed: int) -> Inputs:
    """A given image and the one in the making."""
    return _joy_inputs(seed) | {"hidden_states": Draw(seed)(BATCH, 2, 4, 1, 2 * SIDE, 2 * SIDE)}


def _joy_plus_inputs(seed: int) -> Inputs:
    """Patches of the image in the making and of a given one; the second sample has a smaller one."""
    draw = Draw(seed)
    return scaled(latents(draw)) | {
        "hidden_states": draw(BATCH, IMAGE + 4, 4, 1, 2, 2),
        "encoder_hidden_states_mask": keep_all_but(0, TEXT),
        "shape_list": [[(1, SIDE, SIDE), (1, 2, 2)], [(1, SIDE, SIDE), (1, 1, 2)]],
    }


_JOY_CONFIG: Inputs = {
    "in_channels": 4,
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "text_dim": TEXT_DIM,
    "num_layers": 5,
    "rope_dim_list": ROPE,
}
JOY = TinyModel(
    name="JoyImageEditTransformer3DModel",
    build=builder("JoyImageEditTransformer3DModel", seed=65, **_JOY_CONFIG),
    inputs=_joy_inputs,
    block_lists=("double_blocks",),
)
JOY_ITEMS = TinyModel(
    name="JoyImageEditTransformer3DModel",
    build=builder("JoyImageEditTransformer3DModel", seed=66, rope_type="mrope", **_JOY_CONFIG),
    inputs=_joy_items_inputs,
    block_lists=("double_blocks",),
    label="items",
)
JOY_PLUS = TinyModel(
    name="JoyImageEditPlusTransformer3DModel",
    build=builder("JoyImageEditPlusTransformer3DModel", seed=67, **_JOY_CONFIG),
    inputs=_joy_plus_inputs,
    block_lists=("double_blocks",),
    variants={
        "padded_text": with_extra(
            _joy_plus_inputs, lambda _: {"encoder_hidden_states_mask": keep_all_but(2, TEXT)}
        )
    },
)

MODELS: tuple[TinyModel, ...] = (
    Z_IMAGE,
    Z_IMAGE_OMNI,
    LUMINA2,
    QWEN_IMAGE21,
    QWEN_IMAGE21_IMAGE,
    QWEN_IMAGE21_KV,
    KREA2,
    OMNIGEN,
    LONGCAT,
    OVIS,
    JOY,
    JOY_ITEMS,
    JOY_PLUS,
)
