"""Published methods by their names, with their published settings.

>>> cache_dit.enable_cache(pipe, cache_dit.presets.taylorseer_lite(5, 1))

What a method does, where it comes from, and what is unsure about its source is told by the option classes
that a preset is made of, as are the defaults of what it leaves alone. Every function returns a `Preset`, and
raises `ConfigError` or `ConfigTypeError` for a value that those options refuse. Speeds are those that the
authors measured, on their hardware. A preset is a starting point: `Preset.with_options` changes what it sets.
"""

import inspect
from collections.abc import Callable

from cache_dit.presets.house import dbcache, dbcache_taylorseer, dbprune, scm, tolerance, trajectory
from cache_dit.presets.preset import Preset
from cache_dit.presets.published import (
    delta_dit,
    dicache,
    dmd,
    dpcache,
    duca,
    easycache,
    fastercache,
    fbcache,
    foca,
    fora,
    freqca,
    hicache,
    lemica,
    magcache,
    pab,
    seacache,
    speca,
    spectrum,
    taylorseer,
    taylorseer_lite,
    teacache,
    toca,
)

__all__ = [
    "NAMED",
    "Preset",
    "trajectory",
    "tolerance",
    "dbcache",
    "dbcache_taylorseer",
    "scm",
    "dbprune",
    "fbcache",
    "fora",
    "toca",
    "duca",
    "taylorseer",
    "taylorseer_lite",
    "foca",
    "hicache",
    "spectrum",
    "dmd",
    "freqca",
    "teacache",
    "seacache",
    "easycache",
    "magcache",
    "dicache",
    "speca",
    "pab",
    "fastercache",
    "delta_dit",
    "lemica",
    "dpcache",
]

NAMED: dict[str, Callable[..., Preset]] = {
    name: function for name in __all__ if inspect.isfunction(function := globals().get(name))
}
"""Every preset by its name."""
