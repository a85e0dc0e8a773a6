"""Calibration: what is found out about a model once, from a few runs, and then used in every run."""

from cache_dit.tune.calibration import calibrate
from cache_dit.tune.searches import DPCache, LeMiCa, Search

__all__ = ["DPCache", "LeMiCa", "Search", "calibrate"]
