"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cache_dit.caching.config import CacheConfig, CalibratorConfig


@dataclass(frozen=True)
class Preset:
    """When to skip and where, and what to put in place.

    Attributes:
        cache_config: When, and where.
        calibrator_config: What; the default repeats the last computed value.
        model: Class names of the transformers that it was made for, in order and with commas between them;
            others are refused. "" (default): any.
    """

    cache_config: CacheConfig
    calibrator_config: CalibratorConfig = field(default_factory=CalibratorConfig)
    model: str = ""

    def with_options(self, **changed: Any) -> Preset:
        """The same with other options of the cache configuration.

        Raises:
            ConfigError: A value that is not allowed.
            ConfigTypeError: An option is unknown or has a value of the wrong type.

        Examples:
            >>> presets.fora(3).with_options(enable_separate_cfg=True)
        """
        cache = self.cache_config
        return Preset(cache.updated(cache.reset(**changed)), self.calibrator_config, self.model)
