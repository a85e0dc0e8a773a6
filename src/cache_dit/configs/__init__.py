"""Configuration files, YAML and JSON: read, checked with paths in messages, written, and their schema."""

from cache_dit.configs.loading import (
    config_schema,
    load_configs,
    load_sections,
    plain_configs,
    save_configs,
)

__all__ = ["config_schema", "load_configs", "load_sections", "plain_configs", "save_configs"]
