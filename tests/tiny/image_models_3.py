"""Tiny image transformers that read the text by cross-attention, and such from before DiT."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor

from .base import BATCH, Draw, Inputs, TinyModel, builder, keep_all_but, with_extra
from .image_models_2 import HEAD, HEADS, IMAGE, ROPE, SIDE, TEXT, TEXT_DIM, WIDTH, latents, scaled, tokens

# --- text read by cross-attention ---


def _sana_inputs(seed: int) -> Inputs:
    return scaled(latents(Draw(seed), patch=1))


def _sana_sprint_inputs(seed: int) -> Inputs:
    return latents(Draw(seed), patch=1) | {"guidance": torch.full((BATCH,), 0.45)}


def _sana_controlnet(draw: Draw) -> Inputs:
    return {"controlnet_block_samples": tuple(draw.residuals(4, BATCH, IMAGE, WIDTH))}


_SANA_CONFIG: Inputs = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 5,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": HEAD,
    "cross_attention_dim": WIDTH,
    "caption_channels": TEXT_DIM,
    "sample_size": SIDE,
    **HEADS,
}
SANA = TinyModel(
    name="SanaTransformer2DModel",
    build=builder("SanaTransformer2DModel", seed=58, **_SANA_CONFIG),
    inputs=_sana_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "controlnet": with_extra(_sana_inputs, _sana_controlnet),
        "padded_text": with_extra(_sana_inputs, lambda _: {"encoder_attention_mask": keep_all_but(2, TEXT)}),
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
    return latents(Draw(seed)) | {
        "encoder_mask": keep_all_but(0, TEXT),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(HEAD, 8, 8),
        "cross_attention_kwargs": {},
    }


LUMINA = TinyModel(
    name="LuminaNextDiT2DModel",
    build=builder(
        "LuminaNextDiT2DModel",
        seed=60,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=5,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=TEXT_DIM,
    ),
    inputs=_lumina_inputs,
    block_lists=("layers",),
    variants={"padded_text": with_extra(_lumina_inputs, lambda _: {"encoder_mask": keep_all_but(2, TEXT)})},
)


def _prx_inputs(seed: int) -> Inputs:
    return latents(Draw(seed))


PRX = TinyModel(
    name="PRXTransformer2DModel",
    build=builder(
        "PRXTransformer2DModel",
        seed=61,
        in_channels=4,
        context_in_dim=TEXT_DIM,
        hidden_size=WIDTH,
        num_heads=2,
        depth=5,
        axes_dim=[8, 8],
    ),
    inputs=_prx_inputs,
    block_lists=("blocks",),
    variants={"padded_text": with_extra(_prx_inputs, lambda _: {"attention_mask": keep_all_but(2, TEXT)})},
)


def _nucleus_inputs(seed: int) -> Inputs:
    return tokens(Draw(seed)) | {"img_shapes": [(1, SIDE, SIDE)] * BATCH}


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
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=ROPE,
        # The narrowest feed-forward layer that dense blocks can have.
        mlp_ratio=6.0,
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
        **HEADS,
    ),
    inputs=_nucleus_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "padded_text": with_extra(
            _nucleus_inputs, lambda _: {"encoder_hidden_states_mask": keep_all_but(2, TEXT)}
        ),
        "attention_kwargs": with_extra(_nucleus_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)

# --- before DiT ---


def _spatial_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return scaled(latents(draw)) | {"hidden_states": draw(BATCH, WIDTH, SIDE, SIDE)}


def _masked_text(_: Draw) -> Inputs:
    return {"encoder_attention_mask": keep_all_but(2, TEXT)}


_SPATIAL_CONFIG: Inputs = {
    "in_channels": WIDTH,
    "num_layers": 5,
    "norm_num_groups": 8,
    "cross_attention_dim": TEXT_DIM,
    **HEADS,
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
    return _spatial_inputs(seed) | {"hidden_states": _codes(seed, BATCH, IMAGE)}


VQ_DIFFUSION = TinyModel(
    name="Transformer2DModel",
    build=builder(
        "Transformer2DModel",
        seed=70,
        num_layers=5,
        sample_size=SIDE,
        num_vector_embeds=13,
        cross_attention_dim=TEXT_DIM,
        **HEADS,
    ),
    inputs=_codes_inputs,
    block_lists=("transformer_blocks",),
    label="codes",
)


def _amused_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "input_ids": _codes(seed, BATCH, SIDE, SIDE),
        "encoder_hidden_states": draw(BATCH, TEXT, TEXT_DIM),
        "pooled_text_emb": draw(BATCH, 20),
        "micro_conds": torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]] * BATCH),
    }


AMUSED = TinyModel(
    name="UVit2DModel",
    build=builder(
        "UVit2DModel",
        seed=71,
        hidden_size=WIDTH,
        cond_embed_dim=20,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=20,
        encoder_hidden_size=TEXT_DIM,
        vocab_size=13,
        codebook_size=12,
        in_channels=24,
        block_out_channels=24,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=5,
        num_attention_heads=2,
        intermediate_size=48,
        sample_size=SIDE,
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
        "encoder_hidden_states": draw(BATCH, TEXT, 12),
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
    build=builder("PriorTransformer", seed=72, num_layers=5, embedding_dim=12, num_embeddings=TEXT, **HEADS),
    inputs=_prior_inputs,
    block_lists=("transformer_blocks",),
    variants={"padded_text": with_extra(_prior_inputs, lambda _: {"attention_mask": keep_all_but(2, TEXT)})},
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
        **HEADS,
    ),
    inputs=_shap_e_inputs,
    block_lists=("transformer_blocks",),
    label="shap_e",
)


def _film_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "encodings_and_masks": [
            (draw(BATCH, TEXT, WIDTH), keep_all_but(0, TEXT).float()),
            (draw(BATCH, 8, WIDTH), keep_all_but(0, 8).float()),
        ],
        "decoder_input_tokens": draw(BATCH, 8, 12),
        "decoder_noise_time": torch.full((BATCH,), draw.time),
    }


def _film_mask(draw: Draw) -> Inputs:
    return {"encodings_and_masks": [(draw(BATCH, TEXT, WIDTH), keep_all_but(2, TEXT).float())]}


T5_FILM = TinyModel(
    name="T5FilmDecoder",
    build=builder(
        "T5FilmDecoder",
        seed=74,
        input_dims=12,
        targets_length=8,
        d_model=WIDTH,
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
    SANA,
    SANA_SPRINT,
    PRX,
    NUCLEUS,
    LUMINA,
    TRANSFORMER_2D,
    DREAM_LITE,
    VQ_DIFFUSION,
    AMUSED,
    PRIOR,
    SHAP_E,
    T5_FILM,
)
