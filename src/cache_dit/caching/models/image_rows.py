"""Rows of image models.

E is short for encoder hidden states and H for hidden states, as in `ForwardPattern`.
"""

from __future__ import annotations

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one

_CONTROLS = ("controlnet_block_samples", "controlnet_single_block_samples")

ROWS: tuple[Row, ...] = (
    Row(
        name="ChromaTransformer2DModel",
        lists=(returns("transformer_blocks", E, H), returns_one("single_transformer_blocks")),
        blocks=("ChromaTransformerBlock", "ChromaSingleTransformerBlock"),
        pipelines=("Chroma",),
        controls=_CONTROLS,
    ),
    Row(
        name="DiTTransformer2DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("BasicTransformerBlock",),
        pipelines=("DiT",),
    ),
    Row(
        name="FluxTransformer2DModel",
        lists=(returns("transformer_blocks", E, H), returns("single_transformer_blocks", E, H)),
        blocks=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
        pipelines=("Flux", "VisualCloze"),
        joined=True,
        controls=_CONTROLS,
    ),
    Row(
        name="PixArtTransformer2DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("BasicTransformerBlock",),
        pipelines=("PixArt",),
    ),
    Row(
        name="QwenImageTransformer2DModel",
        lists=(returns("transformer_blocks", E, H),),
        blocks=("QwenImageTransformerBlock",),
        pipelines=("QwenImage",),
        controls=("controlnet_block_samples",),
    ),
    Row(
        name="SD3Transformer2DModel",
        lists=(returns("transformer_blocks", E, H),),
        blocks=("JointTransformerBlock",),
        pipelines=("StableDiffusion3",),
        controls=("block_controlnet_hidden_states",),
    ),
)
