"""Rows of image models: one stream of text and image, editing, and transformers from before DiT.

E is short for encoder hidden states and H for hidden states, as in `ForwardPattern`.
"""

from __future__ import annotations

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one

ROWS: tuple[Row, ...] = (
    Row(
        name="DreamLiteTransformer2DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("BasicTransformerBlockDreamLite",),
    ),
    Row(
        name="JoyImageEditPlusTransformer3DModel",
        lists=(returns("double_blocks", H, E),),
        blocks=("JoyImageEditPlusTransformerBlock",),
        pipelines=("JoyImageEditPlus",),
    ),
    Row(
        name="JoyImageEditTransformer3DModel",
        lists=(returns("double_blocks", H, E),),
        blocks=("JoyImageTransformerBlock",),
        pipelines=("JoyImageEditPipeline",),
    ),
    Row(
        name="Krea2Transformer2DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("Krea2TransformerBlock",),
        pipelines=("Krea2",),
    ),
    Row(
        name="LongCatImageTransformer2DModel",
        lists=(returns("transformer_blocks", E, H), returns("single_transformer_blocks", E, H)),
        blocks=("LongCatImageTransformerBlock", "LongCatImageSingleTransformerBlock"),
        pipelines=("LongCatImage",),
        joined=True,
    ),
    Row(
        name="Lumina2Transformer2DModel",
        lists=(returns_one("layers"),),
        blocks=("Lumina2TransformerBlock",),
        pipelines=("Lumina2",),
    ),
    Row(
        name="LuminaNextDiT2DModel",
        lists=(returns_one("layers"),),
        blocks=("LuminaNextDiTBlock",),
        pipelines=("LuminaPipeline",),
    ),
    Row(
        name="NucleusMoEImageTransformer2DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("NucleusMoEImageTransformerBlock",),
        pipelines=("NucleusMoEImage",),
    ),
    Row(
        name="OmniGenTransformer2DModel",
        lists=(returns_one("layers"),),
        blocks=("OmniGenBlock",),
        pipelines=("OmniGen",),
    ),
    Row(
        name="OvisImageTransformer2DModel",
        lists=(returns("transformer_blocks", E, H), returns("single_transformer_blocks", E, H)),
        blocks=("OvisImageTransformerBlock", "OvisImageSingleTransformerBlock"),
        pipelines=("OvisImage",),
        joined=True,
    ),
    Row(
        name="PRXTransformer2DModel",
        lists=(returns_one("blocks"),),
        blocks=("PRXBlock",),
        pipelines=("PRX",),
    ),
    Row(
        name="PriorTransformer",
        lists=(returns_one("transformer_blocks"),),
        blocks=("BasicTransformerBlock",),
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
    Row(
        name="QwenImage21Transformer2DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("QwenImage21TransformerBlock",),
        pipelines=("QwenImage21",),
    ),
    Row(
        name="SanaTransformer2DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("SanaTransformerBlock",),
        pipelines=("SanaControlNet", "SanaPAG", "SanaPipeline", "SanaSprint"),
        controls=("controlnet_block_samples",),
    ),
    Row(
        name="T5FilmDecoder",
        lists=(returns("decoders", H),),
        blocks=("DecoderLayer",),
        pipelines=("SpectrogramDiffusion",),
        timestep="decoder_noise_time",
    ),
    Row(
        name="Transformer2DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("BasicTransformerBlock",),
        pipelines=("VQDiffusion",),
    ),
    Row(
        name="UVit2DModel",
        lists=(returns_one("transformer_layers"),),
        blocks=("BasicTransformerBlock",),
        pipelines=("Amused",),
        timestep=None,
    ),
    Row(
        name="ZImageTransformer2DModel",
        lists=(returns_one("layers", "x"),),
        blocks=("ZImageTransformerBlock",),
        pipelines=("ZImage",),
        timestep="t",
        controls=("controlnet_block_samples",),
    ),
)
