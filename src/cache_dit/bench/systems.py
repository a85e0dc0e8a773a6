"""This package's own presets over their strengths, and the controls: fewer steps, and no cache at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

from cache_dit import presets
from cache_dit.api import disable_cache, enable_cache
from cache_dit.bench.calibrated import SHARES, calibrated, calibrated_file
from cache_dit.bench.diffusers_systems import diffusers_systems
from cache_dit.bench.pictures import Cell
from cache_dit.bench.system import Kind, System, everywhere
from cache_dit.bench.table import BUDGETS
from cache_dit.caching.catalogue import (
    CalibratorConfig,
    DBCacheConfig,
    TaylorSeerCalibratorConfig,
    TrajectoryCalibratorConfig,
)
from cache_dit.caching.maths.masks import steps_mask
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.presets import Preset

REMARKS = (
    "this package's LeMiCa and MagCache were calibrated on one prompt, its DPCache on ten, as their authors "
    "do, Trajectory (measured, closed loop) on 48, for each cell; none of these is of a picture below",
)

Make = Callable[[Cell, Any], Preset]  # what a strength means in a cell
Line = tuple[str, Make, Sequence[Any], bool]  # name, preset, strengths, and whether `System.fixed`

_FILLED: dict[str, CalibratorConfig] = {
    "reuse": CalibratorConfig(),
    "Taylor 1": TaylorSeerCalibratorConfig(taylorseer_order=1),
    "Taylor 2": TaylorSeerCalibratorConfig(taylorseer_order=2),
    "estimate": TrajectoryCalibratorConfig(),
}
_THRESHOLDS = (0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.24, 0.3, 0.4)
_INTERVALS = (2, 3, 4, 5, 6, 7, 8)
_ORDERED = tuple(product(_INTERVALS, (1, 2)))
_POLICIES = ("slow", "medium", "fast", "ultra")
_FRACTIONS = (0.6, 0.5, 0.45, 0.4, 0.36, 1 / 3, 0.3, 0.25, 0.22)


def _line(name: str, preset: Callable[..., Preset], strengths: Sequence[Any], *, fixed: bool) -> Line:
    """A preset that is the same in all cells; a strength is its first argument, or a tuple of several."""

    def make(cell: Cell, strength: Any) -> Preset:
        del cell
        return preset(*strength) if isinstance(strength, tuple) else preset(strength)

    return name, make, strengths, fixed


def _residual(filled: str, warmup: int, threshold: float) -> Preset:
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=warmup,
        max_continuous_cached_steps=8,
        residual_diff_threshold=threshold,
    )
    return Preset(config, _FILLED[filled])


def _plain(filled: str, threshold: float) -> Preset:
    """What `enable_cache(pipe)` decides on this model, whose first list has four blocks, at any threshold.

    With the estimate as it does it; else as `DBCacheConfig()` does, where branches of guidance decide apart.
    """
    config = DBCacheConfig(
        Fn_compute_blocks=2,
        residual_diff_threshold=threshold,
        cfg_diff_compute_separate=filled != "estimate",
    )
    return Preset(config, _FILLED[filled])


def _mask(order: int, cell: Cell, policy: str) -> Preset:
    return presets.scm(policy, total_steps=cell.steps, order=order)


def _dynamic_mask(filled: str, cell: Cell, policy: str) -> Preset:
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        residual_diff_threshold=0.25,
        steps_computation_mask=steps_mask(mask_policy=policy, total_steps=cell.steps),
    )
    return Preset(config, _FILLED[filled])


def _measured(cell: Cell, fraction: float) -> Preset:
    return presets.trajectory(fraction, Trajectory.load(calibrated_file("trajectory", cell)))


def _tried(cell: Cell, fraction: float) -> Preset:
    computed = calibrated("closed-loop", cell)[f"{fraction:g}"]
    schedule = Schedule(total=cell.steps, computed=tuple(computed))
    return presets.trajectory(schedule, Trajectory.load(calibrated_file("trajectory", cell)))


def _searched(preset: Callable[[Schedule], Preset], cell: Cell, fraction: float) -> Preset:
    computed = calibrated(preset.__name__, cell)[f"{fraction:g}"]
    return preset(Schedule(total=cell.steps, computed=tuple(computed)))


def _magnitudes(cell: Cell, threshold: float) -> Preset:
    return presets.magcache(calibrated("magcache", cell), threshold)


_LINES: tuple[Line, ...] = (
    _line("Trajectory", presets.trajectory, SHARES, fixed=True),
    ("Trajectory, measured", _measured, SHARES, True),
    ("Trajectory, closed loop", _tried, tuple(BUDGETS.values()), True),
    _line("Tolerance", presets.tolerance, (0.02, 0.035, 0.05, 0.07, 0.1, 0.15), fixed=False),
    *(
        _line(f"default decisions, {filled}", partial(_plain, filled), (0.08, 0.12, 0.16), fixed=False)
        for filled in ("reuse", "Taylor 1", "estimate")
    ),
    *(
        _line(
            f"DBCache {filled}, warm-up {warmup}",
            partial(_residual, filled, warmup),
            _THRESHOLDS,
            fixed=False,
        )
        for filled in _FILLED
        for warmup in (4, 2)
    ),
    *((f"SCM static, order {order}", partial(_mask, order), _POLICIES, True) for order in (0, 1, 2)),
    *((f"SCM dynamic {filled}", partial(_dynamic_mask, filled), _POLICIES, False) for filled in _FILLED),
    _line("FBCache", presets.fbcache, _THRESHOLDS, fixed=False),
    _line("DBPrune", presets.dbprune, (0.03, 0.06, 0.1, 0.15, 0.2), fixed=False),
    _line("FORA", presets.fora, _INTERVALS, fixed=True),
    _line("ToCa", presets.toca, _INTERVALS, fixed=True),
    _line("DuCa", presets.duca, _INTERVALS, fixed=True),
    _line("TaylorSeer", presets.taylorseer, _ORDERED, fixed=True),
    _line("TaylorSeer on the output", presets.taylorseer_lite, _ORDERED, fixed=True),
    _line("FoCa", presets.foca, _INTERVALS, fixed=True),
    _line("HiCache", presets.hicache, _ORDERED, fixed=True),
    _line("Spectrum", presets.spectrum, tuple(product((0.25, 0.5, 0.75, 1.5, 3.0), (0.5, 1.0))), fixed=True),
    _line("DMD", presets.dmd, _INTERVALS, fixed=True),
    _line("FreqCa", presets.freqca, _INTERVALS, fixed=True),
    _line(
        "TeaCache",
        presets.teacache,
        tuple(product((0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 0.8), ("flux", None))),
        fixed=False,
    ),
    _line("SeaCache of this package", presets.seacache, (0.1, 0.2, 0.3, 0.45, 0.6, 1.0), fixed=False),
    _line("EasyCache", presets.easycache, (0.02, 0.05, 0.1, 0.2, 0.4), fixed=False),
    ("MagCache of this package", _magnitudes, (0.03, 0.06, 0.12, 0.24, 0.5), True),
    ("DPCache", partial(_searched, presets.dpcache), SHARES, True),
    ("LeMiCa", partial(_searched, presets.lemica), SHARES, True),
    _line("DiCache", presets.dicache, (0.1, 0.2, 0.3, 0.4, 0.6, 0.8), fixed=False),
    _line("SpeCa", presets.speca, (1, 2), fixed=False),
    _line("PAB of this package", presets.pab, (2, 3, 4, 6), fixed=True),
    _line("Δ-DiT", presets.delta_dit, (2, 3, 4, 6), fixed=True),
)


# What `bench/calibrate.py` measures for them, by method.
_CALIBRATED = {
    "Trajectory, measured": "trajectory",
    "Trajectory, closed loop": "closed-loop",
    "MagCache of this package": "magcache",
    "DPCache": "dpcache",
    "LeMiCa": "lemica",
}


def _is_calibrated(method: str, cell: Cell) -> bool:
    return calibrated_file(method, cell).exists()


def own_systems() -> list[System]:
    """All presets of this package at all their strengths."""
    return [
        System(
            name=name,
            strength=", ".join(map(_text, strength)) if isinstance(strength, tuple) else _text(strength),
            kind=Kind.OURS,
            applied=partial(_enabled, make, strength),
            fixed=fixed,
            available=partial(_is_calibrated, _CALIBRATED[name]) if name in _CALIBRATED else everywhere,
        )
        for name, make, strengths, fixed in _LINES
        for strength in strengths
    ]


def controls() -> list[System]:
    """Fewer steps without a cache; and the noise floor, uncached runs again, one by one."""
    return [
        System(name="uncached again", strength="one by one", kind=Kind.CONTROL, fixed=False),
        *(
            System(
                name="fewer steps",
                strength=f"{fraction:.2f}",
                kind=Kind.CONTROL,
                steps=partial(_shortened, fraction),
            )
            for fraction in _FRACTIONS
        ),
    ]


def all_systems() -> list[System]:
    """Controls, diffusers' caches, and this package's presets."""
    return [*controls(), *diffusers_systems(), *own_systems()]


@contextmanager
def _enabled(make: Make, strength: Any, pipe: Any, cell: Cell) -> Iterator[None]:
    enable_cache(pipe, make(cell, strength))
    try:
        yield
    finally:
        disable_cache(pipe)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shortened(fraction: float, steps: int) -> int:
    """The highest step count that costs the fraction and one hundredth more at most, as budgets allow."""
    return max(1, int((fraction + 0.01) * steps + 1e-6))
