"""The unconditional branch of classifier-free guidance, forecast from the conditional one."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny.pipelines import FLUX_TRUE_CFG
from tiny.runs import Denoising, decisions, small_flux
from torch import Tensor

import cache_dit
from cache_dit import CacheConfig, CalibratorConfig, DBCacheConfig, Place, Request, TaylorSeerCalibratorConfig
from cache_dit.api import attachments_of
from cache_dit.caching.catalogue import FasterCacheCalibratorConfig, IntervalConfig, PABConfig
from cache_dit.caching.forecasters.banded import Banded
from cache_dit.caching.gates.always import Always
from cache_dit.caching.gates.uncond import WindowGate
from cache_dit.caching.maths.gate import Reason
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.spectrum import low_frequencies
from cache_dit.errors import ConfigError
from cache_dit.stats.findings import Problem
from cache_dit.stats.flops import forward_flops

NAMED, ORDERED = ("cond", "uncond"), (None, None)
ALL: dict[str, Any] = {"uncond_window": (0.0, 1.0)}


def every(interval: int | None, **options: Any) -> CacheConfig:
    """The unconditional branch alone, behind one step of warm-up."""
    given = {"residual_diff_threshold": 0.0, "Fn_compute_blocks": 1, "max_warmup_steps": 1}
    return DBCacheConfig(**ALL | given | options, uncond_interval=interval)


def cached(config: CacheConfig, calibrator: CalibratorConfig | None = None) -> Any:
    return cache_dit.enable_cache(small_flux(), config, calibrator)


def outputs(run: Denoising) -> list[list[Tensor]]:
    """What the forwards of each step returned."""
    made = []
    while run.step < run.steps:
        step = [run.forward(place) for place in range(len(run.branches))]
        made.append(step)
        run._take(step)
    return made


def letters(target: Any, branch: str) -> str:
    """One letter for each forward of a branch: C computed, S skipped."""
    record = attachments_of(target)[0].session.latest
    return "".join("CS"[step.verdict.skip] for step in record.steps if step.branch == branch)


def close(left: Tensor, right: Tensor) -> bool:
    return bool(torch.allclose(left, right, rtol=0.0, atol=1e-6))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"interval": 1}, "CCCCCCCC"),
        ({"interval": 2}, "CSCSCSCS"),
        ({"interval": 3}, "CSSCSSCS"),
        ({"interval": 5, "max_warmup_steps": 2}, "CCSSSSCS"),
        ({"interval": 3, "steps_computation_mask": [1, 0, 1, 0, 0, 0, 1, 0]}, "CSCSSCCS"),
        # Noise levels 1, 7/8, ..., 1/8.
        ({"interval": 5, "uncond_window": (0.0, 0.641)}, "CCCSSSSC"),
        ({"interval": 5, "uncond_window": (0.3, 0.7)}, "CCCSSSCC"),
    ],
)
def test_the_schedule(options: dict[str, Any], expected: str) -> None:
    model = cached(every(**options))
    Denoising(model, 0, 8, NAMED, Request(8, sigmas=[1.0 - step / 8 for step in range(9)])).finish()
    assert letters(model, "uncond") == expected
    assert letters(model, "cond") == "CCCCCCCC"


def test_the_window_by_timesteps() -> None:
    model = cached(every(5, uncond_window=(0.3, 0.7)))
    Denoising(model, 0, 8, NAMED).finish()
    assert letters(model, "uncond") == "CCCSSSCC"


@pytest.mark.parametrize(("total", "skips"), [(8, [False, True, True, False]), (None, [False] * 4)])
def test_without_noise_levels_the_window_is_one_of_shares(total: int | None, skips: list[bool]) -> None:
    gate = WindowGate(Always(), 0.3, 0.7)
    verdicts = [gate.decide(None, Moment(step, float(step), total=total), None) for step in (2, 3, 5, 6)]
    assert [verdict is not None and verdict.skip for verdict in verdicts] == skips


def test_interval_1_is_the_uncached_run() -> None:
    plain = Denoising(small_flux(), 3, 5, NAMED).finish()
    assert torch.equal(Denoising(cached(every(1)), 3, 5, NAMED).finish(), plain)


@pytest.mark.parametrize("branches", [NAMED, ORDERED])
def test_a_skipped_branch_is_the_other_one_and_the_last_difference(branches: Sequence[str | None]) -> None:
    options = {} if branches == NAMED else {"enable_separate_cfg": True}
    made = outputs(Denoising(cached(every(3, **options)), 0, 6, branches))
    for step in (1, 2, 4, 5):
        cond, uncond = made[step]
        before, behind = made[step - step % 3]
        assert close(uncond, cond + (behind - before))
        assert not close(uncond, behind)


def test_a_branch_that_is_called_first_repeats_itself() -> None:
    model = cached(every(3, enable_separate_cfg=True, cfg_compute_first=True))
    made = outputs(Denoising(model, 0, 6, ORDERED))
    assert letters(model, "uncond") == "CSSCSS"
    for step in (1, 2, 4, 5):
        assert torch.equal(made[step][0], made[step - step % 3][0])


def test_hidden_states_repeat_as_well() -> None:
    made = outputs(
        Denoising(cached(every(2), CalibratorConfig(calibrator_cache_type="hidden_states")), 0, 4, NAMED)
    )
    assert torch.equal(made[1][1], made[0][1])


def test_the_pipeline_does_not_reach_what_is_kept() -> None:
    made = outputs(Denoising(cached(every(2)), 0, 4, NAMED))
    run, again = Denoising(cached(every(2)), 0, 4, NAMED), []
    while run.step < run.steps:
        cond = run.forward(0)
        kept = cond.clone()
        cond.zero_()
        again.append([kept, run.forward(1)])
        run._take(again[-1])
    assert all(
        torch.equal(a, b)
        for one, other in zip(made, again, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_the_conditional_branch_goes_on_by_the_rest() -> None:
    inner = IntervalConfig(interval=2, max_warmup_steps=1, Fn_compute_blocks=1, uncond_interval=4, **ALL)
    model = cached(inner)
    Denoising(model, 0, 8, NAMED).finish()
    assert letters(model, "cond") == "CSCSCSCS"
    assert letters(model, "uncond") == "CSSSCSSS"


def test_a_branch_that_was_away_is_computed_in_full() -> None:
    """Outside of the window it goes on by the rest."""
    window = {"uncond_window": (0.0, 0.6)}
    model = cached(IntervalConfig(interval=3, max_warmup_steps=1, uncond_interval=2, **window))
    Denoising(model, 0, 8, NAMED).finish()
    attached = attachments_of(model)[0]
    uncond = [step for step in attached.session.latest.steps if step.branch == "uncond"]
    whole = attached.session.plan.uncond.segment
    shown = ["C" if not step.verdict.skip else "W" if step.segment == whole else "S" for step in uncond]
    # From step 4 on, at noise level 0.5, the branch is skipped whole on every other step.
    assert "".join(shown) == "CSSCWCWC"
    assert [step.verdict.reason is Reason.AWAY for step in uncond] == [step in (5, 7) for step in range(8)]


def test_both_may_be_whole() -> None:
    inner = IntervalConfig(interval=2, max_warmup_steps=1, place=Place.OUTPUT, uncond_interval=4, **ALL)
    model = cached(inner)
    made = outputs(Denoising(model, 0, 6, NAMED))
    assert letters(model, "cond") == "CSCSCS"
    assert letters(model, "uncond") == "CSSSCS"
    assert close(made[2][1], made[2][0] + made[0][1] - made[0][0])


def test_summary_and_flops(capsys: pytest.CaptureFixture[str]) -> None:
    model = cached(every(4))
    Denoising(model, 0, 8, NAMED).finish()
    (stats,) = cache_dit.summary(model)
    assert stats.cfg_cached_steps == [1, 2, 3, 5, 6, 7]
    assert stats.cached_steps == []
    assert stats.flops_saved == pytest.approx(6 / 16)
    assert stats.pruned is None
    assert stats.lists[-1] == "unconditional branch"
    assert stats.config.endswith("_U4_T0O0")
    assert "pruned" not in capsys.readouterr().out
    example = attachments_of(model)[0].session.example
    assert stats.flops == forward_flops(model, *example)[model]


def test_a_pipeline_with_branch_names() -> None:
    pipe = FLUX_TRUE_CFG.build()
    plain = FLUX_TRUE_CFG.call(pipe, 0, 6)
    cache_dit.enable_cache(pipe, every(2))
    made = FLUX_TRUE_CFG.call(pipe, 0, 6)
    assert letters(pipe, "uncond") == "CSCSCS"
    assert not torch.equal(made, plain)
    assert made.isfinite().all()
    assert cache_dit.diagnose(pipe, logging=False) == []


@pytest.mark.parametrize(
    ("branches", "words"),
    [
        ((None,), "guidance is off, or both branches are in one batch"),
        (ORDERED, "set enable_separate_cfg=True"),
    ],
)
def test_no_unconditional_branch_is_a_finding(branches: Sequence[str | None], words: str) -> None:
    model = cached(every(2, num_inference_steps=6))
    Denoising(model, 0, 6, branches).finish()
    assert "S" not in decisions(model)
    found = [one for one in cache_dit.diagnose(model, logging=False) if one.problem is Problem.BRANCHES]
    assert any(words in one.text for one in found)


def test_nothing_is_kept_behind_the_run() -> None:
    gc.collect()
    gc.disable()
    try:
        model = cached(every(2))
        run = Denoising(model, 0, 6, NAMED, Request(6))
        state = None
        while run.step < run.steps:
            cond = run.forward(0)
            state = next(iter(run.request.states.values()))
            if run.step + 1 < run.steps:
                assert state.guide is not None
            run._take([cond, run.forward(1)])
        assert state is not None
        assert state.guide is None
        assert not state.branches
    finally:
        gc.enable()


def test_the_difference_is_forecast_by_the_calibrator() -> None:
    config = every(3, max_warmup_steps=3, uncond_window=(0.0, 1.0))
    made = outputs(Denoising(cached(config, TaylorSeerCalibratorConfig(taylorseer_order=1)), 0, 6, NAMED))
    change = [uncond - cond for cond, uncond in made]
    assert close(change[3], 2 * change[2] - change[1])
    assert close(change[4], 3 * change[2] - 2 * change[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interval": 0}, "uncond_interval is 0; give a whole number of at least 1"),
        ({"interval": 2, "uncond_window": (0.5, 2)}, "uncond_window.1. is 2; give a number from 0.0 to 1.0"),
        ({"interval": 2, "uncond_window": (0.5, 0.5)}, "give a low and a higher noise level"),
        ({"interval": 2, "enable_separate_cfg": False}, "but enable_separate_cfg is False"),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        every(**options)


# --- frequencies ---


def test_low_frequencies_of_a_wave() -> None:
    place = torch.arange(16) / 16
    slow, fast = torch.cos(2 * torch.pi * 3 * place), torch.cos(2 * torch.pi * 4 * place)
    picture = (slow + fast)[None, None, :, None].expand(2, 3, 16, 16)
    # A fifth of 16 is 3.2 waves, so 3.
    assert torch.allclose(
        low_frequencies(picture, 0.2), slow[None, None, :, None].expand_as(picture), atol=1e-5
    )
    tokens = picture.flatten(2).mT
    assert torch.allclose(
        low_frequencies(tokens, 0.2).mT, low_frequencies(picture, 0.2).flatten(2), atol=1e-5
    )


@pytest.mark.parametrize(
    ("sigma", "low", "high"), [(0.95, 1, 1), (0.5, 1.5, 1), (0.2, 1.5, 2), (0.05, 1, 2), (None, 1, 1)]
)
def test_bands_are_weighted_by_noise_level(sigma: float | None, low: float, high: float) -> None:
    value = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    forecaster = Banded(1.5, 2.0)
    state = forecaster.observe(forecaster.init(), Moment(0, 0.0, sigma=0.97), value)
    at = Moment(1, 1.0, sigma=sigma)
    slow = low_frequencies(value, 0.2)
    for _ in range(2):
        # Twice: the weights do not multiply.
        assert torch.allclose(forecaster.predict(state, at), low * slow + high * (value - slow), atol=1e-5)


def test_equal_weights_of_any_shape() -> None:
    value = torch.ones(4)
    assert torch.equal(Banded(1.1, 1.1).predict(value, Moment(1, 1.0, sigma=0.2)), value * 1.1)
    assert torch.equal(Banded(1.1, 1.3).predict(value, Moment(1, 1.0, sigma=0.2)), value)


def test_fastercache() -> None:
    calibrator = FasterCacheCalibratorConfig(weight=0.5)
    forecaster = calibrator.method()
    state = forecaster.init()
    for step, value in ((0, 1.0), (2, 3.0)):
        state = forecaster.observe(state, Moment(step, float(step)), torch.tensor([value]))
    assert forecaster.predict(state, Moment(3, 3.0)).tolist() == [4.0]
    rising = FasterCacheCalibratorConfig().method()
    assert rising.predict(state, Moment(3, 3.0, 12.0)).tolist() == [3.5]
    model = cached(PABConfig(window=(0.0, 1.0), uncond_interval=2, **ALL), calibrator)
    Denoising(model, 0, 6, NAMED, Request(6, sigmas=[1.0 - step / 6 for step in range(7)])).finish()
    (stats,) = cache_dit.summary(model, logging=False)
    assert stats.config == "PAB_F0B0_W0I1M0MC0_S2T4C6M1_ATTENTION_U2_FasterCacheW0.5"
    assert stats.cfg_cached_steps == [1, 3, 5]


@pytest.mark.parametrize("prefix", ["", "pred_"])
def test_branches_of_a_guider_are_known_by_their_names(prefix: str) -> None:
    model = cached(every(3, max_warmup_steps=1))
    Denoising(model, 0, 9, (f"{prefix}cond", f"{prefix}uncond")).finish()
    assert letters(model, "uncond") == "CSSCSSCSS"
    assert cache_dit.diagnose(model, logging=False) == []


@pytest.mark.parametrize("order", [NAMED, NAMED[::-1]])
def test_a_branch_goes_on_by_itself_where_guidance_ends(order: tuple[str, ...]) -> None:
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=2,
        residual_diff_threshold=0.7,
        cfg_diff_compute_separate=False,
    )
    model, request = cached(config), Request(num_inference_steps=10)
    run = Denoising(model, 0, 10, order, request)
    for _ in range(5):
        run.advance()
    last = order.index("cond")
    while run.step < 10:
        run._take([run.forward(last)])
    record = attachments_of(model)[0].session.latest
    changes = [step.verdict.change for step in record.steps if step.branch == "cond"]
    alone = [change for change in changes[5:] if change is not None]
    assert len(alone) >= 3
    assert len(set(alone)) == len(alone), "each is measured, and none is that of the step before"
    assert len(letters(model, "cond")) == 10
    assert len(attachments_of(model)[0].session.live._runs) == 0, (
        "both branches are freed behind the last step"
    )
