"""Rows of image models.

E is short for encoder hidden states and H for hidden states, as in `ForwardPattern`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one


def _glm_fills_cache(given: Mapping[str, Any]) -> bool:
    caches = given.get("kv_caches")
    return caches is not None and caches[0].mode == "write"


ROWS: tuple[Row, ...] = (
    Row(
        name="AuraFlowTransformer2DModel",
        lists=(returns("joint_transformer_blocks", E, H), returns_one("single_transformer_blocks")),
        blocks=("AuraFlowJointTransformerBlock", "AuraFlowSingleTransformerBlock"),
        pipelines=("AuraFlow",),
    ),
    Row(
        name="BriaTransformer2DModel",
        lists=(returns("transformer_blocks", E, H), returns("single_transformer_blocks", E, H)),
        blocks=("BriaTransformerBlock", "BriaSingleTransformerBlock"),
        pipelines=("BriaPipeline",),
        joined=True,
        controls=("controlnet_block_samples", "controlnet_single_block_samples"),
    ),
    Row(
        name="BriaFiboTransformer2DModel",
        lists=(returns("transformer_blocks", E, H), returns_one("single_transformer_blocks")),
        blocks=("BriaFiboTransformerBlock", "BriaFiboSingleTransformerBlock"),
        pipelines=("BriaFiboPipeline", "BriaFiboEdit"),
    ),
    Row(
        name="BriaFibo2Transformer2DModel",
        lists=(returns_one("layers", stream="x"),),
        blocks=("BriaFibo2TransformerBlock",),
        pipelines=("BriaFibo2",),
    ),
    Row(
        name="CogView3PlusTransformer2DModel",
        lists=(returns("transformer_blocks", H, E),),
        blocks=("CogView3PlusTransformerBlock",),
        pipelines=("CogView3Plus",),
    ),
    Row(
        name="CogView4Transformer2DModel",
        lists=(returns("transformer_blocks", H, E),),
        blocks=("CogView4TransformerBlock",),
        pipelines=("CogView4",),
    ),
    Row(
        name="ErnieImageTransformer2DModel",
        lists=(returns_one("layers", stream="x"),),
        blocks=("ErnieImageSharedAdaLNBlock",),
        pipelines=("ErnieImage",),
    ),
    Row(
        name="Flux2Transformer2DModel",
        # No bypass: the call that fills the KV cache is the first step of its run, and those are computed.
        lists=(returns("transformer_blocks", E, H), returns_one("single_transformer_blocks")),
        blocks=("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
        pipelines=("Flux2",),
    ),
    Row(
        name="Flux3Transformer2DModel",
        # The text and the reference images have blocks of their own, but those read no noise: they would
        # say at every step that nothing has changed.
        lists=(returns_one("mode_blocks.image"), returns("single_transformer_blocks", E, H)),
        blocks=("Flux3ModeTransformerBlock", "Flux3SingleTransformerBlock"),
        pipelines=("Flux3",),
    ),
    Row(
        name="GlmImageTransformer2DModel",
        lists=(returns("transformer_blocks", H, E),),
        blocks=("GlmImageTransformerBlock",),
        pipelines=("GlmImage",),
        bypass=_glm_fills_cache,
    ),
    Row(
        name="HiDreamImageTransformer2DModel",
        lists=(returns("double_stream_blocks", H, E), returns_one("single_stream_blocks")),
        blocks=("HiDreamBlock",),
        pipelines=("HiDreamImage",),
        timestep="timesteps",
    ),
    Row(
        name="HunyuanDiT2DModel",
        lists=(returns_one("blocks"),),
        blocks=("HunyuanDiTBlock",),
        pipelines=("HunyuanDiT",),
        last_within_first=True,
        controls=("controlnet_block_samples",),
    ),
    Row(
        name="HunyuanImageTransformer2DModel",
        lists=(returns("transformer_blocks", H, E), returns("single_transformer_blocks", H, E)),
        blocks=("HunyuanImageTransformerBlock", "HunyuanImageSingleTransformerBlock"),
        pipelines=("HunyuanImage",),
        joined=True,
    ),
    Row(
        name="Ideogram4Transformer2DModel",
        lists=(returns_one("layers"),),
        blocks=("Ideogram4TransformerBlock",),
        pipelines=("Ideogram4",),
    ),
)
