"""Rows of video models.

E is short for encoder hidden states and H for hidden states, as in `ForwardPattern`.
"""

from __future__ import annotations

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one

ROWS: tuple[Row, ...] = (
    Row(
        name="AllegroTransformer3DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("AllegroTransformerBlock",),
        pipelines=("Allegro",),
    ),
    Row(
        name="AnyFlowFARTransformer3DModel",
        lists=(returns_one("blocks"),),
        blocks=("AnyFlowTransformerBlock",),
        pipelines=("AnyFlowFAR",),
        bypass=lambda given: bool((given.get("kv_cache_flag") or {}).get("is_cache_step")),
    ),
    Row(
        name="AnyFlowTransformer3DModel",
        lists=(returns_one("blocks"),),
        blocks=("AnyFlowTransformerBlock",),
        pipelines=("AnyFlowPipeline",),
    ),
    Row(
        name="ChronoEditTransformer3DModel",
        lists=(returns_one("blocks"),),
        blocks=("WanTransformerBlock",),
        pipelines=("ChronoEdit",),
    ),
    Row(
        name="ConsisIDTransformer3DModel",
        lists=(returns("transformer_blocks", H, E),),
        blocks=("ConsisIDBlock",),
        pipelines=("ConsisID",),
        muted=("perceiver_cross_attention",),
    ),
    Row(
        name="Cosmos3OmniTransformer",
        lists=(returns("layers", "und_seq", "gen_seq", main="gen_seq"),),
        blocks=("Cosmos3VLTextMoTDecoderLayer",),
        pipelines=("Cosmos3Omni",),
        timestep="vision_timesteps",
    ),
    Row(
        name="CosmosTransformer3DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("CosmosTransformerBlock",),
        pipelines=("CosmosTextToWorld", "CosmosVideoToWorld", "Cosmos2"),
        controls=("block_controlnet_hidden_states",),
    ),
    Row(
        name="EasyAnimateTransformer3DModel",
        lists=(returns("transformer_blocks", H, E),),
        blocks=("EasyAnimateTransformerBlock",),
        pipelines=("EasyAnimate",),
    ),
    Row(
        name="HeliosTransformer3DModel",
        lists=(returns_one("blocks"),),
        blocks=("HeliosTransformerBlock",),
        pipelines=("Helios",),
    ),
    Row(
        name="HunyuanVideo15Transformer3DModel",
        lists=(returns("transformer_blocks", H, E),),
        blocks=("HunyuanVideo15TransformerBlock",),
        pipelines=("HunyuanVideo15",),
    ),
    Row(
        name="HunyuanVideoFramepackTransformer3DModel",
        lists=(returns("transformer_blocks", H, E), returns("single_transformer_blocks", H, E)),
        blocks=("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"),
        pipelines=("HunyuanVideoFramepack",),
        joined=True,
    ),
    Row(
        name="Kandinsky5Transformer3DModel",
        lists=(returns_one("visual_transformer_blocks", "visual_embed"),),
        blocks=("Kandinsky5TransformerDecoderBlock",),
        pipelines=("Kandinsky5",),
    ),
    Row(
        name="Kandinsky6SRTransformer3DModel",
        lists=(returns_one("visual_transformer_blocks"),),
        blocks=("Kandinsky6SRTransformerBlock",),
        pipelines=("Kandinsky6SR",),
    ),
    Row(
        name="Kandinsky6Transformer3DModel",
        lists=(returns("visual_transformer_blocks", "vis", "aud", main="vis"),),
        blocks=("Kandinsky6FusedTransformerDecoderBlock",),
        pipelines=("Kandinsky6TI2VA",),
    ),
    Row(
        name="TransformerTemporalModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("BasicTransformerBlock",),
    ),
)
