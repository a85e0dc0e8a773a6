"""Rows of image models.

E is short for encoder hidden states and H for hidden states, as in `ForwardPattern`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one, row


def _glm_fills_cache(given: Mapping[str, Any]) -> bool:
    caches = given.get("kv_caches")
    return caches is not None and caches[0].mode == "write"


_CONTROLS = "controlnet_block_samples controlnet_single_block_samples"
_DOUBLE = returns("transformer_blocks", E, H)
_SINGLE = returns("single_transformer_blocks", E, H)
_SINGLE_ONE = returns_one("single_transformer_blocks")

ROWS: tuple[Row, ...] = (
    row("AuraFlowTransformer2DModel", returns("joint_transformer_blocks", E, H), _SINGLE_ONE),
    row("BriaFibo2Transformer2DModel", returns_one("layers", stream="x")),
    row("BriaFiboTransformer2DModel", _DOUBLE, _SINGLE_ONE, pipelines="BriaFiboPipeline BriaFiboEdit"),
    row(
        "BriaTransformer2DModel", _DOUBLE, _SINGLE, pipelines="BriaPipeline", joined=True, controls=_CONTROLS
    ),
    row("ChromaTransformer2DModel", _DOUBLE, _SINGLE_ONE, controls=_CONTROLS),
    row("CogView3PlusTransformer2DModel", returns("transformer_blocks", H, E)),
    row("CogView4Transformer2DModel", returns("transformer_blocks", H, E)),
    row("DiTTransformer2DModel", returns_one("transformer_blocks")),
    row("DreamLiteTransformer2DModel", returns_one("transformer_blocks"), pipelines=""),
    row("ErnieImageTransformer2DModel", returns_one("layers", stream="x")),
    # No bypass: the call that fills the KV cache is the first step of its run, and those are computed.
    row("Flux2Transformer2DModel", _DOUBLE, _SINGLE_ONE),
    # The text and the reference images have blocks of their own, but those read no noise: they would
    # say at every step that nothing has changed.
    row("Flux3Transformer2DModel", returns_one("mode_blocks.image"), _SINGLE),
    row(
        "FluxTransformer2DModel",
        _DOUBLE,
        _SINGLE,
        pipelines="Flux VisualCloze",
        joined=True,
        controls=_CONTROLS,
    ),
    row("GlmImageTransformer2DModel", returns("transformer_blocks", H, E), bypass=_glm_fills_cache),
    row(
        "HiDreamImageTransformer2DModel",
        returns("double_stream_blocks", H, E),
        returns_one("single_stream_blocks"),
        timestep="timesteps",
    ),
    row(
        "HunyuanDiT2DModel",
        returns_one("blocks"),
        pipelines="HunyuanDiT",
        last_within_first=True,
        controls="controlnet_block_samples",
    ),
    row(
        "HunyuanImageTransformer2DModel",
        returns("transformer_blocks", H, E),
        returns("single_transformer_blocks", H, E),
        joined=True,
    ),
    row("Ideogram4Transformer2DModel", returns_one("layers")),
    row("JoyImageEditPlusTransformer3DModel", returns("double_blocks", H, E)),
    row("JoyImageEditTransformer3DModel", returns("double_blocks", H, E), pipelines="JoyImageEditPipeline"),
    row("Krea2Transformer2DModel", returns_one("transformer_blocks")),
    row("LongCatImageTransformer2DModel", _DOUBLE, _SINGLE, joined=True),
    row("Lumina2Transformer2DModel", returns_one("layers")),
    row("LuminaNextDiT2DModel", returns_one("layers"), pipelines="LuminaPipeline"),
    row("NucleusMoEImageTransformer2DModel", returns_one("transformer_blocks")),
    row("OmniGenTransformer2DModel", returns_one("layers")),
    row("OvisImageTransformer2DModel", _DOUBLE, _SINGLE, joined=True),
    row("PRXTransformer2DModel", returns_one("blocks")),
    row("PixArtTransformer2DModel", returns_one("transformer_blocks")),
    row(
        "PriorTransformer",
        returns_one("transformer_blocks"),
        pipelines="KandinskyCombined KandinskyImg2ImgCombined KandinskyInpaintCombined KandinskyPrior "
        "KandinskyV22Combined KandinskyV22Img2ImgCombined KandinskyV22InpaintCombined KandinskyV22Prior "
        "ShapE StableUnCLIPPipeline UnCLIPPipeline",
    ),
    row("QwenImage21Transformer2DModel", returns_one("transformer_blocks")),
    row("QwenImageTransformer2DModel", _DOUBLE, controls="controlnet_block_samples"),
    row(
        "SD3Transformer2DModel",
        _DOUBLE,
        pipelines="StableDiffusion3",
        controls="block_controlnet_hidden_states",
    ),
    row(
        "SanaTransformer2DModel",
        returns_one("transformer_blocks"),
        pipelines="SanaControlNet SanaPAG SanaPipeline SanaSprint",
        controls="controlnet_block_samples",
    ),
    row(
        "T5FilmDecoder",
        returns("decoders", H),
        pipelines="SpectrogramDiffusion",
        timestep="decoder_noise_time",
    ),
    row("Transformer2DModel", returns_one("transformer_blocks"), pipelines="VQDiffusion"),
    row("UVit2DModel", returns_one("transformer_layers"), pipelines="Amused", timestep=None),
    row(
        "ZImageTransformer2DModel",
        returns_one("layers", "x"),
        timestep="t",
        controls="controlnet_block_samples",
    ),
)
