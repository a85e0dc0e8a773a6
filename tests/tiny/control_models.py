"""Tiny ControlNet models, for the same latents and texts as the tiny transformers that they control."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from .base import BATCH, Draw, Inputs, InputsOf, TinyModel, builder, with_extra
from .image_models import FLUX, QWEN_IMAGE, SD3
from .image_models_1 import HUNYUAN_DIT
from .image_models_2 import Z_IMAGE
from .image_models_3 import SANA

_TEXT_DIM, _POOLED, _WIDTH = 24, 20, 32
_HEADS: Inputs = {"num_attention_heads": 2, "attention_head_dim": 16}
_ROPE = (4, 6, 6)


def _controlled(inputs: InputsOf, *shape: int) -> InputsOf:
    """Inputs with a picture that controls: latents of some shape."""
    return with_extra(inputs, lambda draw: {"controlnet_cond": draw(BATCH, *shape)})


def _scaled(inputs: InputsOf, scale: Any = 0.5) -> InputsOf:
    return lambda seed: inputs(seed) | {"conditioning_scale": scale}


_TOKENS = (16, 16)
_flux_inputs = _controlled(FLUX.inputs, *_TOKENS)
_FLUX_CONFIG: Inputs = {
    "in_channels": 16,
    "num_layers": 5,
    "num_single_layers": 4,
    "joint_attention_dim": _TEXT_DIM,
    "pooled_projection_dim": _POOLED,
    "guidance_embeds": True,
    "axes_dims_rope": _ROPE,
    **_HEADS,
}
FLUX_CONTROL = TinyModel(
    name="FluxControlNetModel",
    build=builder("FluxControlNetModel", seed=501, **_FLUX_CONFIG),
    inputs=_flux_inputs,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    variants={"scale": _scaled(_flux_inputs)},
)
FLUX_CONTROL_UNION = TinyModel(
    name="FluxControlNetModel",
    build=builder("FluxControlNetModel", seed=502, num_mode=3, **_FLUX_CONFIG),
    inputs=lambda seed: _flux_inputs(seed) | {"controlnet_mode": torch.full((BATCH, 1), 2)},
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    label="union",
)

_qwen_inputs = _controlled(QWEN_IMAGE.inputs, *_TOKENS)
QWEN_IMAGE_CONTROL = TinyModel(
    name="QwenImageControlNetModel",
    build=builder(
        "QwenImageControlNetModel",
        seed=503,
        in_channels=16,
        out_channels=4,
        num_layers=5,
        joint_attention_dim=_TEXT_DIM,
        axes_dims_rope=_ROPE,
        **_HEADS,
    ),
    inputs=_qwen_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "scale": _scaled(_qwen_inputs),
        "padded_text": _controlled(QWEN_IMAGE.variants["padded_text"], *_TOKENS),
    },
)

_LATENTS = (4, 8, 8)
_sd3_inputs = _controlled(SD3.inputs, *_LATENTS)
SD3_CONTROL = TinyModel(
    name="SD3ControlNetModel",
    build=builder(
        "SD3ControlNetModel",
        seed=504,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        joint_attention_dim=_TEXT_DIM,
        caption_projection_dim=_WIDTH,
        pooled_projection_dim=_POOLED,
        pos_embed_max_size=8,
        **_HEADS,
    ),
    inputs=_sd3_inputs,
    block_lists=("transformer_blocks",),
    variants={"scale": _scaled(_sd3_inputs)},
)


def _sd3_single_inputs(seed: int) -> Inputs:
    """Latents that the transformer has embedded, and no text."""
    inputs = _sd3_inputs(seed) | {"hidden_states": Draw(seed)(BATCH, 16, _WIDTH)}
    return {name: value for name, value in inputs.items() if name != "encoder_hidden_states"}


SD3_CONTROL_SINGLE = TinyModel(
    name="SD3ControlNetModel",
    build=builder(
        "SD3ControlNetModel",
        seed=510,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        joint_attention_dim=None,
        caption_projection_dim=_WIDTH,
        pooled_projection_dim=_POOLED,
        pos_embed_type=None,
        use_pos_embed=False,
        **_HEADS,
    ),
    inputs=_sd3_single_inputs,
    block_lists=("transformer_blocks",),
    label="single",
)

_hunyuan_dit_inputs = _controlled(HUNYUAN_DIT.inputs, *_LATENTS)
HUNYUAN_DIT_CONTROL = TinyModel(
    name="HunyuanDiT2DControlNetModel",
    build=builder(
        "HunyuanDiT2DControlNetModel",
        seed=505,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=_WIDTH,
        # It has the first half of the blocks of the transformer, without the one in the middle.
        transformer_num_layers=12,
        cross_attention_dim=_TEXT_DIM,
        cross_attention_dim_t5=16,
        pooled_projection_dim=_POOLED,
        text_len=5,
        text_len_t5=6,
        **_HEADS,
    ),
    inputs=_hunyuan_dit_inputs,
    block_lists=("blocks",),
    variants={"scale": _scaled(_hunyuan_dit_inputs)},
)

_SMALL_LATENTS = (4, 4, 4)
_sana_inputs = _controlled(SANA.inputs, *_SMALL_LATENTS)
SANA_CONTROL = TinyModel(
    name="SanaControlNetModel",
    build=builder(
        "SanaControlNetModel",
        seed=506,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=_WIDTH,
        caption_channels=_TEXT_DIM,
        sample_size=4,
        **_HEADS,
    ),
    inputs=_sana_inputs,
    block_lists=("transformer_blocks",),
    variants={
        "scale": _scaled(_sana_inputs),
        "padded_text": _controlled(SANA.variants["padded_text"], *_SMALL_LATENTS),
    },
)

_FRAMES = 2


def _cosmos_inputs(seed: int) -> Inputs:
    draw = Draw(seed)
    return {
        "controls_latents": draw(BATCH, 4, _FRAMES, 8, 8),
        "latents": draw(BATCH, 4, _FRAMES, 8, 8),
        "timestep": torch.full((BATCH,), draw.time),
        "encoder_hidden_states": draw(BATCH, 5, _TEXT_DIM),
        "condition_mask": torch.zeros(BATCH, 1, _FRAMES, 8, 8),
        "padding_mask": torch.zeros(1, 1, 8, 8),
        "fps": 16,
    }


def _resize(mask: Tensor, size: list[int], interpolation: str) -> Tensor:
    return torch.nn.functional.interpolate(mask, size, mode=interpolation)


_plain_cosmos_control = builder(
    "CosmosControlNetModel",
    seed=507,
    n_controlnet_blocks=5,
    in_channels=7,
    latent_channels=6,
    model_channels=36,
    num_attention_heads=2,
    attention_head_dim=18,
    mlp_ratio=2.0,
    text_embed_dim=_TEXT_DIM,
    adaln_lora_dim=8,
    max_size=(4, 16, 16),
)


def _cosmos_control() -> nn.Module:
    model = _plain_cosmos_control()
    from diffusers.models.controlnets import controlnet_cosmos

    if not hasattr(controlnet_cosmos, "transforms"):
        # The mask is resized with torchvision, which is not needed for anything else.
        controlnet_cosmos.transforms = SimpleNamespace(
            functional=SimpleNamespace(resize=_resize), InterpolationMode=SimpleNamespace(NEAREST="nearest")
        )
    return model


COSMOS_CONTROL = TinyModel(
    name="CosmosControlNetModel",
    build=_cosmos_control,
    inputs=_cosmos_inputs,
    block_lists=("control_blocks",),
    variants={"scales": _scaled(_cosmos_inputs, [0.5, 0.25, 1.0, 0.75, 0.1])},
)


def _share_with_z_image(model: Any) -> None:
    """Take over the embeddings and refiners of the transformer, as the pipeline does."""
    diffusers.ZImageControlNetModel.from_transformer(model, Z_IMAGE.build())


def _z_image_builder(seed: int, refiner: str | None) -> Callable[[], Any]:
    build = builder(
        "ZImageControlNetModel",
        seed=seed,
        control_layers_places=[0, 1, 2, 4],
        control_refiner_layers_places=[0, 1],
        add_control_noise_refiner=refiner,
        control_in_dim=4,
        dim=_WIDTH,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
    )

    def build_and_share() -> Any:
        model = build()
        _share_with_z_image(model)
        return model

    return build_and_share


_z_image_inputs = with_extra(
    Z_IMAGE.inputs, lambda draw: {"control_context": [draw(4, 1, 8, 8) for _ in range(BATCH)]}
)
Z_IMAGE_CONTROL = TinyModel(
    name="ZImageControlNetModel",
    build=_z_image_builder(508, None),
    inputs=_z_image_inputs,
    block_lists=("control_layers",),
    variants={"scale": _scaled(_z_image_inputs)},
    prepare=_share_with_z_image,
)
Z_IMAGE_CONTROL_REFINER = TinyModel(
    name="ZImageControlNetModel",
    build=_z_image_builder(509, "control_noise_refiner"),
    inputs=_z_image_inputs,
    block_lists=("control_layers",),
    prepare=_share_with_z_image,
    label="refiner",
)

MODELS: tuple[TinyModel, ...] = (
    FLUX_CONTROL,
    FLUX_CONTROL_UNION,
    QWEN_IMAGE_CONTROL,
    SD3_CONTROL,
    SD3_CONTROL_SINGLE,
    HUNYUAN_DIT_CONTROL,
    SANA_CONTROL,
    COSMOS_CONTROL,
    Z_IMAGE_CONTROL,
    Z_IMAGE_CONTROL_REFINER,
)
