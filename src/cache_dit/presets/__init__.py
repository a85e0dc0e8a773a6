"""Published methods by their names, with their published settings.

>>> cache_dit.enable_cache(pipe, cache_dit.presets.taylorseer_lite(5, 1))

What a method does, where it comes from, and what is unsure about its source is told by the option classes
that a preset is made of, as are the defaults of what it leaves alone. Every function returns a `Preset`, and
raises `ConfigError` or `ConfigTypeError` for a value that those options refuse. Speeds are those that the
authors measured, on their hardware. A preset is a starting point: `Preset.with_options` changes what it sets.
"""

import inspect
from collections.abc import Callable

from cache_dit.presets.house import dbcache as dbcache
from cache_dit.presets.house import dbcache_taylorseer as dbcache_taylorseer
from cache_dit.presets.house import dbprune as dbprune
from cache_dit.presets.house import scm as scm
from cache_dit.presets.house import tolerance as tolerance
from cache_dit.presets.house import trajectory as trajectory
from cache_dit.presets.preset import Preset as Preset
from cache_dit.presets.published import delta_dit as delta_dit
from cache_dit.presets.published import dicache as dicache
from cache_dit.presets.published import dmd as dmd
from cache_dit.presets.published import dpcache as dpcache
from cache_dit.presets.published import duca as duca
from cache_dit.presets.published import easycache as easycache
from cache_dit.presets.published import fastercache as fastercache
from cache_dit.presets.published import fbcache as fbcache
from cache_dit.presets.published import foca as foca
from cache_dit.presets.published import fora as fora
from cache_dit.presets.published import freqca as freqca
from cache_dit.presets.published import hicache as hicache
from cache_dit.presets.published import lemica as lemica
from cache_dit.presets.published import magcache as magcache
from cache_dit.presets.published import pab as pab
from cache_dit.presets.published import seacache as seacache
from cache_dit.presets.published import speca as speca
from cache_dit.presets.published import spectrum as spectrum
from cache_dit.presets.published import taylorseer as taylorseer
from cache_dit.presets.published import taylorseer_lite as taylorseer_lite
from cache_dit.presets.published import teacache as teacache
from cache_dit.presets.published import toca as toca

NAMED: dict[str, Callable[..., Preset]] = {
    name: function for name, function in list(globals().items()) if inspect.isfunction(function)
}
"""Every preset by its name."""

__all__ = ["NAMED", "Preset", *NAMED]
