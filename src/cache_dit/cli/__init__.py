"""The command `cache-dit`."""

from cache_dit.cli.app import app, main

__all__ = ["app", "main"]
