"""The option classes: what they refuse, in which words, and their short forms."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cache_dit import (
    BasicCacheConfig,
    BlockAdapter,
    CacheType,
    CalibratorConfig,
    DBCacheConfig,
    ParamsModifier,
    Place,
    TaylorSeerCalibratorConfig,
    steps_mask,
    strify,
)
from cache_dit.caching.forecasters.newton import Newton
from cache_dit.caching.forecasters.reuse import Reuse
from cache_dit.caching.gates.always import Always
from cache_dit.caching.gates.residual import ResidualGate
from cache_dit.caching.maths.gate import Policy, Reason
from cache_dit.errors import CacheDiTError, ConfigError, ConfigTypeError

DEFAULTS = {
    "place": Place.MIDDLE,
    "per_sample": False,
    "uncond_interval": None,
    "uncond_window": (0.0, 0.641),
    "Fn_compute_blocks": 8,
    "Bn_compute_blocks": 0,
    "residual_diff_threshold": 0.08,
    "max_accumulated_residual_diff_threshold": None,
    "max_warmup_steps": 8,
    "warmup_interval": 1,
    "max_cached_steps": -1,
    "max_continuous_cached_steps": -1,
    "enable_separate_cfg": None,
    "cfg_compute_first": False,
    "cfg_diff_compute_separate": True,
    "num_inference_steps": None,
    "tuned_steps": None,
    "steps_computation_mask": None,
    "steps_computation_policy": "dynamic",
    "force_refresh_step_hint": None,
    "force_refresh_step_policy": "once",
    "max_live_requests": 64,
}

OUT_OF_RANGE = [
    ("Fn_compute_blocks", 0, "at least 1"),
    ("Fn_compute_blocks", -1, "at least 1"),
    ("Bn_compute_blocks", -1, "at least 0"),
    ("residual_diff_threshold", -0.1, "at least 0"),
    ("residual_diff_threshold", float("nan"), "at least 0"),
    ("residual_diff_threshold", float("inf"), "at least 0"),
    ("max_accumulated_residual_diff_threshold", -1.0, "at least 0"),
    ("max_warmup_steps", -1, "at least 0"),
    ("warmup_interval", 0, "at least 1"),
    ("max_cached_steps", 0, "-1 for no limit"),
    ("max_cached_steps", -2, "-1 for no limit"),
    ("max_continuous_cached_steps", 0, "-1 for no limit"),
    ("num_inference_steps", 0, "at least 1"),
    ("tuned_steps", 0, "at least 1"),
    ("steps_computation_mask", [], "at least one"),
    ("steps_computation_mask", [1, 2], "one 0 or 1 for every step"),
    ("steps_computation_policy", "dynamc", "Did you mean 'dynamic'?"),
    ("steps_computation_policy", None, "'dynamic', 'static'"),
    ("force_refresh_step_hint", 0, "at least 1"),
    ("force_refresh_step_policy", "always", "'once', 'repeat'"),
    ("max_live_requests", 0, "at least 1, or -1 for no limit"),
]
WRONG_TYPE = [
    ("Fn_compute_blocks", 1.0, "a float; give a whole number"),
    ("Fn_compute_blocks", True, "a bool; give a whole number"),
    ("Fn_compute_blocks", None, "a NoneType; give a whole number"),
    ("Bn_compute_blocks", "2", "a str; give a whole number"),
    ("residual_diff_threshold", "0.1", "a str; give a number"),
    ("residual_diff_threshold", False, "a bool; give a number"),
    ("max_accumulated_residual_diff_threshold", "1", "a str; give a number"),
    ("max_warmup_steps", 4.5, "a float; give a whole number"),
    ("warmup_interval", None, "a NoneType; give a whole number"),
    ("max_cached_steps", 3.0, "a float; give a whole number"),
    ("max_continuous_cached_steps", "3", "a str; give a whole number"),
    ("enable_separate_cfg", 1, "give True or False"),
    ("cfg_compute_first", "yes", "give True or False"),
    ("cfg_diff_compute_separate", None, "give True or False"),
    ("num_inference_steps", 28.0, "a float; give a whole number"),
    ("steps_computation_mask", "110", "give a list of 0 and 1"),
    ("steps_computation_mask", 3, "give a list of 0 and 1"),
    ("force_refresh_step_hint", 1.5, "a float; give a whole number"),
]


def test_defaults() -> None:
    assert dataclasses.asdict(BasicCacheConfig()) == DEFAULTS
    assert dataclasses.asdict(DBCacheConfig()) == DEFAULTS
    assert DBCacheConfig().cache_type is CacheType.DBCache


@pytest.mark.parametrize(("field", "value", "words"), OUT_OF_RANGE)
def test_value_out_of_range(field: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DBCacheConfig(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field} is {value!r}")
    assert words in message
    assert isinstance(caught.value, (CacheDiTError, ValueError))


@pytest.mark.parametrize(("field", "value", "words"), WRONG_TYPE)
def test_value_of_the_wrong_type(field: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigTypeError) as caught:
        DBCacheConfig(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field} is {value!r}")
    assert words in message
    assert isinstance(caught.value, (CacheDiTError, TypeError))


@pytest.mark.parametrize("field", DEFAULTS)
def test_every_field_is_checked(field: str) -> None:
    with pytest.raises(CacheDiTError, match=field):
        DBCacheConfig(**{field: object()})


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (DBCacheConfig, "Fn_compute_block", "Did you mean 'Fn_compute_blocks'?"),
        (DBCacheConfig, "residual_threshold", "Did you mean 'residual_diff_threshold'?"),
        (DBCacheConfig, "zzz", "Known are: place, Fn_compute_blocks, "),
        (BasicCacheConfig, "max_warmup_step", "Did you mean 'max_warmup_steps'?"),
        (TaylorSeerCalibratorConfig, "taylorseer_oder", "Did you mean 'taylorseer_order'?"),
        (CalibratorConfig, "taylorseer_order", "Known are: enable_calibrator, "),
        (ParamsModifier, "cache_confg", "Did you mean 'cache_config'?"),
        (BlockAdapter, "forward_patern", "Did you mean 'forward_pattern'?"),
    ],
)
def test_misspelt_option(kind: Any, given: str, words: str) -> None:
    with pytest.raises(ConfigTypeError) as caught:
        kind(**{given: 1})
    assert str(caught.value).startswith(f"{kind.__name__} has no option {given!r}.")
    assert words in str(caught.value)


def test_options_are_named() -> None:
    with pytest.raises(TypeError):
        DBCacheConfig(8)  # type: ignore[misc]


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DBCacheConfig().max_warmup_steps = 4  # type: ignore[misc]


def test_a_list_is_kept_as_a_tuple() -> None:
    mask, window = [1, 1, 0], [0.1, 0.5]
    listed = DBCacheConfig(steps_computation_mask=mask, uncond_window=window)
    mask.append(0)
    assert listed.steps_computation_mask == (1, 1, 0)
    assert listed == DBCacheConfig(steps_computation_mask=(1, 1, 0), uncond_window=(0.1, 0.5))
    assert len({listed, DBCacheConfig(steps_computation_mask=range(1, 2)), DBCacheConfig()}) == 3
    override = DBCacheConfig().reset(steps_computation_mask=[1, 1, 0])
    assert override == DBCacheConfig().reset(steps_computation_mask=(1, 1, 0))
    assert DBCacheConfig().updated(override).policy().mask == (1, 1, 0)


def test_mask_of_another_length_than_the_steps() -> None:
    with pytest.raises(ConfigError, match=r"steps_computation_mask has 3 entries but the run has 4 steps"):
        DBCacheConfig(steps_computation_mask=[1, 0, 1], num_inference_steps=4)
    DBCacheConfig(steps_computation_mask=[1, 0, 1], num_inference_steps=3)
    DBCacheConfig(steps_computation_mask=[1, 0], num_inference_steps=4, force_refresh_step_hint=2)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"taylorseer_order": 0}, ConfigError, "taylorseer_order is 0; give a whole number of at least 1"),
        ({"taylorseer_order": 5}, ConfigError, "taylorseer_order is 5; give 1 to 4"),
        ({"taylorseer_order": 1.0}, ConfigTypeError, "taylorseer_order is 1.0, a float"),
        ({"enable_calibrator": 1}, ConfigTypeError, "enable_calibrator is 1"),
        ({"enable_encoder_calibrator": "no"}, ConfigTypeError, "enable_encoder_calibrator is 'no'"),
        ({"calibrator_cache_type": "residuals"}, ConfigError, "Did you mean 'residual'?"),
    ],
)
def test_bad_calibrator(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        TaylorSeerCalibratorConfig(**given)
    assert words in str(caught.value)


def test_forecaster_of_each_stream() -> None:
    taylor = TaylorSeerCalibratorConfig(taylorseer_order=2)
    assert taylor.forecaster(main=True) == taylor.forecaster(main=False) == Newton(2)
    main_only = TaylorSeerCalibratorConfig(enable_encoder_calibrator=False)
    assert main_only.forecaster(main=True) == Newton(1)
    assert main_only.forecaster(main=False) == Reuse()
    others_only = TaylorSeerCalibratorConfig(enable_calibrator=False)
    assert others_only.forecaster(main=True) == Reuse()
    assert others_only.forecaster(main=False) == Newton(1)
    assert CalibratorConfig().forecaster(main=True) == Reuse()


def test_policy_takes_over_every_rule() -> None:
    config = DBCacheConfig(
        residual_diff_threshold=0.2,
        max_warmup_steps=3,
        warmup_interval=2,
        max_cached_steps=7,
        max_continuous_cached_steps=5,
        max_accumulated_residual_diff_threshold=0.4,
        steps_computation_mask=[1, 0, 1],
    )
    limits = {"warmup": 3, "warmup_interval": 2, "mask": (1, 0, 1)}
    dynamic = Policy(gate=ResidualGate(0.2), max_cached=7, max_continuous=5, max_accumulated=0.4, **limits)
    assert config.policy() == dynamic
    static = dataclasses.replace(config, steps_computation_policy="static")
    assert static.policy() == Policy(gate=Always(Reason.MASK), **limits)
    free = DBCacheConfig(residual_diff_threshold=1.0)
    assert free.policy() == Policy(gate=Always(Reason.ALWAYS), warmup=8)
    assert not DBCacheConfig(steps_computation_policy="static").static, (
        "without a mask there is nothing static"
    )


def test_reset_changes_only_the_fields_named() -> None:
    base = DBCacheConfig(max_warmup_steps=4, residual_diff_threshold=0.2)
    override = DBCacheConfig(max_warmup_steps=1).reset(max_cached_steps=8, residual_diff_threshold=0.3)
    assert base.updated(override) == DBCacheConfig(
        max_warmup_steps=4, residual_diff_threshold=0.3, max_cached_steps=8
    )
    assert base.updated(DBCacheConfig().reset()) == base
    assert base == DBCacheConfig(max_warmup_steps=4, residual_diff_threshold=0.2)


def test_reset_to_a_default_is_a_change() -> None:
    base = DBCacheConfig(max_warmup_steps=4)
    assert base.updated(DBCacheConfig().reset(max_warmup_steps=8)) == DBCacheConfig()


def test_updated_with_a_whole_config_replaces_all() -> None:
    base = DBCacheConfig(max_warmup_steps=4)
    assert base.updated(DBCacheConfig(max_cached_steps=2)) == DBCacheConfig(max_cached_steps=2)
    taylor = TaylorSeerCalibratorConfig(taylorseer_order=2)
    assert CalibratorConfig().updated(taylor) is taylor


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"max_warmup": 4}, ConfigTypeError, "DBCacheConfig has no option 'max_warmup'"),
        ({"max_warmup_steps": -4}, ConfigError, "max_warmup_steps is -4"),
        ({"max_warmup_steps": "4"}, ConfigTypeError, "max_warmup_steps is '4'"),
    ],
)
def test_reset_checks_at_once(fields: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        DBCacheConfig().reset(**fields)
    assert words in str(caught.value)


def test_an_override_is_checked_again_where_it_is_laid_over() -> None:
    override = DBCacheConfig().reset(steps_computation_mask=[1, 0])
    with pytest.raises(ConfigError, match="has 2 entries but the run has 4 steps"):
        DBCacheConfig(num_inference_steps=4).updated(override)
    with pytest.raises(ConfigTypeError, match="CalibratorConfig has no option 'taylorseer_order'"):
        CalibratorConfig().updated(TaylorSeerCalibratorConfig().reset(taylorseer_order=2))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DBCacheConfig(), "F8B0_W8I1M0MC0_R0.08"),
        (BasicCacheConfig(), "F8B0_W8I1M0MC0_R0.08"),
        (DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=2), "F1B2_W8I1M0MC0_R0.08"),
        (DBCacheConfig(max_warmup_steps=4, warmup_interval=2), "F8B0_W4I2M0MC0_R0.08"),
        (DBCacheConfig(max_cached_steps=12, max_continuous_cached_steps=3), "F8B0_W8I1M12MC3_R0.08"),
        (DBCacheConfig(residual_diff_threshold=0), "F8B0_W8I1M0MC0_R0"),
        (DBCacheConfig(residual_diff_threshold=0.125), "F8B0_W8I1M0MC0_R0.125"),
        (DBCacheConfig(enable_separate_cfg=True), "F8B0_W8I1M0MC0_R0.08_CFG1"),
        (DBCacheConfig(enable_separate_cfg=False), "F8B0_W8I1M0MC0_R0.08_CFG0"),
        (
            DBCacheConfig(steps_computation_mask=steps_mask(mask_policy="fast", total_steps=28)),
            "F8B0_W8I1M0MC0_R0.08_SCM1111110100010000100000100001_dynamic",
        ),
        (
            DBCacheConfig(steps_computation_mask=[True, False], steps_computation_policy="static"),
            "F8B0_W8I1M0MC0_R0.08_SCM10_static",
        ),
        (CalibratorConfig(), "T0O0"),
        (TaylorSeerCalibratorConfig(), "T1O1"),
        (TaylorSeerCalibratorConfig(taylorseer_order=3), "T1O3"),
    ],
)
def test_short_form(config: Any, expected: str) -> None:
    assert config.strify() == strify(config) == expected
