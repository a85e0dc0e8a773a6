"""Models whose FLOPs are counted without weights: published configurations, and inputs of a forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What is drawn.

    Attributes:
        height: In pixels.
        width: Likewise.
        frames: Of a video; 1: a picture.
        text_tokens: Length of the prompt that the transformer sees, padding included.
    """

    height: int
    width: int
    frames: int
    text_tokens: int


Inputs = dict[str, Any]
Make = Callable[[Mapping[str, Any], Size], Inputs]


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _latent(config: Mapping[str, Any], size: Size) -> Tensor:
    """[1, channels, frames, height, width] behind a video decoder of 4x8x8."""
    return _empty(1, config["in_channels"], (size.frames - 1) // 4 + 1, size.height // 8, size.width // 8)


def _flux(config: Mapping[str, Any], size: Size) -> Inputs:
    tokens = (size.height // 16) * (size.width // 16)
    made = {
        "hidden_states": _empty(1, tokens, config["in_channels"]),
        "encoder_hidden_states": _empty(1, size.text_tokens, config["joint_attention_dim"]),
        "timestep": _empty(1),
        "img_ids": _empty(tokens, len(config["axes_dims_rope"])),
        "txt_ids": _empty(size.text_tokens, len(config["axes_dims_rope"])),
    }
    if "pooled_projection_dim" in config:
        made["pooled_projections"] = _empty(1, config["pooled_projection_dim"])
    if config.get("guidance_embeds"):
        made["guidance"] = _empty(1)
    return made


def _qwen(config: Mapping[str, Any], size: Size) -> Inputs:
    rows, columns = size.height // 16, size.width // 16
    return {
        "hidden_states": _empty(1, rows * columns, config["in_channels"]),
        "encoder_hidden_states": _empty(1, size.text_tokens, config["joint_attention_dim"]),
        "timestep": _empty(1),
        "img_shapes": [[(1, rows, columns)]],
    }


def _wan(config: Mapping[str, Any], size: Size) -> Inputs:
    made = {
        "hidden_states": _latent(config, size),
        "timestep": _empty(1),
        "encoder_hidden_states": _empty(1, size.text_tokens, config["text_dim"]),
    }
    if config.get("image_dim"):
        made["encoder_hidden_states_image"] = _empty(1, 257, config["image_dim"])
    return made


def _hunyuan_video(config: Mapping[str, Any], size: Size) -> Inputs:
    made = {
        "hidden_states": _latent(config, size),
        "timestep": _empty(1),
        "encoder_hidden_states": _empty(1, size.text_tokens, config["text_embed_dim"]),
        "encoder_attention_mask": torch.ones((1, size.text_tokens), dtype=torch.bool, device="meta"),
        "pooled_projections": _empty(1, config["pooled_projection_dim"]),
    }
    return made | ({"guidance": _empty(1)} if config.get("guidance_embeds") else {})


def _sd3(config: Mapping[str, Any], size: Size) -> Inputs:
    return {
        "hidden_states": _empty(1, config["in_channels"], size.height // 8, size.width // 8),
        "encoder_hidden_states": _empty(1, size.text_tokens, config["joint_attention_dim"]),
        "pooled_projections": _empty(1, config["pooled_projection_dim"]),
        "timestep": _empty(1),
    }


# Class name -> the inputs of one forward on the device "meta".
INPUTS: Mapping[str, Make] = MappingProxyType(
    {
        "ChromaTransformer2DModel": _flux,
        "Flux2Transformer2DModel": _flux,
        "FluxTransformer2DModel": _flux,
        "HunyuanVideoTransformer3DModel": _hunyuan_video,
        "QwenImageTransformer2DModel": _qwen,
        "SD3Transformer2DModel": _sd3,
        "WanTransformer3DModel": _wan,
    }
)
_PICTURE = Size(height=1024, width=1024, frames=1, text_tokens=512)
_WAN = Size(height=720, width=1280, frames=81, text_tokens=512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A published model.

    Attributes:
        kind: Class of its transformer in diffusers.
        config: What differs from the defaults of that class.
        size: What is drawn where nothing else is said.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    size: Size = _PICTURE


_SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "FLUX": Known(kind="FluxTransformer2DModel", config={"guidance_embeds": True}),
        "FLUX.1-dev": Known(kind="FluxTransformer2DModel", config={"guidance_embeds": True}),
        "FLUX.1-schnell": Known(
            kind="FluxTransformer2DModel", size=Size(height=1024, width=1024, frames=1, text_tokens=256)
        ),
        "Chroma": Known(kind="ChromaTransformer2DModel"),
        "FLUX.2-dev": Known(kind="Flux2Transformer2DModel"),
        "Qwen-Image": Known(kind="QwenImageTransformer2DModel"),
        "SD3-medium": Known(
            kind="SD3Transformer2DModel",
            config={**_SD3, "pos_embed_max_size": 192},
            size=Size(height=1024, width=1024, frames=1, text_tokens=333),
        ),
        "SD3.5-medium": Known(
            kind="SD3Transformer2DModel",
            config={
                **_SD3,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
                "qk_norm": "rms_norm",
            },
            size=Size(height=1024, width=1024, frames=1, text_tokens=333),
        ),
        "SD3.5-large": Known(
            kind="SD3Transformer2DModel",
            config={
                "num_layers": 38,
                "num_attention_heads": 38,
                "caption_projection_dim": 2432,
                "pos_embed_max_size": 192,
                "qk_norm": "rms_norm",
            },
            size=Size(height=1024, width=1024, frames=1, text_tokens=333),
        ),
        "Wan2.1-T2V-1.3B": Known(
            kind="WanTransformer3DModel",
            config={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
            size=Size(height=480, width=832, frames=81, text_tokens=512),
        ),
        "Wan2.1-T2V-14B": Known(kind="WanTransformer3DModel", size=_WAN),
        "Wan2.2-T2V-A14B": Known(kind="WanTransformer3DModel", size=_WAN),
        "HunyuanVideo": Known(
            kind="HunyuanVideoTransformer3DModel",
            size=Size(height=720, width=1280, frames=129, text_tokens=256),
        ),
    }
)
