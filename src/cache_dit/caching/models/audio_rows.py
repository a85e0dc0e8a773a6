"""Rows of audio models."""

from __future__ import annotations

from cache_dit.caching.models.row import Row, returns_one

ROWS: tuple[Row, ...] = (
    Row(
        name="AceStepTransformer1DModel",
        lists=(returns_one("layers"),),
        blocks=("AceStepTransformerBlock",),
        pipelines=("AceStep",),
    ),
    Row(
        name="LongCatAudioDiTTransformer",
        lists=(returns_one("blocks"),),
        blocks=("AudioDiTBlock",),
        pipelines=("LongCatAudioDiT",),
    ),
    Row(
        name="MiniMaxMusic3Transformer1DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("MiniMaxMusic3TransformerBlock",),
        pipelines=("MiniMaxMusic3",),
    ),
    Row(
        name="StableAudio3DiTModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("StableAudio3DiTBlock",),
        pipelines=("StableAudio3",),
    ),
    Row(
        name="StableAudioDiTModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("StableAudioDiTBlock",),
        pipelines=("StableAudioPipeline",),
    ),
)
