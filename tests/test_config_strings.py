"""Configurations as text: every form of the benchmarks, round trips, and errors that name the token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit import (
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    FreqCaCalibratorConfig,
    HiCacheCalibratorConfig,
    Place,
    Preset,
    SpectrumCalibratorConfig,
    TaylorSeerCalibratorConfig,
    parse_config,
    presets,
    steps_mask,
    strify,
)
from cache_dit.errors import CacheDiTError, ConfigError, ConfigTypeError

_TAYLOR_2 = TaylorSeerCalibratorConfig(taylorseer_order=2)


def _numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers that the short form, which has six digits, says in full."""
    return st.floats(low, high).map(lambda value: float(f"{value:g}"))


@st.composite
def _caches(draw: st.DrawFn) -> DBCacheConfig:
    limits = st.one_of(st.just(-1), st.integers(1, 99))
    mask = draw(st.none() | st.lists(st.integers(0, 1), min_size=1, max_size=60))
    separate = draw(st.sampled_from((None, True, False)))
    interval = draw(st.none() | st.integers(1, 9)) if separate is not False else None
    options: dict[str, Any] = {
        "Fn_compute_blocks": draw(st.integers(1, 60)),
        "Bn_compute_blocks": draw(st.integers(0, 60)),
        "max_warmup_steps": draw(st.integers(0, 60)),
        "warmup_interval": draw(st.integers(1, 9)),
        "max_cached_steps": draw(limits),
        "max_continuous_cached_steps": draw(limits),
        "residual_diff_threshold": draw(_numbers(0.0, 2.0)),
        "place": draw(st.sampled_from(Place)),
        "steps_computation_mask": mask,
        "steps_computation_policy": "dynamic"
        if mask is None
        else draw(st.sampled_from(["dynamic", "static"])),
        "enable_separate_cfg": separate,
        "uncond_interval": interval,
        "per_sample": interval is None and draw(st.booleans()),
    }
    if options["place"] is not Place.MIDDLE and draw(st.booleans()):
        return DBPruneConfig(**options, enable_dynamic_prune_threshold=draw(st.booleans()))
    return DBCacheConfig(**options)


_CALIBRATORS = st.one_of(
    st.just(CalibratorConfig()),
    st.just(FoCaCalibratorConfig()),
    st.builds(
        TaylorSeerCalibratorConfig,
        taylorseer_order=st.integers(1, 4),
        differences=st.sampled_from(["newton", "published"]),
    ),
    st.builds(HiCacheCalibratorConfig, order=st.integers(1, 4), sigma=_numbers(0.1, 1.0)),
    st.builds(
        FreqCaCalibratorConfig, order=st.integers(1, 3), sigma=_numbers(0.1, 1.0), cutoff=_numbers(0.1, 0.9)
    ),
    st.builds(DMDCalibratorConfig, snapshots=st.integers(4, 9), max_growth=_numbers(1.0, 2.0)),
    st.builds(
        SpectrumCalibratorConfig,
        degree=st.integers(1, 8),
        ridge=_numbers(1e-5, 1.0),
        blend=_numbers(0.0, 1.0),
        window=st.integers(2, 30),
        anchored=st.booleans(),
    ),
)


@given(_caches(), _CALIBRATORS, st.booleans())
def test_what_was_written_is_read(cache: DBCacheConfig, calibrator: CalibratorConfig, named: bool) -> None:
    text = f"{strify(cache)}_{strify(calibrator)}"
    assert parse_config(f"{cache.method}_{text}" if named else text) == Preset(cache, calibrator)


@pytest.mark.parametrize(
    ("text", "options", "calibrator"),
    [
        # The forms of the published tables and file names.
        (
            "F8B0_W8M0MC3_T1O1_R0.12",
            {"max_continuous_cached_steps": 3, "residual_diff_threshold": 0.12},
            TaylorSeerCalibratorConfig(),
        ),
        ("F8B0_W8M0MC0_T0O1_R0.08", {}, CalibratorConfig()),
        (
            "F24B24_W2MC1_R0.8",
            {
                "Fn_compute_blocks": 24,
                "Bn_compute_blocks": 24,
                "max_warmup_steps": 2,
                "max_continuous_cached_steps": 1,
                "residual_diff_threshold": 0.8,
            },
            CalibratorConfig(),
        ),
        (
            "DBCache_F1B0_W4I1M0MC0_R0.6_SCM111110101_dynamic_CFG0_T0O0_S2",
            {
                "Fn_compute_blocks": 1,
                "max_warmup_steps": 4,
                "residual_diff_threshold": 0.6,
                "steps_computation_mask": [1, 1, 1, 1, 1, 0, 1, 0, 1],
                "enable_separate_cfg": False,
            },
            CalibratorConfig(),
        ),
        (
            "DBCACHE_F1B0_W2M8MC2_T1O2_R0.08_S16_T11.39s",
            {
                "Fn_compute_blocks": 1,
                "max_warmup_steps": 2,
                "max_cached_steps": 8,
                "max_continuous_cached_steps": 2,
            },
            _TAYLOR_2,
        ),
        ("F8B8", {"Bn_compute_blocks": 8}, CalibratorConfig()),
        ("W8MC0", {}, CalibratorConfig()),
        ("R1e-05", {"residual_diff_threshold": 1e-5}, CalibratorConfig()),
        ("SCM10", {"steps_computation_mask": [1, 0]}, CalibratorConfig()),
    ],
)
def test_short_forms(text: str, options: dict[str, Any], calibrator: CalibratorConfig) -> None:
    assert parse_config(text) == Preset(DBCacheConfig(**options), calibrator)


def test_dbprune_of_published_file_names() -> None:
    wanted = DBPruneConfig(Fn_compute_blocks=1, residual_diff_threshold=0.03)
    assert parse_config("DBPRUNE_F1B0_R0.03_P24.0_T19.43s").cache_config == wanted
    dynamic = DBPruneConfig(enable_dynamic_prune_threshold=True, residual_diff_threshold=0.1)
    assert parse_config("P0.1D").cache_config == dynamic


@pytest.mark.parametrize(
    ("text", "preset"),
    [
        ("taylorseer(5,2)", presets.taylorseer(5, 2)),
        ("trajectory( 0.4 )", presets.trajectory(0.4)),
        ("taylorseer_lite", presets.taylorseer_lite()),
        ("dbcache(M)", presets.dbcache("M")),
        ("scm('slow', total_steps=50)", presets.scm("slow", total_steps=50)),
        ("magcache([1.0, 0.9])", presets.magcache([1.0, 0.9])),
        ("teacache(0.4, None)", presets.teacache(0.4, None)),
        ("dbprune(dynamic=True)", presets.dbprune(dynamic=True)),
    ],
)
def test_presets(text: str, preset: Preset) -> None:
    assert parse_config(text) == preset


def test_the_mask_of_a_preset_is_read_too() -> None:
    mask = steps_mask(mask_policy="fast", total_steps=28)
    text = f"F1B0_SCM{''.join(map(str, mask))}_static_T1O1"
    assert parse_config(text) == presets.scm("fast")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("F8B0_Q3_R0.1", "'Q3' at position 5 is no option"),
        ("F1B0S1_R0.08_S11", "'S1' at position 4 is no option"),
        ("DBCache_F8B0_SCM102", "'SCM102' at position 13 is no option"),
        ("F8B0_W4I1M0MC0_R0.6_T0O0_Ulysses4_S2", "'Ulysses4' at position 25 is no option"),
        ("F8B0__R0.1", "'_' at position 5 is no option"),
        ("F8B0_", "'_' at position 4"),
        ("F１B0", "'F１' at position 0"),
        ("F8B0 R0.1", "'B0 ' at position 2"),
        ("F8B0F4", "'F4' at position 4 sets Fn_compute_blocks again"),
        ("T1O1_FoCa", "'FoCa' at position 5 is a second calibrator"),
        ("F0B0", "'F0' at position 0 is not allowed: Fn_compute_blocks is 0"),
        ("F8B0_T1O9", "'T1O9' at position 5 is not allowed: taylorseer_order is 9"),
        ("CFG0_U5", "uncond_interval is 5"),
        ("tailorseer(1)", "there is no preset 'tailorseer'. Did you mean 'taylorseer'?"),
        ("dataclass()", "there is no preset 'dataclass'"),
        ("taylorseer(1, 2, 3)", "too many positional arguments; it takes (interval"),
        ("taylorseer(gap=2)", "unexpected keyword argument 'gap'"),
        ("taylorseer(2 + 3)", "no preset with literal arguments"),
        ("fora(*[3])", "no preset with literal arguments"),
        ("presets.fora(3)", "there is no preset ''"),
        ("fora(__import__('os').getpid())", "no preset with literal arguments"),
        ("fora(" + "(" * 3000, "no preset with literal arguments"),
        ("dbcache(XL)", "size is 'XL'"),
        ("", "0 characters"),
        ("F8" * 3000, "6000 characters"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["fora(x)", "trajectory(0.5, 3)", "lemica([1, 2])"])
def test_arguments_of_the_wrong_type(text: str) -> None:
    with pytest.raises(ConfigTypeError):
        parse_config(text)


@given(st.text(max_size=40) | st.from_regex(r"(DBCache_)?([A-Z]{1,3}[0-9.]{0,4}_?){1,6}", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        made = parse_config(text)
    except CacheDiTError:
        return
    assert isinstance(made, Preset)
