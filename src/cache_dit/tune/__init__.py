"""Calibration: what is found out about a model once, from a few runs, and then used in every run."""

from cache_dit.tune.calibration import calibrate
from cache_dit.tune.closed_loop import ClosedLoop
from cache_dit.tune.magnitudes import magcache_ratios
from cache_dit.tune.schedules import Observations, observe
from cache_dit.tune.searches import DPCache, LeMiCa, Search

__all__ = [
    "ClosedLoop",
    "DPCache",
    "LeMiCa",
    "Observations",
    "Search",
    "calibrate",
    "magcache_ratios",
    "observe",
]
