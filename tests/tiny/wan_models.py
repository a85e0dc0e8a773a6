"""Tiny transformers made from Wan's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .base import BATCH, Draw, Inputs, TinyModel, builder, with_extra

_FRAMES, _SIDE = 2, 4
_TEXT, _TEXT_DIM = 5, 24
_WIDTH = 32


def _video_inputs(seed: int, **more: Any) -> Inputs:
    draw = Draw(seed)
    return {
        "hidden_states": draw(BATCH, 4, _FRAMES, 2 * _SIDE, 2 * _SIDE),
        "encoder_hidden_states": draw(BATCH, _TEXT, _TEXT_DIM),
        "timestep": torch.full((BATCH,), int(1000 * draw.time)),
    } | more


# --- SkyReels ---


def _frame_time(draw: Draw) -> Inputs:
    """Diffusion forcing: each frame at a time of its own."""
    time = int(1000 * draw.time)
    return {"enable_diffusion_forcing": True, "timestep": torch.tensor([[time, time + 20]] * BATCH)}


_WAN_CONFIG: Inputs = {
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": _TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 6,
    "rope_max_seq_len": 32,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
}
SKYREELS = TinyModel(
    name="SkyReelsV2Transformer3DModel",
    build=builder("SkyReelsV2Transformer3DModel", seed=203, **_WAN_CONFIG),
    inputs=_video_inputs,
    block_lists=("blocks",),
    variants={
        "diffusion_forcing": with_extra(_video_inputs, _frame_time),
        "attention_kwargs": with_extra(_video_inputs, lambda _: {"attention_kwargs": {"scale": 1.0}}),
    },
)
SKYREELS_CAUSAL = TinyModel(
    name="SkyReelsV2Transformer3DModel",
    build=builder(
        "SkyReelsV2Transformer3DModel",
        seed=204,
        inject_sample_info=True,
        num_frame_per_block=2,
        **_WAN_CONFIG,
    ),
    inputs=lambda seed: _video_inputs(seed, fps=[0, 1]),
    block_lists=("blocks",),
    label="causal",
)

# --- conditions on videos ---


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
    return _video_inputs(seed) | {
        "encoder_hidden_states_image": draw(BATCH, 3, 10),
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
        image_dim=10,
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

# --- a cache of keys and values ---

_ANIMATE_2_LAYERS, _ANIMATE_2_SIDE = 12, 2


class _CachedAttention:
    """Attends to the cached tokens, too, as the flex attention does that diffusers has for it.

    That one takes half a minute to compile its mask. What matters here is that each layer has a cache.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, *, kv_cache: Any, kv_cache_mode: str, **_: Any
    ) -> Tensor:
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        parts = (query, key, attn.to_v(hidden_states))
        query, key, value = (part.unflatten(2, (attn.heads, -1)) for part in parts)
        if kv_cache_mode == "extract":
            kv_cache.store(key, value)
        else:
            cached = kv_cache.get()
            key, value = torch.cat([key, cached[0]], dim=1), torch.cat([value, cached[1]], dim=1)
        parts = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        attended = scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        output: Tensor = attn.to_out[0](attended)
        return output


def _with_cached_attention(model: Any) -> None:
    for block in model.blocks:
        block.self_attn.set_processor(_CachedAttention())
    # The mask of videos of the size of the inputs.
    model.block_masks[_FRAMES, _ANIMATE_2_SIDE**2] = None


def _build_animate_2() -> nn.Module:
    model = builder(
        "WanAnimate2Transformer3DModel",
        seed=213,
        text_len=_TEXT,
        in_dim=12,
        dim=_WIDTH,
        ffn_dim=64,
        freq_dim=32,
        text_dim=_TEXT_DIM,
        out_dim=4,
        num_heads=2,
        num_layers=_ANIMATE_2_LAYERS,
        use_img_emb=False,
    )()
    _with_cached_attention(model)
    return model


def _animate_2_cache() -> Any:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return WanAnimate2KVCache(_ANIMATE_2_LAYERS)


def _animate_2_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    side = _ANIMATE_2_SIDE
    cache, kept = _animate_2_cache(), Draw(0)
    for layer in cache.layer_caches:
        layer.store(*(kept(BATCH, _FRAMES * side**2, 2, 16) for _ in range(2)))
    return {
        "hidden_states": [draw(4, _FRAMES + 1, 2 * side, 2 * side) for _ in range(BATCH)],
        "condition_latents": [draw(8, _FRAMES + 1, 2 * side, 2 * side) for _ in range(BATCH)],
        "encoder_hidden_states": [draw(length, _TEXT_DIM) for length in (_TEXT, _TEXT - 2)],
        "timestep": torch.full((BATCH,), 1000 * draw.time),
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": (_FRAMES + 1) * side**2,
        "reference_grid_sizes": torch.tensor([[_FRAMES, side, side]] * BATCH),
        "origin_len": 4 * _FRAMES - 3,
        "origin_area": [16 * side, 16 * side],
    }


def _extraction(_: Draw) -> Inputs:
    grid = torch.tensor([[_FRAMES + 1, _ANIMATE_2_SIDE, _ANIMATE_2_SIDE]] * BATCH)
    return {
        "kv_cache": _animate_2_cache(),
        "kv_cache_mode": "extract",
        "offset_grid_sizes": grid,
    }


WAN_ANIMATE_2 = TinyModel(
    name="WanAnimate2Transformer3DModel",
    build=_build_animate_2,
    prepare=_with_cached_attention,
    inputs=_animate_2_inputs,
    block_lists=("blocks",),
    variants={"without_prompt": with_extra(_animate_2_inputs, lambda _: {"is_uncondtion": True})},
    bypassed=with_extra(_animate_2_inputs, _extraction),
)

MODELS: tuple[TinyModel, ...] = (SKYREELS, SKYREELS_CAUSAL, WAN_VACE, WAN_ANIMATE, WAN_ANIMATE_2)
