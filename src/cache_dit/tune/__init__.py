"""Calibration: what is found out about a model once, from a few runs, and then used in every run."""

from cache_dit.tune.calibration import Observations, calibrate, observe
from cache_dit.tune.estimate import LinearEstimate
from cache_dit.tune.searches import DPCache, LeMiCa, Search

__all__ = ["DPCache", "LeMiCa", "LinearEstimate", "Observations", "Search", "calibrate", "observe"]
