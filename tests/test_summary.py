"""The summary: its figures against hand counts and real counters, and its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny.image_models import FLUX, QWEN_IMAGE, SD3
from tiny.models import TinyModel, output_of
from tiny.pipelines import FLUX_TRUE_CFG
from tiny.video_models import WAN
from torch.utils.flop_counter import FlopCounterMode

from cache_dit import (
    CacheStats,
    CalibratorConfig,
    DBCacheConfig,
    IntervalConfig,
    ParamsModifier,
    Request,
    SurpriseConfig,
    TaylorSeerCalibratorConfig,
    TeaCacheConfig,
    ToleranceConfig,
    enable_cache,
    summary,
)
from cache_dit.caching.gates.residual import ResidualGate
from cache_dit.stats import stats as stats_module
from cache_dit.stats.flops import SDPA_MAPPING, forward_flops

CHANGES = (0.01, 0.04, 0.02, 0.25, 0.03)


def config(**fields: Any) -> DBCacheConfig:
    return DBCacheConfig(
        **{"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 1.0} | fields
    )


def run(
    tiny: TinyModel,
    steps: int,
    cache: DBCacheConfig,
    calibrator: CalibratorConfig | None = None,
    variant: str = "",
    **options: Any,
) -> Any:
    """A model after one run with a cache."""
    model = enable_cache(tiny.build(), cache, calibrator, **options)
    with Request(steps):
        for seed in range(steps):
            output_of(model, (tiny.variants[variant] if variant else tiny.inputs)(seed))
    return model


@pytest.fixture
def no_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes a second, and most tests do not look at it."""
    monkeypatch.setattr(stats_module, "forward_flops", lambda *_: None)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, no_flops: None) -> Any:
    """A model after a run in which these changes were measured: the threshold is passed once."""
    changes = iter(CHANGES)
    monkeypatch.setattr(ResidualGate, "measure", lambda *_: next(changes))
    return run(QWEN_IMAGE, 6, config(residual_diff_threshold=0.08), TaylorSeerCalibratorConfig())


def test_figures_of_a_run(measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (stats,) = summary(measured, logging=False)
    assert capsys.readouterr().out == ""
    assert stats.model == "QwenImageTransformer2DModel"
    assert stats.lists == ("transformer_blocks",)
    assert stats.config == "DBCache_F1B0_W1I1M0MC0_R0.08_T1O1"
    assert stats.total_steps == 6
    assert stats.branches == ("",)
    assert stats.cached_steps == stats.skipped(0) == [1, 2, 3, 5]
    assert stats.residual_diffs == stats.changes(0) == dict(enumerate(CHANGES, start=1))
    assert stats.cfg_cached_steps == []
    assert stats.cfg_residual_diffs == {}


def test_table(measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    summary(measured)
    head, _, table = capsys.readouterr().out.partition("\n\n")
    assert head.splitlines()[:2] == [
        "QwenImageTransformer2DModel: transformer_blocks",
        "DBCache_F1B0_W1I1M0MC0_R0.08_T1O1_S4",
    ]
    assert head.splitlines()[2].endswith("skipped steps are filled with TaylorSeer of order 1 on residual")
    # Percentiles interpolate between the two nearest values.
    assert table.splitlines() == [
        "| Steps | Cached Steps | Diffs Min | Diffs P25 | Diffs P50 | Diffs P75 | Diffs P95 | Diffs Max |",
        "| ----- | ------------ | --------- | --------- | --------- | --------- | --------- | --------- |",
        "| 6     | 4            | 0.010     | 0.020     | 0.030     | 0.040     | 0.208     | 0.250     |",
    ]


def test_details(measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    summary(measured, details=True)
    details = capsys.readouterr().out.rstrip().split("\n\n")[2]
    assert details.splitlines() == [
        "| Step | Blocks   | Diff   | Why                         |",
        "| ---- | -------- | ------ | --------------------------- |",
        "| 0    | computed |        | warm-up                     |",
        "| 1    | cached   | 0.0100 | change under threshold      |",
        "| 2    | cached   | 0.0400 | change under threshold      |",
        "| 3    | cached   | 0.0200 | change under threshold      |",
        "| 4    | computed | 0.2500 | change at or over threshold |",
        "| 5    | cached   | 0.0300 | change under threshold      |",
    ]


@pytest.mark.usefixtures("no_flops")
def test_branches_have_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = enable_cache(FLUX_TRUE_CFG.build(), config(max_warmup_steps=2))
    FLUX_TRUE_CFG.call(pipe, 0, 5)
    (stats,) = summary(pipe)
    assert stats.branches == ("cond", "uncond")
    assert stats.total_steps == 5
    assert stats.cached_steps == stats.cfg_cached_steps == [2, 3, 4]
    assert [len(stats.of(place)) for place in range(3)] == [5, 5, 0]
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert [line.split("|")[1:4] for line in table if "cond" in line] == [
        [" cond   ", " 5     ", " 3            "],
        [" uncond ", " 5     ", " 3            "],
    ]


@pytest.mark.usefixtures("no_flops")
def test_nothing_measured_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    summary(run(QWEN_IMAGE, 3, config()))
    assert capsys.readouterr().out.splitlines()[-1].split("|")[3:] == [" -         "] * 6 + [""]


def test_nothing_has_run(capsys: pytest.CaptureFixture[str]) -> None:
    model = enable_cache(QWEN_IMAGE.build())
    assert summary(model) == []
    assert capsys.readouterr().out == (
        "Note: QwenImageTransformer2DModel: not run: no forward since enable_cache; run the pipeline, then "
        "ask again.\n"
    )


@pytest.mark.usefixtures("no_flops")
def test_flops_that_cannot_be_counted(capsys: pytest.CaptureFixture[str]) -> None:
    (stats,) = summary(run(QWEN_IMAGE, 2, config()))
    assert stats.flops is None
    assert stats.flops_saved is None
    assert "FLOPs saved (estimated): not counted" in capsys.readouterr().out


# --- FLOPs ---


def counted(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False, custom_mapping=SDPA_MAPPING) as counter:
        work()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("tiny", "variant", "fields"),
    [
        pytest.param(FLUX, "", {}, id="flux"),
        pytest.param(FLUX, "controlnet", {"Fn_compute_blocks": 2, "Bn_compute_blocks": 1}, id="flux-F2B1"),
        pytest.param(
            FLUX,
            "",
            {"steps_computation_mask": [1, 0, 1, 0], "steps_computation_policy": "static"},
            id="flux-static",
        ),
        pytest.param(SD3, "skip_layers", {}, id="sd3-blocks-left-out"),
        pytest.param(WAN, "", {}, id="wan"),
    ],
)
def test_flops_saved_are_those_of_a_real_counter(
    tiny: TinyModel, variant: str, fields: dict[str, Any]
) -> None:
    steps = 4
    model = tiny.build()
    inputs = [(tiny.variants[variant] if variant else tiny.inputs)(seed) for seed in range(steps)]
    uncached = counted(lambda: [output_of(model, kwargs) for kwargs in inputs])
    enable_cache(model, config(**fields))
    with Request(steps):
        cached = counted(lambda: [output_of(model, kwargs) for kwargs in inputs])
    (stats,) = summary(model, logging=False)
    assert stats.flops == uncached / steps
    assert cached < uncached
    assert stats.flops_saved == pytest.approx(1 - cached / uncached, rel=1e-9)


def test_flops_saved_of_lists_that_decide_for_themselves() -> None:
    each = [ParamsModifier(cache_config=DBCacheConfig().reset(max_cached_steps=count)) for count in (1, 2)]
    first, second = summary(run(FLUX, 4, config(), params_modifiers=each), logging=False)
    assert [len(first.cached_steps), len(second.cached_steps)] == [1, 2]
    model = FLUX.build()
    flops = forward_flops(model, (), FLUX.inputs(0))
    assert flops is not None
    for stats, blocks, skipped in (
        (first, model.transformer_blocks, 1),
        (second, model.single_transformer_blocks, 2),
    ):
        saved = skipped * sum(flops[block] for block in list(blocks)[1:])
        assert stats.flops_saved == pytest.approx(saved / (4 * flops[model]))


def test_counting_flops_changes_nothing() -> None:
    model, inputs = FLUX.build(), FLUX.inputs(0)
    before = output_of(model, inputs)
    random_state = torch.get_rng_state()
    flops = forward_flops(model, (), inputs)
    assert flops is not None
    assert flops[model] == counted(lambda: output_of(model, inputs))
    assert all(map(torch.equal, output_of(model, inputs), before))
    assert torch.equal(torch.get_rng_state(), random_state)


# --- bytes ---

IMAGE, TEXT = 16, 5
TOKEN_BYTES = 2 * 32 * 4
"""Batch x width x four bytes."""


@pytest.mark.usefixtures("no_flops")
@pytest.mark.parametrize(
    ("fields", "calibrator", "tokens", "scalars"),
    [
        pytest.param({}, CalibratorConfig(), IMAGE + TEXT, 0, id="reuse"),
        pytest.param(
            {"residual_diff_threshold": 0.9},
            CalibratorConfig(),
            2 * IMAGE + TEXT,
            1,
            id="and-signal-with-norm",
        ),
        pytest.param({}, TaylorSeerCalibratorConfig(), 2 * (IMAGE + TEXT), 0, id="taylor1"),
        pytest.param(
            {"max_warmup_steps": 3},
            TaylorSeerCalibratorConfig(taylorseer_order=2, calibrator_cache_type="hidden_states"),
            3 * (IMAGE + TEXT),
            0,
            id="taylor2-hidden_states",
        ),
        pytest.param(
            {},
            TaylorSeerCalibratorConfig(enable_encoder_calibrator=False),
            2 * IMAGE + TEXT,
            0,
            id="taylor1-main-stream-only",
        ),
        pytest.param({"residual_diff_threshold": 0.0}, CalibratorConfig(), 0, 0, id="never-skipped"),
    ],
)
def test_state_bytes(fields: dict[str, Any], calibrator: CalibratorConfig, tokens: int, scalars: int) -> None:
    model = run(FLUX, 5, config(**{"max_warmup_steps": 2} | fields), calibrator)
    (stats,) = summary(model, logging=False)
    assert stats.state_bytes == tokens * TOKEN_BYTES + scalars * 4


@pytest.mark.usefixtures("no_flops")
def test_state_bytes_of_two_branches_add_up() -> None:
    pipe = enable_cache(FLUX_TRUE_CFG.build(), config(max_warmup_steps=2))
    FLUX_TRUE_CFG.call(pipe, 0, 5)
    (stats,) = summary(pipe, logging=False)
    assert stats.state_bytes == 2 * (IMAGE + TEXT) * TOKEN_BYTES // 2, "two branches of batch 1"


def test_stats_are_plain_values(measured: Any) -> None:
    (stats,) = summary(measured, logging=False)
    assert isinstance(stats, CacheStats)
    assert stats == summary(measured, logging=False)[0]
    with pytest.raises(AttributeError):
        stats.state_bytes = 0  # type: ignore[misc]


def test_details_end_with_bars(measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    summary(measured, details=True)
    assert capsys.readouterr().out.rstrip().split("\n\n")[3].splitlines() == [
        "Diffs by step, █ is 0.250; residual_diff_threshold 0.08 is ▃; C computed, s skipped",
        " ▁▂▁█▁",
        "CsssCs",
    ]


@pytest.mark.usefixtures("no_flops")
def test_bars_of_branches_share_a_scale(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = iter((0.1, 0.8, 0.2, float("inf")))
    monkeypatch.setattr(ResidualGate, "measure", lambda *_: next(changes))
    pipe = enable_cache(FLUX_TRUE_CFG.build(), config(residual_diff_threshold=0.5))
    FLUX_TRUE_CFG.call(pipe, 0, 3)
    summary(pipe, details=True)
    assert capsys.readouterr().out.split("\n\n")[3].rstrip().splitlines() == [
        "Diffs by step, █ is 0.800; residual_diff_threshold 0.5 is ▅; C computed, s skipped",
        "cond    ▁▂",
        "       Css",
        "uncond  ██",
        "       CCC",
    ]


@pytest.mark.usefixtures("no_flops")
def test_no_bars_where_nothing_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    (stats,) = summary(run(QWEN_IMAGE, 3, config()), details=True)
    assert stats.limit is None
    assert "Diffs by step" not in capsys.readouterr().out


def test_limits_of_sums_and_of_single_changes() -> None:
    limits = [
        stats_module._limit(one)
        for one in (
            DBCacheConfig(),
            DBCacheConfig(residual_diff_threshold=1.0),
            TeaCacheConfig(),
            ToleranceConfig(),
            SurpriseConfig(),
            IntervalConfig(),
        )
    ]
    assert limits == [
        ("residual_diff_threshold", 0.08, False),
        None,
        ("rel_l1_thresh", 0.25, True),
        ("tolerance", 0.05, False),
        ("threshold", 0.05, False),
        None,
    ]
