"""Rows of video models."""

from __future__ import annotations

from cache_dit.caching.models.row import Row

ROWS: tuple[Row, ...] = ()
