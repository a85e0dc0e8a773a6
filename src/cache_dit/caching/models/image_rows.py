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


_CONTROLS = ("controlnet_block_samples", "controlnet_single_block_samples")

ROWS: tuple[Row, ...] = (
    row(
        "AuraFlowTransformer2DModel",
        returns("joint_transformer_blocks", E, H),
        returns_one("single_transformer_blocks"),
        pipelines=("AuraFlow",),
    ),
    row("BriaFibo2Transformer2DModel", returns_one("layers", stream="x"), pipelines=("BriaFibo2",)),
    row(
        "BriaFiboTransformer2DModel",
        returns("transformer_blocks", E, H),
        returns_one("single_transformer_blocks"),
        pipelines=("BriaFiboPipeline", "BriaFiboEdit"),
    ),
    row(
        "BriaTransformer2DModel",
        returns("transformer_blocks", E, H),
        returns("single_transformer_blocks", E, H),
        pipelines=("BriaPipeline",),
        joined=True,
        controls=("controlnet_block_samples", "controlnet_single_block_samples"),
    ),
    row(
        "ChromaTransformer2DModel",
        returns("transformer_blocks", E, H),
        returns_one("single_transformer_blocks"),
        pipelines=("Chroma",),
        controls=_CONTROLS,
    ),
    row("CogView3PlusTransformer2DModel", returns("transformer_blocks", H, E), pipelines=("CogView3Plus",)),
    row("CogView4Transformer2DModel", returns("transformer_blocks", H, E), pipelines=("CogView4",)),
    row("DiTTransformer2DModel", returns_one("transformer_blocks"), pipelines=("DiT",)),
    row("DreamLiteTransformer2DModel", returns_one("transformer_blocks")),
    row("ErnieImageTransformer2DModel", returns_one("layers", stream="x"), pipelines=("ErnieImage",)),
    # No bypass: the call that fills the KV cache is the first step of its run, and those are computed.
    row(
        "Flux2Transformer2DModel",
        returns("transformer_blocks", E, H),
        returns_one("single_transformer_blocks"),
        pipelines=("Flux2",),
    ),
    # The text and the reference images have blocks of their own, but those read no noise: they would
    # say at every step that nothing has changed.
    row(
        "Flux3Transformer2DModel",
        returns_one("mode_blocks.image"),
        returns("single_transformer_blocks", E, H),
        pipelines=("Flux3",),
    ),
    row(
        "FluxTransformer2DModel",
        returns("transformer_blocks", E, H),
        returns("single_transformer_blocks", E, H),
        pipelines=("Flux", "VisualCloze"),
        joined=True,
        controls=_CONTROLS,
    ),
    row(
        "GlmImageTransformer2DModel",
        returns("transformer_blocks", H, E),
        pipelines=("GlmImage",),
        bypass=_glm_fills_cache,
    ),
    row(
        "HiDreamImageTransformer2DModel",
        returns("double_stream_blocks", H, E),
        returns_one("single_stream_blocks"),
        pipelines=("HiDreamImage",),
        timestep="timesteps",
    ),
    row(
        "HunyuanDiT2DModel",
        returns_one("blocks"),
        pipelines=("HunyuanDiT",),
        last_within_first=True,
        controls=("controlnet_block_samples",),
    ),
    row(
        "HunyuanImageTransformer2DModel",
        returns("transformer_blocks", H, E),
        returns("single_transformer_blocks", H, E),
        pipelines=("HunyuanImage",),
        joined=True,
    ),
    row("Ideogram4Transformer2DModel", returns_one("layers"), pipelines=("Ideogram4",)),
    row(
        "JoyImageEditPlusTransformer3DModel", returns("double_blocks", H, E), pipelines=("JoyImageEditPlus",)
    ),
    row(
        "JoyImageEditTransformer3DModel", returns("double_blocks", H, E), pipelines=("JoyImageEditPipeline",)
    ),
    row("Krea2Transformer2DModel", returns_one("transformer_blocks"), pipelines=("Krea2",)),
    row(
        "LongCatImageTransformer2DModel",
        returns("transformer_blocks", E, H),
        returns("single_transformer_blocks", E, H),
        pipelines=("LongCatImage",),
        joined=True,
    ),
    row("Lumina2Transformer2DModel", returns_one("layers"), pipelines=("Lumina2",)),
    row("LuminaNextDiT2DModel", returns_one("layers"), pipelines=("LuminaPipeline",)),
    row(
        "NucleusMoEImageTransformer2DModel", returns_one("transformer_blocks"), pipelines=("NucleusMoEImage",)
    ),
    row("OmniGenTransformer2DModel", returns_one("layers"), pipelines=("OmniGen",)),
    row(
        "OvisImageTransformer2DModel",
        returns("transformer_blocks", E, H),
        returns("single_transformer_blocks", E, H),
        pipelines=("OvisImage",),
        joined=True,
    ),
    row("PRXTransformer2DModel", returns_one("blocks"), pipelines=("PRX",)),
    row("PixArtTransformer2DModel", returns_one("transformer_blocks"), pipelines=("PixArt",)),
    row(
        "PriorTransformer",
        returns_one("transformer_blocks"),
        pipelines=(
            "KandinskyCombined",
            "KandinskyImg2ImgCombined",
            "KandinskyInpaintCombined",
            "KandinskyPrior",
            "KandinskyV22Combined",
            "KandinskyV22Img2ImgCombined",
            "KandinskyV22InpaintCombined",
            "KandinskyV22Prior",
            "ShapE",
            "StableUnCLIPPipeline",
            "UnCLIPPipeline",
        ),
    ),
    row("QwenImage21Transformer2DModel", returns_one("transformer_blocks"), pipelines=("QwenImage21",)),
    row(
        "QwenImageTransformer2DModel",
        returns("transformer_blocks", E, H),
        pipelines=("QwenImage",),
        controls=("controlnet_block_samples",),
    ),
    row(
        "SD3Transformer2DModel",
        returns("transformer_blocks", E, H),
        pipelines=("StableDiffusion3",),
        controls=("block_controlnet_hidden_states",),
    ),
    row(
        "SanaTransformer2DModel",
        returns_one("transformer_blocks"),
        pipelines=("SanaControlNet", "SanaPAG", "SanaPipeline", "SanaSprint"),
        controls=("controlnet_block_samples",),
    ),
    row(
        "T5FilmDecoder",
        returns("decoders", H),
        pipelines=("SpectrogramDiffusion",),
        timestep="decoder_noise_time",
    ),
    row("Transformer2DModel", returns_one("transformer_blocks"), pipelines=("VQDiffusion",)),
    row("UVit2DModel", returns_one("transformer_layers"), pipelines=("Amused",), timestep=None),
    row(
        "ZImageTransformer2DModel",
        returns_one("layers", "x"),
        pipelines=("ZImage",),
        timestep="t",
        controls=("controlnet_block_samples",),
    ),
)
