"""This package's own presets over their strengths, and the controls: fewer steps, and no cache at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from cache_dit import (
    CalibratorConfig,
    DBCacheConfig,
    TaylorSeerCalibratorConfig,
    disable_cache,
    enable_cache,
    steps_mask,
)
from cache_dit.bench.diffusers_systems import diffusers_systems
from cache_dit.bench.pictures import Cell
from cache_dit.bench.system import Kind, System

Options = dict[str, Any]  # arguments of `enable_cache`
Preset = Callable[[Any, Cell], Options]  # what a strength means in a cell

_FILLED: dict[str, CalibratorConfig] = {
    "reuse": CalibratorConfig(),
    "Taylor 1": TaylorSeerCalibratorConfig(taylorseer_order=1),
    "Taylor 2": TaylorSeerCalibratorConfig(taylorseer_order=2),
}
_THRESHOLDS = (0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.24, 0.3, 0.4)
_FRACTIONS = (0.6, 0.5, 0.45, 0.4, 0.36, 1 / 3, 0.3, 0.25, 0.22)


def _residual(filled: str, warmup: int, threshold: float, cell: Cell) -> Options:
    del cell
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=warmup,
        max_continuous_cached_steps=8,
        residual_diff_threshold=threshold,
    )
    return {"cache_config": config, "calibrator_config": _FILLED[filled]}


def _first_block(threshold: float, cell: Cell) -> Options:
    del cell
    return {
        "cache_config": DBCacheConfig(
            Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=threshold
        )
    }


def _mask(filled: str, kind: str, policy: str, cell: Cell) -> Options:
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        residual_diff_threshold=0.25,
        steps_computation_mask=steps_mask(mask_policy=policy, total_steps=cell.steps),
        steps_computation_policy=kind,
    )
    return {"cache_config": config, "calibrator_config": _FILLED[filled]}


# Name, preset, strengths, and whether the schedule is fixed before the run, whatever the picture.
_PRESETS: tuple[tuple[str, Preset, Sequence[Any], bool], ...] = (
    *(
        (f"DBCache {filled}, warm-up {warmup}", partial(_residual, filled, warmup), _THRESHOLDS, False)
        for filled in _FILLED
        for warmup in (4, 2)
    ),
    ("FBCache", _first_block, _THRESHOLDS, False),
    *(
        (f"SCM {kind} {filled}", partial(_mask, filled, kind), ("slow", "medium", "fast", "ultra"), fixed)
        for kind, fixed in (("static", True), ("dynamic", False))
        for filled in _FILLED
    ),
)


def own_systems() -> list[System]:
    """All presets of this package at all their strengths."""
    return [
        System(
            name=name,
            strength=f"{strength:g}" if isinstance(strength, float) else str(strength),
            kind=Kind.OURS,
            applied=partial(_enabled, partial(preset, strength)),
            fixed=fixed,
        )
        for name, preset, strengths, fixed in _PRESETS
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
def _enabled(options: Callable[[Cell], Options], pipe: Any, cell: Cell) -> Iterator[None]:
    enable_cache(pipe, **options(cell))
    try:
        yield
    finally:
        disable_cache(pipe)


def _shortened(fraction: float, steps: int) -> int:
    """The highest step count that costs the fraction and one hundredth more at most, as budgets allow."""
    return max(1, int((fraction + 0.01) * steps + 1e-6))
