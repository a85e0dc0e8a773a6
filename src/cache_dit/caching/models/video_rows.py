"""Rows of video models.

E is short for encoder hidden states and H for hidden states, as in `ForwardPattern`.
"""

from __future__ import annotations

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one, row

ROWS: tuple[Row, ...] = (
    row("AllegroTransformer3DModel", returns_one("transformer_blocks")),
    row(
        "AnyFlowFARTransformer3DModel",
        returns_one("blocks"),
        bypass=lambda given: bool((given.get("kv_cache_flag") or {}).get("is_cache_step")),
    ),
    row("AnyFlowTransformer3DModel", returns_one("blocks"), pipelines="AnyFlowPipeline"),
    row("ChronoEditTransformer3DModel", returns_one("blocks")),
    row("CogVideoXTransformer3DModel", returns("transformer_blocks", H, E)),
    row("ConsisIDTransformer3DModel", returns("transformer_blocks", H, E), muted="perceiver_cross_attention"),
    row(
        "Cosmos3OmniTransformer",
        returns("layers", "und_seq", "gen_seq", main="gen_seq"),
        timestep="vision_timesteps",
    ),
    row(
        "CosmosTransformer3DModel",
        returns_one("transformer_blocks"),
        pipelines="CosmosTextToWorld CosmosVideoToWorld Cosmos2",
        controls="block_controlnet_hidden_states",
    ),
    row("EasyAnimateTransformer3DModel", returns("transformer_blocks", H, E)),
    row("HeliosTransformer3DModel", returns_one("blocks")),
    row("HunyuanVideo15Transformer3DModel", returns("transformer_blocks", H, E)),
    row(
        "HunyuanVideoFramepackTransformer3DModel",
        returns("transformer_blocks", H, E),
        returns("single_transformer_blocks", H, E),
        joined=True,
    ),
    row(
        "HunyuanVideoTransformer3DModel",
        returns("transformer_blocks", H, E),
        returns("single_transformer_blocks", H, E),
        pipelines="HunyuanVideo HunyuanSkyreels",
        joined=True,
    ),
    row("Kandinsky5Transformer3DModel", returns_one("visual_transformer_blocks", "visual_embed")),
    row("Kandinsky6SRTransformer3DModel", returns_one("visual_transformer_blocks")),
    row(
        "Kandinsky6Transformer3DModel",
        returns("visual_transformer_blocks", "vis", "aud", main="vis"),
        pipelines="Kandinsky6TI2VA",
    ),
    row(
        "LTX2VideoTransformer3DModel",
        returns("transformer_blocks", H, "audio_hidden_states"),
        pipelines="LTX2 Echo",
    ),
    row("LTXVideoTransformer3DModel", returns_one("transformer_blocks"), pipelines="LTX"),
    row("LatteTransformer3DModel", returns_one("transformer_blocks", along="temporal_transformer_blocks")),
    row("MiniMaxH3Transformer3DModel", returns_one("transformer_blocks")),
    row("MochiTransformer3DModel", returns("transformer_blocks", H, E)),
    # The decoder's second stream is the video that the encoder put out.
    row(
        "MotifVideoTransformer3DModel",
        returns("transformer_blocks", H, E),
        returns("single_transformer_blocks", H, E, stop="-num_decoder_layers"),
        returns("single_transformer_blocks", H, E, start="-num_decoder_layers"),
    ),
    row(
        "SanaVideoTransformer3DModel",
        returns_one("transformer_blocks"),
        pipelines="SanaVideo SanaImageToVideo",
        controls="controlnet_block_samples",
    ),
    row(
        "SanaWMLTX2RefinerTransformer3DModel",
        returns_one("transformer_blocks"),
        bypass=lambda call: "capture" in (call.get("kv_cache_mode") or ""),
    ),
    row("SanaWMTransformer3DModel", returns_one("blocks", "x"), pipelines="SanaWMPipeline"),
    row("SkyReelsV2Transformer3DModel", returns_one("blocks")),
    row("TransformerTemporalModel", returns_one("transformer_blocks")),
    row(
        "WanAnimate2Transformer3DModel",
        returns_one("blocks"),
        bypass=lambda call: call.get("kv_cache_mode") == "extract",
    ),
    row(
        "WanAnimateTransformer3DModel",
        returns_one("blocks"),
        pipelines="WanAnimatePipeline",
        muted="face_adapter",
    ),
    row("WanTransformer3DModel", returns_one("blocks"), pipelines="Wan LucyEdit"),
    row(
        "WanVACETransformer3DModel",
        returns("vace_blocks", None, "control_hidden_states", main="control_hidden_states"),
        returns_one("blocks"),
        pipelines="WanVACE Wan22Vace",
    ),
)
