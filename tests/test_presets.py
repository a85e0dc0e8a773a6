"""Presets: what the published names stand for, and that each of them runs and skips something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import cache_dit
from cache_dit import presets
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.demo import PROMPTS, generate, load_pipeline
from cache_dit.errors import ConfigError, ConfigTypeError
from cache_dit.presets import Preset

STEPS = 10
SCHEDULE = Schedule(total=STEPS, computed=(0, 1, 2, 4, 7))
RATIOS = tuple(1.0 - 0.02 * step for step in range(STEPS))

# Name -> how it is made for the runs, its short form, that of its forecaster.
MADE: dict[str, tuple[Callable[[], Preset], str, str]] = {
    "trajectory": (presets.trajectory, "F0B0_W0I1M0MC0_C0.5_OUTPUT", "E0"),
    "tolerance": (lambda: presets.tolerance(0.1), "F0B0_W0I1M0MC0_TOL0.1O1_OUTPUT", "E0"),
    "fbcache": (lambda: presets.fbcache(0.2), "F1B0_W0I1M0MC0_R0.2", "T0O0"),
    "dbcache": (lambda: presets.dbcache("M"), "F1B0_W4I1M0MC6_R0.24", "T0O0"),
    "dbcache_taylorseer": (presets.dbcache_taylorseer, "F1B0_W4I1M0MC4_R0.2", "T1O1"),
    "scm": (
        lambda: presets.scm("ultra", total_steps=STEPS),
        "F1B0_W8I1M0MC0_R0.08_SCM1100000101_static",
        "T1O1",
    ),
    "dbprune": (
        lambda: presets.dbprune(0.2, dynamic=True).with_options(max_warmup_steps=3),
        "F1B0_W3I1M0MC0_P0.2D_BLOCKS",
        "T0O0",
    ),
    "fora": (presets.fora, "F0B0_W0I1M0MC0_N3_SUBMODULES", "T0O0"),
    "toca": (presets.toca, "F0B0_W0I1M0MC0_N5R0.1_SUBMODULES", "T0O0"),
    "duca": (presets.duca, "F0B0_W0I1M0MC0_N5R0.1_SUBMODULES", "T0O0"),
    "taylorseer": (presets.taylorseer, "F0B0_W3I1M0MC0_N5_SUBMODULES", "T1O2P"),
    "taylorseer_lite": (presets.taylorseer_lite, "F0B0_W3I1M0MC0_N5_OUTPUT", "T1O1"),
    "foca": (presets.foca, "F0B0_W3I1M0MC0_N5_SUBMODULES", "FoCa"),
    "hicache": (presets.hicache, "F0B0_W3I1M0MC0_N5_SUBMODULES", "HiCacheO2S0.5"),
    "spectrum": (presets.spectrum, "F0B0_W5I1M0MC0_N2G0.75", "SpectrumD4R0.1B0.5W16"),
    "dmd": (lambda: presets.dmd(2), "F0B0_W3I1M0MC0_N2", "DMD6G1.2"),
    "freqca": (presets.freqca, "F0B0_W3I1M0MC0_N5", "FreqCaO2S0.71C0.1"),
    "teacache": (lambda: presets.teacache(0.6), "F0B0_W1I1M0MC0_TEA0.6P", "T0O0"),
    "seacache": (presets.seacache, "F0B0_W1I1M0MC2_SEA0.3", "T1O1"),
    "easycache": (
        lambda: presets.easycache(0.3).with_options(max_warmup_steps=3),
        "F0B0_W3I1M0MC0_EASY0.3_OUTPUT",
        "T0O0",
    ),
    "magcache": (lambda: presets.magcache(RATIOS), "F0B0_W0I1M0MC3_MAG0.06", "T0O0"),
    "dicache": (presets.dicache, "F1B0_W1I1M0MC0_DI0.4", "DiCache"),
    "speca": (presets.speca, "F0B1_W3I1M0MC5_SPECA0.1", "T1O2P"),
    "pab": (presets.pab, "F0B0_W0I1M0MC0_S2T4C6M1_ATTENTION", "T0O0"),
    "fastercache": (presets.fastercache, "F0B0_W0I1M0MC0_S2T2C2M1_ATTENTION_U5", "FasterCacheWt"),
    "delta_dit": (presets.delta_dit, "F0B0_W0I1M0MC0_N2B0.5_0.5", "T0O0"),
    "lemica": (lambda: presets.lemica(SCHEDULE), "F0B0_W0I1M0MC0_S5of10", "T0O0"),
    "dpcache": (lambda: presets.dpcache(SCHEDULE), "F0B0_W0I1M0MC0_S5of10_OUTPUT", "T1O1"),
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


def test_every_preset_is_tried() -> None:
    assert set(presets.NAMED) == set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_the_short_form_of_a_preset(name: str) -> None:
    make, cache, calibrator = MADE[name]
    preset = make()
    assert (preset.cache_config.strify(), preset.calibrator_config.strify()) == (cache, calibrator)


@pytest.mark.parametrize("name", MADE)
def test_every_preset_runs_and_skips_something(pipe: Any, name: str) -> None:
    make, _, _ = MADE[name]
    preset = make()
    cache_dit.enable_cache(pipe, preset.cache_config, preset.calibrator_config)
    try:
        picture = generate(pipe, PROMPTS[0], steps=STEPS, cfg=1.0)
        (stats,) = cache_dit.summary(pipe, logging=False)
    finally:
        cache_dit.disable_cache(pipe)
    assert picture.isfinite().all()
    assert 0.05 < stats.flops_saved < 0.95
    assert any(not entry.verdict.skip for entry in stats.steps)


@pytest.mark.parametrize(
    ("size", "short"),
    [
        ("S", "F4B0_W4I1M0MC4_R0.12"),
        ("M", "F1B0_W4I1M0MC6_R0.24"),
        ("F", "F1B0_W8I2M0MC8_R0.8"),
        ("U", "F1B0_W8I4M0MC10_R0.8"),
    ],
)
def test_the_sizes_of_dbcache_are_the_published_ones(size: str, short: str) -> None:
    assert presets.dbcache(size).cache_config.strify() == short


def test_a_measured_trajectory_chooses_the_steps() -> None:
    sigmas = tuple(1.0 - step / STEPS for step in range(STEPS + 1))
    measured = replace(Trajectory.expected(sigmas), model="Flux", pictures=8)
    preset = presets.trajectory(0.4, measured)
    assert preset.cache_config.strify() == "F0B0_W0I1M0MC0_S4of10_OUTPUT"
    assert preset.calibrator_config.strify() == "E8"
    assert preset.cache_config.schedule.computed == measured.schedule(4)
    assert preset.cache_config.schedule.model == "Flux"


@pytest.mark.parametrize("pictures", [0, 8])
def test_a_trajectory_takes_a_schedule_in_place_of_a_share(pictures: int) -> None:
    sigmas = tuple(1.0 - step / STEPS for step in range(STEPS + 1))
    measured = replace(Trajectory.expected(sigmas), pictures=pictures) if pictures else None
    preset = presets.trajectory(SCHEDULE, measured)
    assert preset.cache_config == presets.dpcache(SCHEDULE).cache_config
    assert preset.calibrator_config == presets.trajectory(0.5, measured).calibrator_config


def test_a_preset_can_be_changed() -> None:
    preset = presets.taylorseer_lite(3, 2)
    changed = preset.with_options(max_warmup_steps=5, last_step_computed=True)
    assert changed.cache_config.strify() == "F0B0_W5I1M0MC0_N3L_OUTPUT"
    assert changed.calibrator_config is preset.calibrator_config
    assert preset.cache_config.max_warmup_steps == 3, "the preset itself stays"


def test_a_change_keeps_what_an_option_class_requires() -> None:
    assert presets.lemica(SCHEDULE).with_options(max_warmup_steps=3).cache_config.schedule == SCHEDULE
    assert presets.magcache(RATIOS).with_options(retention=0.5).cache_config.ratios == RATIOS


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: presets.dbcache("XL"), ConfigError, "size is 'XL'; allowed are 'S', 'M', 'F', 'U'"),
        (lambda: presets.teacache(model="fluxx"), ConfigError, "model is 'fluxx'; .* Did you mean 'flux'"),
        (lambda: presets.scm("quick"), ConfigError, "mask_policy is 'quick'"),
        (lambda: presets.fora(0), ConfigError, "interval is 0"),
        (lambda: presets.taylorseer(order=9), ConfigError, "taylorseer_order is 9"),
        (lambda: presets.lemica([0, 1]), ConfigTypeError, "schedule is of type list; give a Schedule"),
        (lambda: presets.pab().with_options(crosss=2), ConfigTypeError, "Did you mean 'cross'"),
    ],
)
def test_bad_settings_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
