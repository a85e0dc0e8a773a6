"""Tiny transformers."""

from __future__ import annotations

from .base import TinyModel

MODELS: tuple[TinyModel, ...] = ()
