"""Presets of this project, and of the reference system."""

from __future__ import annotations

from dataclasses import replace

from cache_dit.caching.config import CalibratorConfig, DBCacheConfig, Place
from cache_dit.caching.forecasters.taylorseer import TaylorSeerCalibratorConfig
from cache_dit.caching.forecasters.trajectory import TrajectoryCalibratorConfig
from cache_dit.caching.gates.budget import BudgetConfig
from cache_dit.caching.gates.prune import DBPruneConfig
from cache_dit.caching.gates.scheduled import ScheduleConfig
from cache_dit.caching.gates.tolerance import ToleranceConfig
from cache_dit.caching.maths.masks import steps_mask
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.caching.options import one_of, real
from cache_dit.presets.preset import Preset


def trajectory(compute: float | Schedule = 0.5, measured: Trajectory | None = None) -> Preset:
    """The best linear estimate of the latent from a share of the steps (this project).

    Args:
        compute: Share of the steps to compute: 0.5, 0.4, 0.33 and 0.25 are 2 to 4 times less FLOPs. Or which
            ones, from `cache_dit.tune.observe(..., search=ClosedLoop(...))`.
        measured: What `cache_dit.tune.calibrate` has found of the model; the steps are then chosen for it,
            which takes some seconds. None: what is expected of any model. At another number of steps than it
            was measured with, the choice is stretched.
    """
    estimate = TrajectoryCalibratorConfig(trajectory=measured)
    if isinstance(compute, Schedule):
        return Preset(ScheduleConfig(place=Place.OUTPUT, schedule=compute), estimate)
    if measured is None:
        return Preset(BudgetConfig(compute=compute), estimate)
    real(0.0, 1.0)("compute", compute)
    computed = measured.schedule(max(2, round(compute * measured.steps)))
    schedule = Schedule(total=measured.steps, computed=computed, model=measured.model, method="trajectory")
    return Preset(ScheduleConfig(place=Place.OUTPUT, schedule=schedule), estimate)


def tolerance(tolerance: float = 0.05) -> Preset:
    """The same estimate, from as many steps as a tolerance asks for in this picture (this project).

    Args:
        tolerance: Relative L1 error of the output that a skipped step is expected to have.
    """
    return Preset(ToleranceConfig(tolerance=tolerance), TrajectoryCalibratorConfig())


# First blocks, warm-up, its interval, most skipped steps in a row, threshold.
_SIZES = {"S": (4, 4, 1, 4, 0.12), "M": (1, 4, 1, 6, 0.24), "F": (1, 8, 2, 8, 0.8), "U": (1, 8, 4, 10, 0.8)}


def dbcache(size: str = "S") -> Preset:
    """Dual block cache, with the settings of the reference system's benchmarks on FLUX.1-dev.

    Args:
        size: "S", "M", "F" or "U": 2.7, 3.9 and 5.7 times less FLOPs there, and for "U", which is meant to be
            used with forecasts, 7.4.

    Raises:
        ConfigError: Another size.
    """
    one_of(*_SIZES)("size", size)
    first, warmup, interval, most, threshold = _SIZES[size]
    return Preset(
        DBCacheConfig(
            Fn_compute_blocks=first,
            max_warmup_steps=warmup,
            warmup_interval=interval,
            max_continuous_cached_steps=most,
            residual_diff_threshold=threshold,
        )
    )


def dbcache_taylorseer(size: str = "S", order: int = 1) -> Preset:
    """Dual block cache with forecasts by TaylorSeer.

    Args:
        size: As in `dbcache`; "S" has one first block in place of 4, and a threshold of 0.2.
        order: Order of the forecast.

    Raises:
        ConfigError: Another size.
    """
    preset = replace(dbcache(size), calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=order))
    return preset.with_options(Fn_compute_blocks=1, residual_diff_threshold=0.2) if size == "S" else preset


def scm(policy: str = "fast", total_steps: int = 28, order: int = 1) -> Preset:
    """Steps mask of the reference system: a fixed list of computed steps, with forecasts by TaylorSeer.

    Args:
        policy: "slow", "medium", "fast" or "ultra": 18, 15, 11 or 8 of 28 steps are computed.
        total_steps: Steps of the runs.
        order: Order of the forecast; 0 repeats the last change.

    Raises:
        ConfigError: An unknown policy.
    """
    mask = steps_mask(mask_policy=policy, total_steps=total_steps)
    cache = DBCacheConfig(Fn_compute_blocks=1, steps_computation_mask=mask, steps_computation_policy="static")
    return Preset(cache, TaylorSeerCalibratorConfig(taylorseer_order=order) if order else CalibratorConfig())


def dbprune(threshold: float = 0.06, dynamic: bool = False) -> Preset:
    """Dual block prune of the reference system: every block decides for itself.

    Args:
        threshold: Relative L1 change of a block's input below which it is skipped; 0.03 to 0.2 were
            published.
        dynamic: Let the threshold follow the changes of the first blocks of a step.
    """
    return Preset(
        DBPruneConfig(
            Fn_compute_blocks=1, residual_diff_threshold=threshold, enable_dynamic_prune_threshold=dynamic
        )
    )
