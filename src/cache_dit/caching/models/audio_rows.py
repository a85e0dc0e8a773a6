"""Rows of audio models."""

from __future__ import annotations

from cache_dit.caching.models.row import Row, returns_one, row

ROWS: tuple[Row, ...] = (
    row("AceStepTransformer1DModel", returns_one("layers")),
    row("LongCatAudioDiTTransformer", returns_one("blocks")),
    row("MiniMaxMusic3Transformer1DModel", returns_one("transformer_blocks")),
    row("StableAudio3DiTModel", returns_one("transformer_blocks"), pipelines="StableAudio3"),
    row("StableAudioDiTModel", returns_one("transformer_blocks"), pipelines="StableAudioPipeline"),
)
