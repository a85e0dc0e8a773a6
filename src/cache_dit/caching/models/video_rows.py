"""Rows of video models.

E is short for encoder hidden states and H for hidden states, as in `ForwardPattern`.
"""

from __future__ import annotations

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one

ROWS: tuple[Row, ...] = (
    Row(
        name="CogVideoXTransformer3DModel",
        lists=(returns("transformer_blocks", H, E),),
        pipelines=("CogVideoX",),
        blocks=("CogVideoXBlock",),
    ),
    Row(
        name="HunyuanVideoTransformer3DModel",
        lists=(returns("transformer_blocks", H, E), returns("single_transformer_blocks", H, E)),
        pipelines=("HunyuanVideo", "HunyuanSkyreels"),
        blocks=(
            "HunyuanVideoTransformerBlock",
            "HunyuanVideoSingleTransformerBlock",
            "HunyuanVideoTokenReplaceTransformerBlock",
            "HunyuanVideoTokenReplaceSingleTransformerBlock",
        ),
        joined=True,
    ),
    Row(
        name="LTXVideoTransformer3DModel",
        lists=(returns_one("transformer_blocks"),),
        pipelines=("LTX",),
        blocks=("LTXVideoTransformerBlock",),
    ),
    Row(
        name="WanTransformer3DModel",
        lists=(returns_one("blocks"),),
        pipelines=("Wan", "LucyEdit"),
        blocks=("WanTransformerBlock",),
    ),
)
