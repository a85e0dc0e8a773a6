"""Gates of other methods: from hand-made signals to the string of computed (C) and skipped (S) steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from tiny.base import output_of
from tiny.image_models import QWEN_IMAGE
from tiny.runs import Denoising, decisions, small_flux
from torch import Tensor

import cache_dit
from cache_dit import TaylorSeerCalibratorConfig
from cache_dit.api import attachments_of
from cache_dit.caching.catalogue import (
    DBPruneConfig,
    DiCacheConfig,
    EasyCacheConfig,
    MagCacheConfig,
    SeaCacheConfig,
    SpeCaConfig,
    SurpriseConfig,
    TeaCacheConfig,
)
from cache_dit.caching.config import CacheConfig, CacheType, Place
from cache_dit.caching.gates.teacache import FLUX_COEFFICIENTS, TeaCacheGate
from cache_dit.caching.maths.gate import Policy, Probe, Reason, Signal, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.spectrum import denoised
from cache_dit.errors import ConfigError, ConfigTypeError
from cache_dit.tune.magnitudes import norm_ratio

NAN, INF = math.nan, math.inf
COMPUTED, SKIPPED = Verdict(False, Reason.NO_HISTORY), Verdict(True, Reason.SIMILAR, 0.0)


def run(
    config: CacheConfig | Policy,
    signals: Iterable[Any],
    *,
    total: int | None = None,
    sigmas: Sequence[float] | None = None,
    outputs: Sequence[Tensor] | None = None,
    errors: Sequence[float] | None = None,
) -> str:
    """The steps of a run, decided as the engine does: one signal for each."""
    policy = config if isinstance(config, Policy) else config.policy()
    gate, state, steps = policy.gate, policy.init(), ""
    for step, signal in enumerate(signals):
        at = Moment(step, float(step), total=total, sigma=None if sigmas is None else sigmas[step])
        verdict = policy.decide(state, at)
        if verdict is None:
            change = policy.measure(state, at, signal)
            verdict = None if change is None else policy.decide(state, at, change)
        if verdict is None or (verdict.skip and "C" not in steps):
            verdict = COMPUTED
        before, state = state, policy.advance(state, at, verdict, signal)
        if verdict.skip and errors is not None and not gate.accepts(state.gate, at, errors[step]):
            verdict = Verdict(False, Reason.REJECTED)
            state = policy.advance(before, at, verdict, signal)
        if not verdict.skip and outputs is not None:
            state = state._replace(gate=gate.sees(state.gate, at, signal, outputs[step]))
        steps += "S" if verdict.skip else "C"
    return steps


def growing(*changes: float) -> list[Tensor]:
    """A start and what follows it by these relative changes."""
    values = [100.0]
    for change in changes:
        values.append(values[-1] * (1.0 + change))
    return [torch.tensor([[value, -value]], dtype=torch.float64) for value in values]


# The rule that four methods share.


@pytest.mark.parametrize(
    ("config", "changes", "total", "expected"),
    [
        pytest.param(TeaCacheConfig(), [0.1] * 8, None, "CSSCSSCSS", id="sum-starts-anew"),
        pytest.param(TeaCacheConfig(), [0.1] * 8, 9, "CSSCSSCSC", id="last-step"),
        pytest.param(TeaCacheConfig(), [0.1, -1 / 11, 0.1, 0.0], None, "CSSCS", id="against-the-step-before"),
        pytest.param(
            TeaCacheConfig(rel_l1_thresh=0.5), [0.125] * 5, None, "CSSSCS", id="threshold-is-exclusive"
        ),
        pytest.param(TeaCacheConfig(), [0.0, 0.0, 9.0, 0.0, 0.0], None, "CSSCSS", id="one-jump"),
        pytest.param(TeaCacheConfig(max_warmup_steps=3), [0.1] * 6, None, "CCCSSCS", id="warm-up"),
        pytest.param(
            TeaCacheConfig(max_continuous_cached_steps=1),
            [0.2, 0.0, 0.2, 0.0],
            None,
            "CSCSC",
            id="limit-in-a-row",
        ),
        pytest.param(
            TeaCacheConfig(rel_l1_thresh=0.0), [0.0] * 3, None, "CCCC", id="threshold-0-never-skips"
        ),
        pytest.param(TeaCacheConfig(), [0.0, NAN, 0.0, 0.0], None, "CSCCC", id="nan-is-computed"),
        pytest.param(
            TeaCacheConfig(coefficients=(0, 0, 0, 2, 0)),
            [0.1] * 5,
            None,
            "CSCSCS",
            id="polynomial-of-the-change",
        ),
        pytest.param(
            TeaCacheConfig(coefficients=(0, 0, 0, 0, 0.1)),
            [0.0] * 5,
            None,
            "CSSCSS",
            id="constant-of-a-polynomial",
        ),
    ],
)
def test_small_changes_are_added_up(
    config: CacheConfig, changes: Sequence[float], total: int | None, expected: str
) -> None:
    assert run(config, growing(*changes), total=total) == expected


def test_polynomial_is_in_numpy_order() -> None:
    gate = TeaCacheGate(0.25, FLUX_COEFFICIENTS)
    assert gate.weight(0.1) == pytest.approx(0.2068473761)
    assert gate.weight(0.0) == 0.264230861
    assert TeaCacheGate(0.25).weight(0.1) == 0.1


def test_reasons_and_changes_of_an_accumulated_rule() -> None:
    policy = TeaCacheConfig(rel_l1_thresh=0.15).policy()
    state = policy.init()
    assert policy.decide(state, Moment(0, 0.0)) == Verdict(False, Reason.WARMUP)
    signals = growing(0.1, 0.1)
    state = policy.advance(state, Moment(0, 0.0), Verdict(False, Reason.WARMUP), signals[0])
    change = policy.measure(state, Moment(1, 1.0), signals[1])
    assert change == pytest.approx(0.1)
    verdict = policy.decide(state, Moment(1, 1.0), change)
    assert verdict == Verdict(True, Reason.SIMILAR, change)
    state = policy.advance(state, Moment(1, 1.0), verdict, signals[1])
    assert policy.decide(state, Moment(2, 2.0)) is None
    assert policy.decide(state, Moment(2, 2.0), 0.1) == Verdict(False, Reason.ACCUMULATED_LIMIT, 0.1)
    assert policy.decide(state, Moment(2, 2.0, total=3)) == Verdict(False, Reason.SCHEDULE)


def test_nothing_is_compared_across_a_step_whose_signal_was_not_taken_or_another_shape() -> None:
    gate = TeaCacheConfig().gate()
    at = Moment(1, 1.0)
    assert gate.measure(gate.init(), at, torch.ones(2)) is None
    state = gate.advance(gate.init(), at, COMPUTED, torch.ones(2))
    assert gate.measure(state, at, torch.ones(2)) == 0.0
    assert gate.measure(state, at, torch.ones(3)) is None
    assert gate.measure(gate.advance(state, at, SKIPPED, None), at, torch.ones(2)) is None


def test_a_gate_keeps_copies_of_what_is_not_its_own() -> None:
    at = Moment(1, 1.0, sigma=0.5)
    for config in (TeaCacheConfig(), SeaCacheConfig(), EasyCacheConfig(), DiCacheConfig(), DBPruneConfig()):
        gate, tensor = config.gate(), torch.ones(1, 4, 2)
        signal = Probe(tensor, tensor) if gate.signal is Signal.PROBE else tensor
        state = gate.advance(gate.init(), at, COMPUTED, signal)
        if gate.looks_at_output:
            state = gate.sees(state, at, torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))
            state = gate.sees(state, at, tensor, torch.ones(1, 4, 2))
        tensor.mul_(3.0)
        assert gate.measure(state, at, signal) == pytest.approx(2.0), config.method


def test_dicache_looks_at_what_leaves_the_first_blocks() -> None:
    zero = torch.zeros(1, 2)
    signals = [Probe(signal, zero) for signal in growing(*[0.15] * 5)]
    assert run(DiCacheConfig(), signals) == "CSSCSS"
    assert run(DiCacheConfig(threshold=0.1), signals) == "CCCCCC"


# SeaCache and its filter.


def wave(cycles: int, size: int = 8) -> Tensor:
    return torch.cos(2 * math.pi * cycles * torch.arange(size) / size).reshape(1, 1, 1, size)


def test_the_filter_weakens_a_wave_by_its_frequency_and_the_noise() -> None:
    for sigma, exponent, cycles in ((0.5, 2.0, 2), (0.9, 3.0, 1), (0.2, 2.0, 4)):
        filtered = denoised(torch.ones(1, 1, 1, 8) + wave(cycles), sigma, exponent)
        constant = filtered.mean()
        kept = (filtered * wave(cycles)).sum() / (wave(cycles) ** 2).sum() / constant
        power = (cycles / 8) ** -exponent
        wiener = (1 - sigma) * power / ((1 - sigma) ** 2 * power + sigma**2)
        assert float(kept) == pytest.approx(wiener * (1 - sigma), rel=1e-4)


def test_the_gains_are_one_in_the_mean() -> None:
    impulse = torch.zeros(2, 3, 4, 6)
    impulse[..., 0, 0] = 1.0
    for sigma in (0.0, 0.3, 0.9, 1.0):
        assert denoised(impulse, sigma, 2.0)[..., 0, 0] == pytest.approx(torch.ones(2, 3), rel=1e-5)


def test_the_filter_leaves_a_clean_latent_as_it_is_and_levels_pure_noise() -> None:
    latent = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denoised(latent, 0.0, 2.0), latent)
    noise = denoised(latent, 1.0, 2.0)
    assert torch.isfinite(noise).all()
    level = noise.mean((2, 3), keepdim=True).expand_as(noise)
    torch.testing.assert_close(noise, level, atol=1e-3, rtol=1e-3)


def test_the_filter_knows_tokens_pictures_and_videos() -> None:
    picture = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    filtered = denoised(picture, 0.6, 2.0)
    torch.testing.assert_close(denoised(picture.unsqueeze(2), 0.6, 2.0).squeeze(2), filtered)
    tokens = picture.flatten(2).transpose(1, 2)
    torch.testing.assert_close(denoised(tokens, 0.6, 2.0), filtered.flatten(2).transpose(1, 2))
    line = tokens[:, :15]
    along = denoised(line.transpose(1, 2).unsqueeze(2), 0.6, 2.0).squeeze(2).transpose(1, 2)
    torch.testing.assert_close(denoised(line, 0.6, 2.0), along)
    assert denoised(picture.bfloat16(), 0.6, 2.0).dtype is torch.float32
    with pytest.raises(ValueError, match=r"\(2, 3\).*give 3, 4 or 5"):
        denoised(torch.ones(2, 3), 0.6, 2.0)


def test_seacache_overlooks_noise_and_sees_the_picture() -> None:
    flat = torch.full((1, 1, 1, 8), 10.0)
    noise, picture = [flat + 3.0 * wave(4) * (-1.0) ** step for step in range(4)], [flat, *[1.1 * flat] * 3]
    config = SeaCacheConfig(threshold=0.05)
    assert run(config, noise, sigmas=[0.98] * 4) == "CSSC"
    assert run(config, noise, sigmas=[0.02] * 4) == "CCCC"
    assert run(config, picture, sigmas=[0.98] * 4) == "CCSS"


def test_seacache_skips_two_in_a_row() -> None:
    assert run(SeaCacheConfig(), [torch.ones(1, 4, 2)] * 9, sigmas=[0.5] * 9, total=9) == "CSSCSSCSC"


def test_seacache_without_noise_levels() -> None:
    signals = [torch.ones(1, 1, 4, 4)] * 4
    config = SeaCacheConfig(threshold=10.0)
    assert config.gate().needs_noise
    assert run(config, signals, total=4) == "CSSC"
    gate, signal = config.gate(), 1.0 + wave(2)
    known = gate.seen(Moment(1, 1.0, sigma=0.75), signal)
    torch.testing.assert_close(gate.seen(Moment(1, 1.0, total=4), signal), known)
    with pytest.raises(ConfigError, match=r"SeaCacheConfig needs the noise level .* set num_inference_steps"):
        run(config, signals)


def test_seacache_takes_steeper_powers_for_videos() -> None:
    at, video = Moment(0, 0.0, sigma=0.5), 1.0 + wave(1).unsqueeze(2)
    gate = SeaCacheConfig().gate()
    torch.testing.assert_close(gate.seen(at, video), denoised(video, 0.5, 3.0))
    torch.testing.assert_close(gate.seen(at, video[:, :, 0]), denoised(video[:, :, 0], 0.5, 2.0))
    other = SeaCacheConfig(exponent=1.0).gate()
    torch.testing.assert_close(other.seen(at, video), denoised(video, 0.5, 1.0))


# EasyCache.


def test_easycache_learns_how_the_output_follows_the_input() -> None:
    inputs = [torch.full((1, 2), 10.0 + step) for step in range(9)]
    # Steps 0 and 1: |v| |dx| / |dv| = 110 * 1 / 10 = 11, so one step of the input is 1/11 of the output.
    # Step 4 after step 1: 140 * 3 / 30 = 14. Sizes of input and output differ, and cancel.
    outputs = [torch.full((1, 3), value) for value in (100.0, 110.0, NAN, NAN, 140.0, NAN, NAN, 140.0, NAN)]
    config = EasyCacheConfig(threshold=0.2, max_warmup_steps=2)
    assert run(config, inputs, outputs=outputs) == "CCSSCSSCS"
    assert run(config, inputs, outputs=outputs, total=4) == "CCSC" + "C" * 5
    gate = config.gate()
    state = gate.init()
    for step in (0, 1):
        at = Moment(step, float(step))
        state = gate.advance(state, at, COMPUTED, inputs[step])
        assert gate.measure(state, at, inputs[step]) is None
        state = gate.sees(state, at, inputs[step], outputs[step])
    assert gate.measure(state, Moment(2, 2.0), inputs[2]) == pytest.approx(1 / 11)
    assert gate.measure(state, Moment(2, 2.0), torch.ones(1, 3)) is None


def test_easycache_computes_until_it_knows_the_rate() -> None:
    inputs, outputs = [torch.full((1, 2), 1.0 + step / 100) for step in range(5)], [torch.ones(1, 2)] * 5
    config = EasyCacheConfig(max_warmup_steps=1)
    # The output does not change at all, so no change of the input matters.
    assert run(config, inputs, outputs=outputs) == "CCSSS"
    changing = [torch.full((1, 2), 1.0 + step) for step in range(5)]
    assert run(config, inputs, outputs=changing) == "CCCCC"
    reshaped = [torch.ones(1, 2), *[torch.ones(1, 3)] * 4]
    assert run(config, inputs, outputs=reshaped) == "CCCSS"


def test_easycache_skips_the_whole_transformer_by_default() -> None:
    config = EasyCacheConfig()
    assert (config.place, config.cfg_diff_compute_separate) == (Place.OUTPUT, False)
    assert config.gate().looks_at_output
    assert config.strify() == "F0B0_W10I1M0MC0_EASY0.05_OUTPUT"


# MagCache.


@pytest.mark.parametrize(
    ("config", "total", "expected"),
    [
        pytest.param(
            MagCacheConfig(ratios=[1.0] * 10), 10, "CCSSSCSSSC", id="part-that-is-computed-and-limit"
        ),
        pytest.param(MagCacheConfig(ratios=[1.0] * 4, retention=0.5), 8, "CCCCSSSC", id="part-of-the-run"),
        pytest.param(
            MagCacheConfig(ratios=[1.0] * 8, retention=0.25), None, "CCSSSCSS", id="part-of-the-table"
        ),
        pytest.param(MagCacheConfig(ratios=[1.0] * 28), 28, "CCCCCC" + "SSSC" * 5 + "SS", id="rounded-part"),
        pytest.param(MagCacheConfig(ratios=[0.98] * 7, retention=0), 7, "CSSCSSC", id="errors-add-up"),
        pytest.param(
            MagCacheConfig(ratios=(1, 1.1, 1 / 1.1, 1.1), threshold=0.15, retention=0),
            4,
            "CSSC",
            id="product",
        ),
        pytest.param(MagCacheConfig(ratios=(1, 0.5, 1), retention=0), 5, "CSCSS", id="nearest-entry"),
        pytest.param(MagCacheConfig(ratios=(1, 0.5, 1), retention=0), None, "CCSSS", id="entry-of-the-step"),
        pytest.param(MagCacheConfig(ratios=(1, 0.5, 1), retention=0), 1, "C", id="one-step"),
        pytest.param(
            MagCacheConfig(ratios=[1.0], retention=0, max_continuous_cached_steps=-1),
            6,
            "CSSSSS",
            id="no-limit",
        ),
    ],
)
def test_magcache(config: MagCacheConfig, total: int | None, expected: str) -> None:
    assert run(config, [None] * len(expected), total=total) == expected


def test_magcache_has_no_table_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"ratios is empty; give .*magcache_ratios"):
        cache_dit.enable_cache(small_flux(), MagCacheConfig())
    given = MagCacheConfig(ratios=[1.0, 1.1])
    assert given.updated(MagCacheConfig().reset(threshold=0.1)).gate().ratios == (1.0, 1.1)


def test_the_ratio_of_norms_is_the_mean_over_tokens() -> None:
    first = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    second = torch.tensor([[[6.0, 8.0], [0.0, 1.0]]])
    assert norm_ratio(second, first) == 1.25
    assert norm_ratio(second.bfloat16(), second) == 1.0


# SpeCa.


@pytest.mark.parametrize(
    ("config", "errors", "total", "expected"),
    [
        pytest.param(
            SpeCaConfig(max_warmup_steps=1, unchecked_drafts=1, decay=1.0),
            [0, 9, 0.05, 0.2, 9, 0.1, 0.1, 0.1, 0.1, 0.1],
            None,
            "CSSCSSSSSC",
            id="first-draft-stands-and-the-limit-holds",
        ),
        pytest.param(
            SpeCaConfig(max_warmup_steps=1, max_continuous_cached_steps=3),
            [9.0] * 9,
            None,
            "CSSCSSCSS",
            id="two-stand",
        ),
        pytest.param(
            SpeCaConfig(max_warmup_steps=1, unchecked_drafts=0),
            [0.05] * 9,
            10,
            "CSSSCCCCC",
            id="tolerance-falls",
        ),
        pytest.param(
            SpeCaConfig(max_warmup_steps=1, unchecked_drafts=0, decay=0.0),
            [0.0, 0.01, 0.011, 0.0],
            4,
            "CSCS",
            id="tolerance-is-never-below-a-hundredth",
        ),
        pytest.param(
            SpeCaConfig(max_warmup_steps=1, unchecked_drafts=1),
            [0, NAN, INF],
            None,
            "CCS",
            id="nan-is-computed",
        ),
    ],
)
def test_speca(config: SpeCaConfig, errors: Sequence[float], total: int | None, expected: str) -> None:
    assert config.gate().verifies
    assert run(config, [None] * len(errors), errors=errors, total=total) == expected


# Surprise.


def residuals(degree: int, count: int) -> list[Tensor]:
    return [torch.full((1, 2), 10.0 + float(step**degree), dtype=torch.float64) for step in range(count)]


@pytest.mark.parametrize(
    ("config", "degree", "expected"),
    [
        pytest.param(
            SurpriseConfig(threshold=0.01, max_warmup_steps=2), 1, "CCSSSSSS", id="a-line-is-no-surprise"
        ),
        pytest.param(
            SurpriseConfig(threshold=0.01, max_warmup_steps=1), 1, "CCSSSSSS", id="two-steps-make-a-line"
        ),
        pytest.param(SurpriseConfig(threshold=0.01, order=0), 1, "CCCCCCCC", id="order-0-is-dbcache"),
        pytest.param(SurpriseConfig(threshold=0.25, order=0), 1, "CCCCSSSC", id="order-0-skips-like-dbcache"),
        pytest.param(SurpriseConfig(threshold=0.01, max_warmup_steps=2), 2, "CCCCCCCC", id="a-curve-is"),
        pytest.param(
            SurpriseConfig(threshold=0.01, order=2, max_warmup_steps=3),
            2,
            "CCCSSSSS",
            id="unless-it-is-expected",
        ),
        pytest.param(
            SurpriseConfig(threshold=0.01, max_warmup_steps=2, max_continuous_cached_steps=2),
            1,
            "CCSSCSSC",
            id="uneven-gaps",
        ),
        pytest.param(SurpriseConfig(threshold=0.0), 0, "CCCCCCCC", id="threshold-0-never-skips"),
    ],
)
def test_surprise(config: SurpriseConfig, degree: int, expected: str) -> None:
    assert run(config, residuals(degree, 8)) == expected


def test_surprise_is_relative_to_the_last_computed_step() -> None:
    gate = SurpriseConfig().gate()
    state = gate.init()
    for time, value in ((0.0, 10.0), (2.0, 14.0)):
        state = gate.advance(state, Moment(0, time), COMPUTED, torch.full((1, 2), value))
    # Expected are 18, and 14 was the last.
    assert gate.measure(state, Moment(4, 4.0), torch.full((1, 2), 25.0)) == pytest.approx(7 / 14)
    assert gate.measure(state, Moment(4, 4.0), torch.ones(1, 3)) is None
    assert gate.advance(state, Moment(3, 3.0), SKIPPED, torch.ones(1, 2)) is state
    assert gate.advance(state, Moment(3, 3.0), COMPUTED, None) is state
    assert gate.advance(state, Moment(3, 3.0), COMPUTED, torch.ones(1, 3)).times == (3.0,)


# DBPrune.


def test_pruning_measures_from_the_last_computed_step() -> None:
    config = DBPruneConfig(max_warmup_steps=1, residual_diff_threshold=0.25)
    assert run(config, growing(*[0.1] * 6)) == "CSSCSSC"
    gate = config.gate()
    assert gate.signal is Signal.ENTRY
    assert DBPruneConfig(residual_diff_threshold=1.0).gate().signal is Signal.NONE


@pytest.mark.parametrize(
    ("options", "changes", "limit"),
    [
        ({}, [0.1] * 5, 0.125),
        ({}, [0.12] * 4, 0.1),
        ({}, [0.12] * 5, 0.15),
        ({}, [0.12, 0.0, 0.12, 0.12, 0.12], 0.1),
        ({}, [0.12, 0.0, 0.12, 0.12, 0.12, 0.12, 9.0], 0.15),
        ({}, [0.04] * 5, 0.1),
        ({}, [0.16] * 5, 0.1),
        ({}, [0.12, 0.12, 0.12, 0.12, NAN], 0.1),
        ({}, [0.12, 0.12, 0.12, 0.12, INF], 0.1),
        ({"max_dynamic_prune_threshold": 0.3}, [0.16] * 5, 0.2),
        ({"max_dynamic_prune_threshold": 0.12}, [0.12] * 5, 0.1),
        ({"dynamic_prune_threshold_relax_ratio": 1.5}, [0.12] * 5, 0.18),
        ({"enable_dynamic_prune_threshold": False}, [0.12] * 5, 0.1),
    ],
)
def test_prune_threshold_follows_the_step(
    options: dict[str, Any], changes: Sequence[float], limit: float
) -> None:
    dynamic = {"enable_dynamic_prune_threshold": True, **options}
    gate = DBPruneConfig(residual_diff_threshold=0.1, **dynamic).gate()
    at = Moment(9, 9.0, changes=list(changes))
    below, above = (gate.decide(None, at, limit + offset) for offset in (-1e-6, 1e-6))
    assert below is not None
    assert above is not None
    assert (below.skip, above.skip) == (True, False)


def test_pruned_regions() -> None:
    config = DBPruneConfig(Fn_compute_blocks=1, non_prune_block_ids=[3, 4, 99])
    regions = config.regions(2, 7)
    assert [(region.start, region.stop) for region in regions] == [(2, 3), (5, 6), (6, 7)]
    assert {region.policy for region in regions} == {config.policy()}
    assert config.each_region_decides


def test_pruning_is_a_family_of_its_own() -> None:
    config = DBPruneConfig(residual_diff_threshold=0.12, enable_dynamic_prune_threshold=True)
    assert (config.cache_type, config.method, config.place) == (CacheType.DBPrune, "DBPrune", Place.BLOCKS)
    assert config.strify() == "F8B0_W8I1M0MC0_P0.12D_BLOCKS"


# Options.


@pytest.mark.parametrize(
    ("kind", "field", "value", "words"),
    [
        (TeaCacheConfig, "rel_l1_thresh", -0.1, "at least 0"),
        (TeaCacheConfig, "coefficients", (1.0, 2.0), "has 2 entries; give 5"),
        (
            TeaCacheConfig,
            "coefficients",
            (1, 2, 3, 4, NAN),
            r"coefficients\[4\] is nan; give a finite number",
        ),
        (SeaCacheConfig, "threshold", NAN, "at least 0"),
        (SeaCacheConfig, "exponent", -1.0, "at least 0"),
        (SeaCacheConfig, "max_continuous_cached_steps", 0, "at least 1, or -1 for no limit"),
        (EasyCacheConfig, "threshold", -1.0, "at least 0"),
        (DiCacheConfig, "threshold", INF, "at least 0"),
        (DiCacheConfig, "Fn_compute_blocks", 0, "at least 1"),
        (MagCacheConfig, "ratios", (1.0, -0.5), r"ratios\[1\] is -0.5; give a number of at least 0"),
        (MagCacheConfig, "threshold", -1.0, "at least 0"),
        (MagCacheConfig, "retention", 1.5, "from 0.0 to 1.0"),
        (SpeCaConfig, "tolerance", -1.0, "at least 0"),
        (SpeCaConfig, "decay", 1.1, "from 0.0 to 1.0"),
        (SpeCaConfig, "unchecked_drafts", -1, "at least 0"),
        (SpeCaConfig, "Bn_compute_blocks", 0, "at least 1"),
        (SurpriseConfig, "threshold", -1.0, "at least 0"),
        (SurpriseConfig, "order", 5, "from 0 to 4"),
        (SurpriseConfig, "Fn_compute_blocks", 0, "at least 1"),
        (DBPruneConfig, "max_dynamic_prune_threshold", -1.0, "at least 0"),
        (DBPruneConfig, "dynamic_prune_threshold_relax_ratio", -1.0, "at least 0"),
        (DBPruneConfig, "non_prune_block_ids", [1, -2], r"non_prune_block_ids\[1\] is -2"),
    ],
)
def test_bad_values_are_named(kind: type[CacheConfig], field: str, value: Any, words: str) -> None:
    given = {"ratios": (1.0, 1.0)} if kind is MagCacheConfig else {}
    with pytest.raises(ConfigError, match=rf"^{field}.*{words}|^{words}"):
        kind(**{**given, field: value})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (TeaCacheConfig, "coefficients", 3.0),
        (TeaCacheConfig, "coefficients", "12345"),
        (MagCacheConfig, "ratios", None),
        (MagCacheConfig, "ratios", (1.0, "1")),
        (DBPruneConfig, "non_prune_block_ids", 3),
        (DBPruneConfig, "enable_dynamic_prune_threshold", 1),
        (SurpriseConfig, "order", 1.0),
        (EasyCacheConfig, "place", "OUTPUT"),
    ],
)
def test_values_of_another_type_are_named(kind: type[CacheConfig], field: str, value: Any) -> None:
    with pytest.raises(ConfigTypeError, match=rf"^{field}.*give "):
        kind(**{field: value})


@pytest.mark.parametrize(
    ("config", "label"),
    [
        (TeaCacheConfig(), "TEA0.25"),
        (TeaCacheConfig(coefficients=FLUX_COEFFICIENTS), "TEA0.25P"),
        (SeaCacheConfig(threshold=0.3), "SEA0.3"),
        (EasyCacheConfig(), "EASY0.05"),
        (DiCacheConfig(), "DI0.4"),
        (MagCacheConfig(ratios=[1.0]), "MAG0.06"),
        (SpeCaConfig(), "SPECA0.1"),
        (SurpriseConfig(order=2), "SUR0.05O2"),
        (DBPruneConfig(), "P0.08"),
    ],
)
def test_short_forms(config: CacheConfig, label: str) -> None:
    assert config.label() == label
    assert config.static is False
    masked = type(config)(
        **{field: getattr(config, field) for field in ("ratios",) if hasattr(config, field)},
        steps_computation_mask=[1, 0, 0],
        steps_computation_policy="static",
    )
    assert masked.policy().gate.signal is Signal.NONE


# Within a model.


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TeaCacheConfig(rel_l1_thresh=99.0), "CSSSSSSSSC"),
        (TeaCacheConfig(rel_l1_thresh=1e-9), "CCCCCCCCCC"),
        (SeaCacheConfig(threshold=99.0), "CSSCSSCSSC"),
        (SeaCacheConfig(threshold=1e-9), "CCCCCCCCCC"),
        (EasyCacheConfig(threshold=99.0, max_warmup_steps=2), "CCSSSSSSSC"),
        (EasyCacheConfig(threshold=1e-9, max_warmup_steps=2), "CCCCCCCCCC"),
        (DiCacheConfig(threshold=99.0), "CSSSSSSSSC"),
        (DiCacheConfig(threshold=1e-9), "CCCCCCCCCC"),
        (MagCacheConfig(ratios=[1.0] * 10), "CCSSSCSSSC"),
        (SurpriseConfig(threshold=1.0), "CCCCSSSSSS"),
        (SurpriseConfig(threshold=1e-9), "CCCCCCCCCC"),
        (DBPruneConfig(Fn_compute_blocks=1, residual_diff_threshold=0.9, max_warmup_steps=2), "CCSSSSSSSS"),
        (DBPruneConfig(Fn_compute_blocks=1, residual_diff_threshold=1e-9), "CCCCCCCCCC"),
    ],
    ids=lambda value: value.strify() if isinstance(value, CacheConfig) else value,
)
def test_a_gate_gets_its_signals(config: CacheConfig, expected: str) -> None:
    config = config.updated(config.reset(num_inference_steps=10))
    model = cache_dit.enable_cache(small_flux(), config, TaylorSeerCalibratorConfig())
    Denoising(model, 0, steps=10).finish()
    assert decisions(model) == expected


@pytest.mark.parametrize(("tolerance", "expected"), [(1e9, "CCCSSSSSCS"), (0.0, "CCCSCSCSCS")])
def test_speca_takes_drafts_back(tolerance: float, expected: str) -> None:
    model = QWEN_IMAGE.build()
    config = SpeCaConfig(tolerance=tolerance, decay=1.0, unchecked_drafts=1)
    cache_dit.enable_cache(model, config, TaylorSeerCalibratorConfig())
    for step in range(10):
        output_of(model, QWEN_IMAGE.inputs(step))
    assert decisions(model) == expected
    record = attachments_of(model)[0].session.latest
    reasons = [step.verdict.reason for step in record.of(0, record.branches[0])]
    assert (Reason.REJECTED in reasons) is (tolerance == 0.0)
