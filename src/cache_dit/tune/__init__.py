"""What is found out about a model once, from some runs, and then used in every run.

`tune` takes a target and gives a profile; `calibrate`, `observe` and `magcache_ratios` measure what some
methods need.
"""

from cache_dit.tune.calibration import calibrate
from cache_dit.tune.closed_loop import ClosedLoop
from cache_dit.tune.explorers import Bisection, Explorer
from cache_dit.tune.goal import Goal, Trial
from cache_dit.tune.magnitudes import magcache_ratios
from cache_dit.tune.optuna_search import OptunaSearch
from cache_dit.tune.profile import Profile
from cache_dit.tune.schedules import Observations, observe
from cache_dit.tune.searches import DPCache, LeMiCa, Search
from cache_dit.tune.space import Family, default_space
from cache_dit.tune.target import Figure, Measure, Target
from cache_dit.tune.tuning import Tuned, tune

__all__ = [
    "Bisection",
    "ClosedLoop",
    "DPCache",
    "Explorer",
    "Family",
    "Figure",
    "Goal",
    "LeMiCa",
    "Measure",
    "Observations",
    "OptunaSearch",
    "Profile",
    "Search",
    "Target",
    "Trial",
    "Tuned",
    "calibrate",
    "default_space",
    "magcache_ratios",
    "observe",
    "tune",
]
