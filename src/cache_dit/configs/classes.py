"""What a configuration file may hold: its sections, the classes of each, and the short names of those."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cache_dit.caching import catalogue
from cache_dit.caching.config import CacheConfig, CalibratorConfig, DBCacheConfig
from cache_dit.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A section that is one of several option classes.

    Attributes:
        key: The key of the section that names the class.
        kinds: The classes by their short names.
        default: Meant where the key is absent and this class has all options that are named.
    """

    key: str
    kinds: Mapping[str, type]
    default: type

    def named(self, name: Any) -> type:
        """The class with this name: short or whole, in any case.

        Raises:
            ConfigError: There is none.
        """
        known = {
            alias.lower(): kind for kind in self.kinds.values() for alias in (short(kind), kind.__name__)
        }
        found = known.get(str(name).lower())
        if found is None:
            shorts = {short.lower(): short for short in self.kinds}
            hint = shorts.get(nearest(str(name).lower(), shorts) or "")
            meant = f" Did you mean {hint!r}?" if hint else ""
            raise ConfigError(f"{self.key} is {name!r}; allowed are {', '.join(self.kinds)}.{meant}")
        return found

    def fitting(self, options: Mapping[str, Any]) -> type:
        """The class that is meant where none is named: the default, or the only one with all the options.

        Raises:
            ConfigError: Several classes have them all.
        """
        owners = [kind for kind in self.kinds.values() if options.keys() <= set(names_of(kind))]
        if self.default in owners or not owners:
            return self.default
        if len(owners) > 1:
            known = names_of(self.default)
            own = next(name for name in options if name not in known)
            shorts = list(map(short, owners))
            raise ConfigError(
                f"{own} is an option of {', '.join(shorts)}; say which is meant, as {self.key}: {shorts[0]}."
            )
        return owners[0]


def short(kind: type) -> str:
    """A class name without what all of them end with: `DBCacheConfig` is `DBCache`."""
    name = kind.__name__.removesuffix("Config")
    return name.removesuffix("Calibrator") or name


def names_of(kind: type) -> list[str]:
    """The options of a class."""
    return [field.name for field in dataclasses.fields(kind)]


def _catalogued(base: type) -> dict[str, type]:
    found = [kind for kind in vars(catalogue).values() if isinstance(kind, type) and issubclass(kind, base)]
    return {short(kind): kind for kind in found}


CACHES = Choice("cache_type", _catalogued(CacheConfig), DBCacheConfig)
CALIBRATORS = Choice("calibrator_type", _catalogued(CalibratorConfig), CalibratorConfig)
