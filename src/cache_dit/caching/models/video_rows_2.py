"""Rows of video models.

E is short for encoder hidden states and H for hidden states, as in `ForwardPattern`.
"""

from __future__ import annotations

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one

ROWS: tuple[Row, ...] = (
    Row(
        name="LTX2VideoTransformer3DModel",
        lists=(returns("transformer_blocks", H, "audio_hidden_states"),),
        blocks=("LTX2VideoTransformerBlock",),
        pipelines=("LTX2", "Echo"),
    ),
    Row(
        name="LatteTransformer3DModel",
        lists=(returns_one("transformer_blocks", along="temporal_transformer_blocks"),),
        blocks=("BasicTransformerBlock",),
        pipelines=("Latte",),
    ),
    Row(
        name="MiniMaxH3Transformer3DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("MiniMaxH3TransformerBlock",),
        pipelines=("MiniMaxH3",),
    ),
    Row(
        name="MochiTransformer3DModel",
        lists=(returns("transformer_blocks", H, E),),
        blocks=("MochiTransformerBlock",),
        pipelines=("Mochi",),
    ),
    Row(
        name="MotifVideoTransformer3DModel",
        lists=(
            returns("transformer_blocks", H, E),
            returns("single_transformer_blocks", H, E, stop="-num_decoder_layers"),
            # The decoder's second stream is the video that the encoder put out.
            returns("single_transformer_blocks", H, E, start="-num_decoder_layers"),
        ),
        blocks=("MotifVideoTransformerBlock", "MotifVideoSingleTransformerBlock"),
        pipelines=("MotifVideo",),
    ),
    Row(
        name="SanaVideoTransformer3DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("SanaVideoTransformerBlock",),
        pipelines=("SanaVideo", "SanaImageToVideo"),
        controls=("controlnet_block_samples",),
    ),
    Row(
        name="SanaWMLTX2RefinerTransformer3DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("SanaWMLTX2RefinerTransformerBlock",),
        pipelines=("SanaWMLTX2Refiner",),
        bypass=lambda call: "capture" in (call.get("kv_cache_mode") or ""),
    ),
    Row(
        name="SanaWMTransformer3DModel",
        lists=(returns_one("blocks", "x"),),
        blocks=("SanaVideoMSCamCtrlBlock",),
        pipelines=("SanaWMPipeline",),
    ),
    Row(
        name="SkyReelsV2Transformer3DModel",
        lists=(returns_one("blocks"),),
        blocks=("SkyReelsV2TransformerBlock",),
        pipelines=("SkyReelsV2",),
    ),
    Row(
        name="WanAnimate2Transformer3DModel",
        lists=(returns_one("blocks"),),
        blocks=("WanAnimate2TransformerBlock",),
        pipelines=("WanAnimate2",),
        bypass=lambda call: call.get("kv_cache_mode") == "extract",
    ),
    Row(
        name="WanAnimateTransformer3DModel",
        lists=(returns_one("blocks"),),
        blocks=("WanTransformerBlock",),
        pipelines=("WanAnimatePipeline",),
        muted=("face_adapter",),
    ),
    Row(
        name="WanVACETransformer3DModel",
        lists=(
            returns("vace_blocks", None, "control_hidden_states", main="control_hidden_states"),
            returns_one("blocks"),
        ),
        blocks=("WanTransformerBlock", "WanVACETransformerBlock"),
        pipelines=("WanVACE", "Wan22Vace"),
    ),
)
