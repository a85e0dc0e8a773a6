"""Tiny image transformers: one stream of text and image, editing, and transformers from before DiT."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from torch import Tensor

from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra

_SIDE, _TEXT, _TEXT_DIM = 4, 5, 24
_IMAGE = _SIDE**2
_WIDTH, _HEAD = 32, 16
_ROPE = (4, 6, 6)
_HEADS: Inputs = {"num_attention_heads": 2, "attention_head_dim": _HEAD}


def _latents(draw: Draw, *, patch: int = 2) -> Inputs:
    """Latents of `_IMAGE` tokens, with a text and a time from 1 to 0."""
    return {
        "hidden_states": draw(BATCH, 4, patch * _SIDE, patch * _SIDE),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": torch.full((BATCH,), draw.time),
    }


def _tokens(draw: Draw) -> Inputs:
    return _latents(draw) | {"hidden_states": draw(BATCH, _IMAGE, 16)}


def _scaled(inputs: Inputs) -> Inputs:
    """The time from 1000 to 0 instead."""
    return inputs | {"timestep": 1000 * inputs["timestep"]}


def _grid(first: int) -> Tensor:
    """Position of every token of the image."""
    rows, columns = torch.meshgrid(torch.arange(_SIDE), torch.arange(_SIDE), indexing="ij")
    return torch.stack([torch.full_like(rows, first), rows, columns], dim=-1).reshape(-1, 3).float()


# --- text and image in one stream ---


def _z_image_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "x": [draw(4, 1, 2 * _SIDE, 2 * _SIDE) for _ in range(BATCH)],
        # This model's time rises, from 0 to 1.
        "t": torch.full((BATCH,), 1 - draw.time),
        "cap_feats": [draw(length, _TEXT_DIM) for length in (_TEXT, _TEXT - 2)],
    }


def _z_image_controlnet(draw: Draw) -> Inputs:
    # Image and text are each padded to 32 tokens.
    residuals = draw.residuals(3, BATCH, 64, _WIDTH)
    return {"controlnet_block_samples": dict(zip((0, 2, 4), residuals, strict=True))}


def _z_image_omni_inputs(seed: int) -> Inputs:
    """Per sample a given image and the one in the making, with a text before each and one behind."""
    draw = Draw(seed)
    return {
        "x": [[draw(4, 1, 2 * _SIDE, 2 * _SIDE) for _ in range(2)] for _ in range(BATCH)],
        "t": torch.full((BATCH,), 1 - draw.time),
        "cap_feats": [[draw(_TEXT, _TEXT_DIM) for _ in range(3)] for _ in range(BATCH)],
        "siglip_feats": [[draw(2, 2, 12), None] for _ in range(BATCH)],
        "image_noise_mask": [[0, 1]] * BATCH,
    }


_Z_IMAGE_CONFIG: Inputs = {
    "in_channels": 4,
    "dim": _WIDTH,
    "n_layers": 5,
    "n_refiner_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": _TEXT_DIM,
    "axes_dims": _ROPE,
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
            _z_image_inputs, lambda draw: {"cap_feats": [draw(_TEXT, _TEXT_DIM), draw(40, _TEXT_DIM)]}
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
    return _latents(Draw(seed)) | {"encoder_attention_mask": keep_all_but(0, _TEXT)}


LUMINA2 = TinyModel(
    name="Lumina2Transformer2DModel",
    build=builder(
        "Lumina2Transformer2DModel",
        seed=53,
        in_channels=4,
        hidden_size=_WIDTH,
        num_layers=5,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=_ROPE,
        axes_lens=(32, 32, 32),
        cap_feat_dim=_TEXT_DIM,
    ),
    inputs=_lumina2_inputs,
    block_lists=("layers",),
    variants={
        "padded_text": with_extra(
            _lumina2_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, _TEXT)}
        ),
        "attention_kwargs": with_extra(_lumina2_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)


def _krea2_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return _tokens(draw) | {
        "encoder_hidden_states": draw(BATCH, _TEXT, 3, _TEXT_DIM),
        "position_ids": torch.cat([torch.zeros(_TEXT, 3), _grid(0)]),
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
        text_hidden_dim=_TEXT_DIM,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=32,
        axes_dims_rope=_ROPE,
        **_HEADS,
    ),
    inputs=_krea2_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(
            _krea2_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, _TEXT)}
        ),
        "attention_kwargs": with_extra(_krea2_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)


def _omnigen_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    length = _TEXT + 1 + _IMAGE
    return {
        "hidden_states": _latents(draw)["hidden_states"],
        "timestep": torch.full((BATCH,), draw.time),
        "input_ids": torch.arange(BATCH * _TEXT).reshape(BATCH, _TEXT),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(BATCH, length, length),
        "position_ids": torch.arange(length).expand(BATCH, length),
    }


def _omnigen_image(draw: Draw) -> Inputs:
    # The image takes the place of the last four tokens of the second sample's text.
    return {
        "input_img_latents": [draw(1, 4, 4, 4)],
        "input_image_sizes": {1: [[_TEXT - 4, _TEXT]]},
    }


def _omnigen_mask(_: Draw) -> Inputs:
    length = _TEXT + 1 + _IMAGE
    keep = torch.ones(BATCH, length, length)
    keep[1, :, :2] = 0
    return {"attention_mask": keep}


OMNIGEN = TinyModel(
    name="OmniGenTransformer2DModel",
    build=builder(
        "OmniGenTransformer2DModel",
        seed=55,
        in_channels=4,
        hidden_size=_WIDTH,
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
    return _tokens(Draw(seed)) | {
        "img_shapes": [[(1, _SIDE, _SIDE)]] * BATCH,
        # Every slot of an image stands for 2 x 2 of its tokens.
        "img_mask": (torch.arange(_TEXT + _IMAGE // 4) >= _TEXT).expand(BATCH, -1),
    }


def _qwen21_image_inputs(seed: int) -> Inputs:
    """An image of four tokens is given in the second place of the text."""
    inputs = _qwen21_inputs(seed)
    mask = inputs["img_mask"].clone()
    mask[:, 1] = True
    return inputs | {
        "hidden_states": torch.cat([Draw(seed + 1_000)(BATCH, 4, 16), inputs["hidden_states"]], dim=1),
        "img_shapes": [[(1, 2, 2), (1, _SIDE, _SIDE)]] * BATCH,
        "img_mask": mask,
    }


def _qwen21_kv_inputs(seed: int) -> Inputs:
    """Later steps of a run: keys and values of the text are there already."""
    draw, cache = Draw(seed + 1_000), QwenImage21KVCache(5)
    for layer in cache.layer_caches:
        layer.store(draw(BATCH, _TEXT, 2, _HEAD), draw(BATCH, _TEXT, 2, _HEAD))
    return _qwen21_inputs(seed) | {"kv_cache": cache, "kv_cache_mode": "cached"}


_QWEN21_CONFIG: Inputs = {
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 5,
    "context_in_dim": _TEXT_DIM,
    "axes_dims_rope": _ROPE,
    **_HEADS,
}
QWEN_IMAGE21 = TinyModel(
    name="QwenImage21Transformer2DModel",
    build=builder("QwenImage21Transformer2DModel", seed=56, **_QWEN21_CONFIG),
    inputs=_qwen21_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(
            _qwen21_inputs, lambda _: {"encoder_hidden_states_mask": keep_all_but(2, _TEXT)}
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

# --- text read by cross-attention ---


def _sana_inputs(seed: int) -> Inputs:
    return _scaled(_latents(Draw(seed), patch=1))


def _sana_sprint_inputs(seed: int) -> Inputs:
    return _latents(Draw(seed), patch=1) | {"guidance": torch.full((BATCH,), 0.45)}


def _sana_controlnet(draw: Draw) -> Inputs:
    return {"controlnet_block_samples": tuple(draw.residuals(4, BATCH, _IMAGE, _WIDTH))}


_SANA_CONFIG: Inputs = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 5,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": _HEAD,
    "cross_attention_dim": _WIDTH,
    "caption_channels": _TEXT_DIM,
    "sample_size": _SIDE,
    **_HEADS,
}
SANA = TinyModel(
    name="SanaTransformer2DModel",
    build=builder("SanaTransformer2DModel", seed=58, **_SANA_CONFIG),
    inputs=_sana_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "controlnet": with_extra(_sana_inputs, _sana_controlnet),
        "padded_text": with_extra(_sana_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, _TEXT)}),
        "attention_kwargs": with_extra(_sana_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)
SANA_SPRINT = TinyModel(
    name="SanaTransformer2DModel",
    build=builder(
        "SanaTransformer2DModel",
        seed=59,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
        timestep_scale=1000.0,
        **_SANA_CONFIG,
    ),
    inputs=_sana_sprint_inputs,
    block_lists=("transformer_blocks",),
    label="sprint",
)


def _lumina_inputs(seed: int) -> Inputs:
    return _latents(Draw(seed)) | {
        "encoder_mask": keep_all_but(0, _TEXT),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(_HEAD, 8, 8),
        "cross_attention_kwargs": {},
    }


LUMINA = TinyModel(
    name="LuminaNextDiT2DModel",
    build=builder(
        "LuminaNextDiT2DModel",
        seed=60,
        in_channels=4,
        hidden_size=_WIDTH,
        num_layers=5,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=_TEXT_DIM,
    ),
    inputs=_lumina_inputs,
    block_lists=("layers",),
    variants={"padded_text": with_extra(_lumina_inputs, lambda _: {"encoder_mask": keep_all_but(2, _TEXT)})},
)


def _prx_inputs(seed: int) -> Inputs:
    return _latents(Draw(seed))


PRX = TinyModel(
    name="PRXTransformer2DModel",
    build=builder(
        "PRXTransformer2DModel",
        seed=61,
        in_channels=4,
        context_in_dim=_TEXT_DIM,
        hidden_size=_WIDTH,
        num_heads=2,
        depth=5,
        axes_dim=[8, 8],
    ),
    inputs=_prx_inputs,
    block_lists=("blocks",),
    variants={"padded_text": with_extra(_prx_inputs, lambda _: {"attention_mask": keep_all_but(2, _TEXT)})},
)


def _nucleus_inputs(seed: int) -> Inputs:
    return _tokens(Draw(seed)) | {"img_shapes": [(1, _SIDE, _SIDE)] * BATCH}


NUCLEUS = TinyModel(
    name="NucleusMoEImageTransformer2DModel",
    build=builder(
        "NucleusMoEImageTransformer2DModel",
        seed=62,
        # Parameters with an axis more, the experts, are drawn too small by the width of the output.
        gains={
            f"transformer_blocks.{index}.img_mlp.experts.{name}": 32**0.5
            for index in (3, 4)
            for name in ("gate_up_proj", "down_proj")
        },
        in_channels=16,
        out_channels=4,
        num_layers=6,
        joint_attention_dim=_TEXT_DIM,
        axes_dims_rope=_ROPE,
        # The narrowest feed-forward layer that dense blocks can have.
        mlp_ratio=6.0,
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
        **_HEADS,
    ),
    inputs=_nucleus_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(
            _nucleus_inputs, lambda _: {"encoder_hidden_states_mask": keep_all_but(2, _TEXT)}
        ),
        "attention_kwargs": with_extra(_nucleus_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)

# --- text and image in two streams ---


def _longcat_inputs(seed: int) -> Inputs:
    text = torch.zeros(_TEXT, 3)
    text[:, 1] = text[:, 2] = torch.arange(_TEXT)
    return _tokens(Draw(seed)) | {"txt_ids": text, "img_ids": _grid(1)}


_DOUBLE_AND_SINGLE: Inputs = {
    "in_channels": 16,
    "num_layers": 4,
    "num_single_layers": 5,
    "joint_attention_dim": _TEXT_DIM,
    "axes_dims_rope": _ROPE,
    **_HEADS,
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
    return _scaled(_latents(draw)) | {"hidden_states": draw(BATCH, 4, 1, 2 * _SIDE, 2 * _SIDE)}


def _joy_items_inputs(seed: int) -> Inputs:
    """A given image and the one in the making."""
    return _joy_inputs(seed) | {"hidden_states": Draw(seed)(BATCH, 2, 4, 1, 2 * _SIDE, 2 * _SIDE)}


def _joy_plus_inputs(seed: int) -> Inputs:
    """Patches of the image in the making and of a given one; the second sample has a smaller one."""
    draw = Draw(seed)
    return _scaled(_latents(draw)) | {
        "hidden_states": draw(BATCH, _IMAGE + 4, 4, 1, 2, 2),
        "encoder_hidden_states_mask": keep_all_but(0, _TEXT),
        "shape_list": [[(1, _SIDE, _SIDE), (1, 2, 2)], [(1, _SIDE, _SIDE), (1, 1, 2)]],
    }


_JOY_CONFIG: Inputs = {
    "in_channels": 4,
    "hidden_size": _WIDTH,
    "num_attention_heads": 2,
    "text_dim": _TEXT_DIM,
    "num_layers": 5,
    "rope_dim_list": _ROPE,
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
            _joy_plus_inputs, lambda _: {"encoder_hidden_states_mask": keep_all_but(2, _TEXT)}
        )
    },
)

# --- before DiT ---


def _spatial_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return _scaled(_latents(draw)) | {"hidden_states": draw(BATCH, _WIDTH, _SIDE, _SIDE)}


def _masked_text(_: Draw) -> Inputs:
    return {"encoder_attention_mask": keep_all_but(2, _TEXT)}


_SPATIAL_CONFIG: Inputs = {
    "in_channels": _WIDTH,
    "num_layers": 5,
    "norm_num_groups": 8,
    "cross_attention_dim": _TEXT_DIM,
    **_HEADS,
}
TRANSFORMER_2D = TinyModel(
    name="Transformer2DModel",
    build=builder("Transformer2DModel", seed=68, **_SPATIAL_CONFIG),
    inputs=_spatial_inputs,
    block_lists=("transformer_blocks",),
    variants={"padded_text": with_extra(_spatial_inputs, _masked_text)},
)
DREAM_LITE = TinyModel(
    name="DreamLiteTransformer2DModel",
    build=builder("DreamLiteTransformer2DModel", seed=69, qk_norm="rms_norm", **_SPATIAL_CONFIG),
    inputs=_spatial_inputs,
    block_lists=("transformer_blocks",),
    variants={"padded_text": with_extra(_spatial_inputs, _masked_text)},
)


def _codes(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 12, shape, generator=torch.Generator().manual_seed(seed))


def _codes_inputs(seed: int) -> Inputs:
    return _spatial_inputs(seed) | {"hidden_states": _codes(seed, BATCH, _IMAGE)}


VQ_DIFFUSION = TinyModel(
    name="Transformer2DModel",
    build=builder(
        "Transformer2DModel",
        seed=70,
        num_layers=5,
        sample_size=_SIDE,
        num_vector_embeds=13,
        cross_attention_dim=_TEXT_DIM,
        **_HEADS,
    ),
    inputs=_codes_inputs,
    block_lists=("transformer_blocks",),
    label="codes",
)


def _amused_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "input_ids": _codes(seed, BATCH, _SIDE, _SIDE),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "pooled_text_emb": draw(BATCH, 20),
        "micro_conds": torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]] * BATCH),
    }


AMUSED = TinyModel(
    name="UVit2DModel",
    build=builder(
        "UVit2DModel",
        seed=71,
        hidden_size=_WIDTH,
        cond_embed_dim=20,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=20,
        encoder_hidden_size=_TEXT_DIM,
        vocab_size=13,
        codebook_size=12,
        in_channels=24,
        block_out_channels=24,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=5,
        num_attention_heads=2,
        intermediate_size=48,
        sample_size=_SIDE,
    ),
    inputs=_amused_inputs,
    block_lists=("transformer_layers",),
    variants={
        "attention_kwargs": with_extra(_amused_inputs, lambda _: {"cross_attention_kwargs": {"scale": 1.0}})
    },
)


def _prior_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 12),
        "timestep": torch.full((BATCH,), int(1000 * draw.time)),
        "proj_embedding": draw(BATCH, 12),
        "encoder_hidden_states": draw(BATCH, _TEXT, 12),
    }


def _shap_e_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 8, 12),
        "timestep": torch.full((BATCH,), int(1000 * draw.time)),
        "proj_embedding": draw(BATCH, 20),
    }


PRIOR = TinyModel(
    name="PriorTransformer",
    build=builder(
        "PriorTransformer", seed=72, num_layers=5, embedding_dim=12, num_embeddings=_TEXT, **_HEADS
    ),
    inputs=_prior_inputs,
    block_lists=("transformer_blocks",),
    variants={"padded_text": with_extra(_prior_inputs, lambda _: {"attention_mask": keep_all_but(2, _TEXT)})},
)
SHAP_E = TinyModel(
    name="PriorTransformer",
    build=builder(
        "PriorTransformer",
        seed=73,
        num_layers=5,
        embedding_dim=12,
        num_embeddings=8,
        additional_embeddings=0,
        norm_in_type="layer",
        embedding_proj_norm_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
        embedding_proj_dim=20,
        clip_embed_dim=24,
        **_HEADS,
    ),
    inputs=_shap_e_inputs,
    block_lists=("transformer_blocks",),
    label="shap_e",
)


def _film_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "encodings_and_masks": [
            (draw(BATCH, _TEXT, _WIDTH), keep_all_but(0, _TEXT).float()),
            (draw(BATCH, 8, _WIDTH), keep_all_but(0, 8).float()),
        ],
        "decoder_input_tokens": draw(BATCH, 8, 12),
        "decoder_noise_time": torch.full((BATCH,), draw.time),
    }


def _film_mask(draw: Draw) -> Inputs:
    return {"encodings_and_masks": [(draw(BATCH, _TEXT, _WIDTH), keep_all_but(2, _TEXT).float())]}


T5_FILM = TinyModel(
    name="T5FilmDecoder",
    build=builder(
        "T5FilmDecoder",
        seed=74,
        input_dims=12,
        targets_length=8,
        d_model=_WIDTH,
        num_layers=5,
        num_heads=2,
        d_kv=16,
        d_ff=48,
    ),
    inputs=_film_inputs,
    block_lists=("decoders",),
    variants={"padded_encoding": with_extra(_film_inputs, _film_mask)},
)

MODELS: tuple[TinyModel, ...] = (
    Z_IMAGE,
    Z_IMAGE_OMNI,
    SANA,
    SANA_SPRINT,
    LUMINA2,
    QWEN_IMAGE21,
    QWEN_IMAGE21_IMAGE,
    QWEN_IMAGE21_KV,
    KREA2,
    LONGCAT,
    OVIS,
    OMNIGEN,
    PRX,
    NUCLEUS,
    JOY,
    JOY_ITEMS,
    JOY_PLUS,
    LUMINA,
    TRANSFORMER_2D,
    DREAM_LITE,
    VQ_DIFFUSION,
    AMUSED,
    PRIOR,
    SHAP_E,
    T5_FILM,
)
