"""Forecasters of the literature on functions whose forecasts are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tiny.runs import Denoising, decisions, small_flux
from torch import Tensor

import cache_dit
from cache_dit import DBCacheConfig
from cache_dit.caching.catalogue import (
    CalibratorConfig,
    DiCacheCalibratorConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    FreqCaCalibratorConfig,
    HiCacheCalibratorConfig,
    SpectrumCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from cache_dit.caching.forecasters.dicache import Aligned
from cache_dit.caching.forecasters.dmd import DMD
from cache_dit.caching.forecasters.foca import FoCa
from cache_dit.caching.forecasters.freqca import FreqCa
from cache_dit.caching.forecasters.hicache import HiCache
from cache_dit.caching.forecasters.newton import Newton
from cache_dit.caching.forecasters.reuse import Reuse
from cache_dit.caching.forecasters.spectrum import Spectrum
from cache_dit.caching.forecasters.taylorseer import TaylorSeer
from cache_dit.caching.maths import modes
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.gate import Probe
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.weights import chebyshev, combine, ladder, scaled_hermite, weighted_sum
from cache_dit.errors import ConfigError, ConfigTypeError

Function = Callable[[float], Tensor]


def row(*values: float) -> Tensor:
    """One token of one item: `[1, 1, channels]`."""
    return torch.tensor([[values]], dtype=torch.float64)


def at(time: float, **more: Any) -> Moment:
    return Moment(int(time), time, **more)


def forecast(forecaster: Forecaster, function: Function, nodes: Sequence[float], time: float) -> Tensor:
    state = forecaster.init()
    for node in nodes:
        state = forecaster.observe(state, at(node), function(node))
    return forecaster.predict(state, at(time))


def error(forecaster: Forecaster, function: Function, nodes: Sequence[float], time: float) -> float:
    return float((forecast(forecaster, function, nodes, time) - function(time)).abs().max())


def line(time: float) -> Tensor:
    return row(2.0 + 3.0 * time, 5.0 - 0.5 * time)


def square(time: float) -> Tensor:
    return row(time**2)


def growing(time: float) -> Tensor:
    return row(math.exp(time))


def waving(time: float) -> Tensor:
    return row(math.sin(time + 1.5))


# TaylorSeer as published


def test_the_published_differences_stay_behind_a_parabola() -> None:
    made = [forecast(TaylorSeer(2), square, (0, 4, 8, 12), time).item() for time in (13, 14, 15)]
    assert made == [165.0, 188.0, 213.0]
    made = [forecast(Newton(2), square, (0, 4, 8, 12), time).item() for time in (13, 14, 15)]
    assert made == [169.0, 196.0, 225.0]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_published_forecast_is_that_of_a_ladder_kept_from_step_to_step(order: int) -> None:
    nodes = (0, 1, 3, 4, 8, 10)
    kept: list[Tensor] = []
    for index, node in enumerate(nodes):
        fresh = [growing(node / 9) + square(node / 3)]
        for old in kept[:order]:
            fresh.append((fresh[-1] - old) / (node - nodes[index - 1]))
        kept = fresh
        made = forecast(TaylorSeer(order), lambda t: growing(t / 9) + square(t / 3), nodes[: index + 1], 12)
        expected = sum(term * (12 - node) ** i / math.factorial(i) for i, term in enumerate(kept))
        torch.testing.assert_close(made, expected)


def test_the_ladder_divides_by_the_latest_gap() -> None:
    assert ladder((8.0, 6.0, 2.0)) == [[1, 0, 0], [1 / 2, -1 / 2, 0], [1 / 4, -3 / 8, 1 / 8]]


def test_half_precision_values_are_summed_in_float32() -> None:
    values = [torch.full((1, 1, 64), value, dtype=torch.bfloat16) for value in (256.0, 1.0, 256.0)]
    # In bfloat16 256 + 1 is 256.
    assert weighted_sum(values, (1.0, 1.0, -1.0)).unique().tolist() == [1.0]


def test_combine_stops_at_the_shorter() -> None:
    assert combine([[1, 0], [0, 1]], [2.0, 3.0, 4.0]) == [2.0, 3.0]


def test_a_value_of_no_weight_is_left_out() -> None:
    assert weighted_sum([row(2.0), row(math.nan)], (1.5, 0.0)).item() == 3.0


def test_newton_rounds_a_half_precision_forecast_once() -> None:
    def curved(time: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(4, 1, 8, 16, dtype=torch.float64, generator=generator)
        return sum(weights[power] * (time / 9) ** power for power in range(4)).bfloat16()  # type: ignore[union-attr]

    made = forecast(Newton(3), curved, (0, 2, 5, 6), 8)
    exact = forecast(Newton(3), lambda time: curved(time).double(), (0, 2, 5, 6), 8)
    # Half a unit in the last of 8 bits.
    torch.testing.assert_close(made.double(), exact, rtol=2**-8, atol=1e-6)


# FoCa


@pytest.mark.parametrize("gap", [2, 3, 4, 5, 6])
def test_foca_is_exact_on_a_line_where_reuse_falls_behind(gap: int) -> None:
    nodes = [*range(8), *range(8 + gap - 1, 40, gap)]
    for count in range(2, len(nodes)):
        for time in range(nodes[count - 1] + 1, nodes[count - 1] + gap):
            assert error(FoCa(), line, nodes[:count], time) < 1e-12
            assert error(Reuse(), line, nodes[:count], time) > 1.0


@pytest.mark.parametrize("function", [growing, waving])
def test_focas_error_falls_with_the_square_of_the_gap(function: Function) -> None:
    def shrunk(factor: float, forecaster: Forecaster) -> float:
        return error(forecaster, lambda time: function(factor * time), (0, 3, 7), 9)

    for factor in (1 / 64, 1 / 128):
        assert shrunk(factor / 2, FoCa()) == pytest.approx(shrunk(factor, FoCa()) / 4, rel=0.1)
    # Of the bend that the line leaves out it takes a part, so it stands between the line and the parabola.
    assert shrunk(1 / 64, Newton(2)) < shrunk(1 / 64, FoCa()) < 0.8 * shrunk(1 / 64, Newton(1))


def test_foca_takes_the_part_of_the_bend_that_it_says() -> None:
    # Line 76, parabola 81, w = 1/4: 76 + 5 / 2.5.
    assert forecast(FoCa(), square, (0, 4, 8), 9).item() == pytest.approx(78.0)


def test_foca_is_bdf2_and_then_heun() -> None:
    (t0, t1, t2), time = (11.0, 7.0, 5.0), 14.0
    f0, f1, f2 = growing(t0 / 6), growing(t1 / 6), growing(t2 / 6)

    def bdf2_slope(newest: Tensor, middle: Tensor, oldest: Tensor, h: float, before: float) -> Tensor:
        w = h / before
        return ((1 + 2 * w) * newest - (1 + w) ** 2 * middle + w**2 * oldest) / (h * (1 + w))

    h, w = time - t0, (time - t0) / (t0 - t1)
    lagged = (f0 - f1) / (t0 - t1)
    predictor = ((1 + w) ** 2 * f0 - w**2 * f1 + h * (1 + w) * lagged) / (1 + 2 * w)
    start = bdf2_slope(f0, f1, f2, t0 - t1, t1 - t2)
    end = bdf2_slope(predictor, f0, f1, h, t0 - t1)
    made = forecast(FoCa(), lambda t: growing(t / 6), (t2, t1, t0), time)
    torch.testing.assert_close(made, f0 + h / 2 * (start + end))


def test_foca_forecasts_do_not_build_on_each_other() -> None:
    state = FoCa().init()
    for node in (0, 1, 3):
        state = FoCa().observe(state, at(node), growing(node / 3))
    for time in (4, 5, 6):
        FoCa().predict(state, at(time))
    assert torch.equal(FoCa().predict(state, at(7)), forecast(FoCa(), lambda t: growing(t / 3), (0, 1, 3), 7))


# HiCache


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("sigma", "factor"), [(0.3, 0.18), (0.5, 0.5), (math.sqrt(0.5), 1.0)])
def test_hicache_follows_a_line_forward_by_2_sigma_squared(order: int, sigma: float, factor: float) -> None:
    made = forecast(HiCache(order, sigma), line, (2, 3, 5, 9, 10), 13)
    torch.testing.assert_close(made, line(10) + factor * (line(13) - line(10)))


def test_hicaches_second_order() -> None:
    # F^1 = 20 and F^2 = 2 at step 12 of the ladder (0, 4, 8, 12); here sigma k = 1.5 and H_2(1.5) = 7.
    made = forecast(HiCache(2, 0.5), square, (0, 4, 8, 12), 15)
    assert made.item() == pytest.approx(144 + 20 * 0.5 * 2 * 1.5 + 2 / 2 * 0.25 * 7)


def test_scaled_hermite_polynomials() -> None:
    x, sigma = 1.5, 0.5
    y = sigma * x
    hermite = [1, 2 * y, 4 * y**2 - 2, 8 * y**3 - 12 * y, 16 * y**4 - 48 * y**2 + 12]
    assert scaled_hermite(x, sigma, 4) == pytest.approx([sigma**n * term for n, term in enumerate(hermite)])
    assert scaled_hermite(x, sigma, 0) == [1.0]


# Spectrum


def wave(time: float) -> Tensor:
    return row(math.sin(time / 9), math.cos(time / 7), 0.1 * time)


@pytest.mark.parametrize("end", [27.0, None])
def test_spectrum_is_a_ridge_fit_and_the_line(end: float | None) -> None:
    nodes, time, forecaster = (0, 1, 2, 4, 7), 10, Spectrum(degree=3, ridge=0.2, blend=0.7)
    state = forecaster.init()
    for node in nodes:
        state = forecaster.observe(state, at(node, end=end), wave(node))
    last = end or float(time)
    basis = torch.tensor([chebyshev(2 * t / last - 1, 3) for t in nodes], dtype=torch.float64)
    point = torch.tensor(chebyshev(2 * time / last - 1, 3), dtype=torch.float64)
    features = torch.cat([wave(node) for node in nodes])[:, 0]
    normal = basis.T @ basis + 0.2 * torch.eye(4, dtype=torch.float64)
    fit = point @ torch.linalg.inv(normal) @ basis.T @ features
    line = wave(7) + (wave(7) - wave(4)) * (time - 7) / 3
    made = forecaster.predict(state, at(time, end=end))
    torch.testing.assert_close(made, 0.7 * fit + 0.3 * line)


def test_spectrum_without_a_penalty_is_exact_on_its_degree() -> None:
    def cubic(time: float) -> Tensor:
        return row((time / 10) ** 3 - time / 5 + 2.0)

    forecaster = Spectrum(degree=3, ridge=1e-6, blend=1.0)
    assert error(forecaster, cubic, (0, 1, 3, 5, 8, 10), 12) < 1e-3 < error(Newton(1), cubic, (8, 10), 12)


def test_spectrum_without_the_fit_is_the_line() -> None:
    assert error(Spectrum(blend=0.0), line, (0, 2, 3), 7) < 1e-12


def test_spectrums_ridge_draws_to_zero_unless_anchored() -> None:
    def constant(time: float) -> Tensor:
        return row(1.0)

    nodes = (0, 1, 2, 3, 5)
    assert forecast(Spectrum(), constant, nodes, 8).item() < 0.99
    assert forecast(Spectrum(anchored=True), constant, nodes, 8).item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("forecaster", [Spectrum(), Spectrum(anchored=True)])
def test_spectrum_follows_a_line_forward(forecaster: Spectrum) -> None:
    def steady(time: float) -> Tensor:
        return row(time - 13.5)

    nodes = range(0, 21, 2)
    for time in (21, 22, 23):
        assert 0.2 < (forecast(forecaster, steady, nodes, time).item() - 6.5) / (time - 20) < 1.2


def test_chebyshev_polynomials() -> None:
    assert chebyshev(0.3, 4) == pytest.approx([math.cos(n * math.acos(0.3)) for n in range(5)])
    assert chebyshev(0.3, 0) == [1.0]


# DMD


def exponentials(*rates: complex) -> Function:
    """A sum of modes over 12 channels, with the given factors from one step to the next."""
    generator = torch.Generator().manual_seed(len(rates))
    shapes = torch.randn(len(rates), 1, 1, 12, dtype=torch.complex128, generator=generator)
    return lambda time: sum((rate**time * shape).real for rate, shape in zip(rates, shapes, strict=True))  # type: ignore[return-value]


def test_dmd_is_exact_on_sums_of_exponentials() -> None:
    function = exponentials(0.97, 0.8, 0.9 + 0.3j)
    for time in (11, 12, 12.5, 16):
        torch.testing.assert_close(
            forecast(DMD(), function, (0, 2, 4, 6, 8, 10), time), function(time), rtol=1e-6, atol=1e-6
        )


def test_dmd_fits_the_newest_that_are_evenly_spaced() -> None:
    function = exponentials(0.97, 0.8)
    assert error(DMD(), function, (0, 1, 4, 6, 8, 10), 13) < 1e-9
    assert error(Newton(5), function, (0, 1, 4, 6, 8, 10), 13) > 1e-4


def test_dmd_is_the_line_where_fewer_than_4_are_even() -> None:
    function = exponentials(0.97, 0.8)
    for nodes in ((0, 2, 4), (0, 2, 4, 6, 7), (0, 1, 2, 3, 4, 6, 8)):
        made = forecast(DMD(), function, nodes, 10)
        torch.testing.assert_close(made, forecast(Newton(1), function, nodes, 10))


def test_dmd_follows_a_line_forward() -> None:
    assert error(DMD(), line, (0, 2, 4, 6, 8, 10), 13) < 1e-6
    single = forecast(DMD(), lambda time: line(time).float(), (0, 2, 4, 6, 8, 10), 13)
    torch.testing.assert_close(single, line(13).float(), rtol=1e-3, atol=0)


def test_dmd_limits_the_growth_of_a_mode() -> None:
    function, nodes = exponentials(1.5), (0, 1, 2, 3, 4, 5)
    torch.testing.assert_close(forecast(DMD(max_growth=2.0), function, nodes, 8), function(8))
    torch.testing.assert_close(forecast(DMD(max_growth=1.2), function, nodes, 8), function(5) * 1.2**3)
    torch.testing.assert_close(forecast(DMD(max_growth=1.0), function, nodes, 8), function(5))


def test_dmd_fits_each_item_of_the_batch_by_itself() -> None:
    one, other, nodes = exponentials(0.9, 0.5), exponentials(0.6 + 0.5j), (0, 1, 2, 3, 4, 5)
    made = forecast(DMD(), lambda time: torch.cat([one(time), other(time)]), nodes, 7)
    torch.testing.assert_close(made, torch.cat([one(7), other(7)]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("odd", [0.0, math.nan, math.inf])
def test_dmd_repeats_the_newest_value_where_nothing_can_be_fitted(odd: float) -> None:
    def broken(time: float) -> Tensor:
        return row(3.0, 2.0) if time == 5 else row(odd, odd)

    assert forecast(DMD(), broken, (0, 1, 2, 3, 4, 5), 7).tolist() == [[[3.0, 2.0]]]
    assert forecast(DMD(), lambda time: row(0.0), (0, 1, 2, 3), 7).item() == 0.0


def test_inner_products_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = [exponentials(0.9)(time).expand(3, 2, 12).bfloat16() for time in range(4)]
    stacked = torch.stack([snapshot.flatten(1) for snapshot in snapshots], 1).double()
    monkeypatch.setattr(modes, "_ELEMENTS_AT_ONCE", 15)
    torch.testing.assert_close(modes.inner_products(snapshots), stacked @ stacked.mT)


def test_dmd_with_little_memory_is_the_line() -> None:
    assert [DMD().within(memory) for memory in (1, 2, 3, 5, 9)] == [
        None,
        Newton(1),
        Newton(1),
        DMD(snapshots=5),
        DMD(),
    ]


# DiCache


def aligned(probes: Sequence[Any], times: Sequence[float] = (0, 4, 5), dtype: Any = torch.float64) -> Tensor:
    """Forecast of a line at the last of the times, the others computed, with a probe at each of them."""
    state = Aligned().init()
    for time, probe in zip(times[:-1], probes[:-1], strict=True):
        state = Aligned().observe(state, at(time, signal=probe), line(time).to(dtype))
    return Aligned().predict(state, at(times[-1], signal=probes[-1]))


def probe(value: float) -> Tensor:
    return torch.full((1, 6, 3), value)


def test_dicache_goes_as_far_as_the_probe() -> None:
    torch.testing.assert_close(aligned([probe(0), probe(4), probe(5)]), line(5))
    torch.testing.assert_close(aligned([probe(7), probe(3), probe(2)]), line(5))
    whole = [Probe(probe(9), probe(value)) for value in (0, 4, 5)]
    torch.testing.assert_close(aligned(whole), line(5))


@pytest.mark.parametrize(
    ("probes", "time"),
    [
        pytest.param([0, 4, 9], 6, id="at-most-half-a-gap-ahead"),
        pytest.param([0, 4, 2], 4, id="never-back"),
        pytest.param([4, 4, 4], 4, id="a-probe-that-stands-still"),
        pytest.param([4, 4, 5], 6, id="a-probe-that-stood-still"),
        pytest.param([None, 4, 5], 4, id="no-probe-at-first"),
        pytest.param([0, None, 5], 4, id="no-probe-at-last"),
        pytest.param([0, 4, None], 4, id="no-probe-now"),
    ],
)
def test_dicache_keeps_within_bounds(probes: list[float | None], time: float) -> None:
    made = aligned([None if value is None else probe(value) for value in probes])
    torch.testing.assert_close(made, line(time))


def test_dicache_knows_the_last_two_steps_alone() -> None:
    made = aligned([probe(50), probe(0), probe(4), probe(5)], (-9, 0, 4, 5), torch.bfloat16)
    torch.testing.assert_close(made, line(5).bfloat16())


# FreqCa


@pytest.mark.parametrize("tokens", [16, 17])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_freqca_reuses_the_low_band_and_forecasts_the_high_one(tokens: int, dtype: torch.dtype) -> None:
    low = torch.ones(1, tokens, 2, dtype=torch.float64)
    high = torch.tensor([1.0, -1.0] * 9, dtype=torch.float64)[None, :tokens, None] * low
    high = high - high.mean(1, keepdim=True)

    def function(time: float) -> Tensor:
        return (3 * time * low + 2 * time * high).to(dtype)

    made = forecast(FreqCa(sigma=math.sqrt(0.5)), function, (0, 1, 2, 4, 6), 8)
    # An odd number of tokens spreads the alternating pattern over all frequencies.
    tolerance = {"rtol": 1e-2, "atol": 1e-12} if tokens % 2 == 0 else {"rtol": 0.1, "atol": 0.5}
    torch.testing.assert_close(made, (18 * low + 16 * high).to(dtype), **tolerance)


def test_freqcas_cutoff() -> None:
    def function(time: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return time**2 * torch.randn(1, 7, 3, dtype=torch.float64, generator=generator)

    nodes = (0, 1, 2, 4)
    everything = forecast(FreqCa(sigma=0.6, cutoff=0.0), function, nodes, 6)
    torch.testing.assert_close(everything, forecast(HiCache(sigma=0.6), function, nodes, 6))
    torch.testing.assert_close(forecast(FreqCa(cutoff=1.0), function, nodes, 6), function(4))
    # The band of 1 of 4 frequencies is the mean over the tokens.
    some = forecast(FreqCa(sigma=0.6, cutoff=0.25), function, nodes, 6)
    torch.testing.assert_close(
        some - function(4), (everything - function(4)) - (everything - function(4)).mean(1)
    )


# Options


@pytest.mark.parametrize(
    ("config", "made", "short", "words"),
    [
        (TaylorSeerCalibratorConfig(taylorseer_order=2), Newton(2), "T1O2", "TaylorSeer of order 2"),
        (
            TaylorSeerCalibratorConfig(taylorseer_order=2, differences="published"),
            TaylorSeer(2),
            "T1O2P",
            "TaylorSeer of order 2 with the published differences",
        ),
        (FoCaCalibratorConfig(), FoCa(), "FoCa", "FoCa"),
        (
            HiCacheCalibratorConfig(order=3, sigma=0.3),
            HiCache(3, 0.3),
            "HiCacheO3S0.3",
            "HiCache of order 3 (sigma 0.3)",
        ),
        (
            SpectrumCalibratorConfig(blend=0.8, window=20),
            Spectrum(blend=0.8, window=20),
            "SpectrumD4R0.1B0.8W20",
            "Spectrum of degree 4 over 20 steps",
        ),
        (
            SpectrumCalibratorConfig(degree=3, ridge=0.01, anchored=True),
            Spectrum(3, 0.01, anchored=True),
            "SpectrumD3R0.01B0.5W16A",
            "Spectrum of degree 3 over 16 steps",
        ),
        (DMDCalibratorConfig(max_growth=1.5), DMD(max_growth=1.5), "DMD6G1.5", "DMD over 6 steps"),
        (DiCacheCalibratorConfig(), Aligned(), "DiCache", "DiCache's alignment"),
        (
            FreqCaCalibratorConfig(cutoff=0.2),
            FreqCa(cutoff=0.2),
            "FreqCaO2S0.71C0.2",
            "FreqCa of order 2 (cutoff 0.2)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_make_forecasters(config: CalibratorConfig, made: Forecaster, short: str, words: str) -> None:
    assert config.forecaster(main=True) == made
    assert config.reset(enable_calibrator=False).kind is type(config)
    assert type(config)(enable_encoder_calibrator=False).forecaster(main=False) == Reuse()
    assert config.strify() == short
    assert config.describe() == f"{words} on residual"


@pytest.mark.parametrize(
    ("kind", "given", "error", "message"),
    [
        (
            TaylorSeerCalibratorConfig,
            {"differences": "newtn"},
            ConfigError,
            "differences is 'newtn'; allowed are 'newton', 'published'. Did you mean 'newton'",
        ),
        (HiCacheCalibratorConfig, {"order": 0}, ConfigError, "order is 0; give a whole number from 1 to 4"),
        (
            HiCacheCalibratorConfig,
            {"order": 1.0},
            ConfigTypeError,
            "order is 1.0, a float; give a whole number",
        ),
        (HiCacheCalibratorConfig, {"sigma": 1.5}, ConfigError, "sigma is 1.5; give a number from 0.0 to 1.0"),
        (
            HiCacheCalibratorConfig,
            {"forecast_axis": "sigma"},
            ConfigError,
            "forecast_axis is 'sigma'; .* give 'step'",
        ),
        (
            FreqCaCalibratorConfig,
            {"cutoff": -0.1},
            ConfigError,
            "cutoff is -0.1; give a number from 0.0 to 1.0",
        ),
        (FreqCaCalibratorConfig, {"forecast_axis": "sigma"}, ConfigError, "forecast_axis is 'sigma'"),
        (
            SpectrumCalibratorConfig,
            {"degree": 9},
            ConfigError,
            "degree is 9; give a whole number from 1 to 8",
        ),
        (SpectrumCalibratorConfig, {"ridge": 0}, ConfigError, "ridge is 0; give a number of at least 1e-06"),
        (SpectrumCalibratorConfig, {"blend": 2}, ConfigError, "blend is 2; give a number from 0.0 to 1.0"),
        (
            SpectrumCalibratorConfig,
            {"window": 1},
            ConfigError,
            "window is 1; give a whole number of at least 2",
        ),
        (SpectrumCalibratorConfig, {"anchored": 1}, ConfigTypeError, "anchored is 1; give True or False"),
        (
            DMDCalibratorConfig,
            {"snapshots": 3},
            ConfigError,
            "snapshots is 3; give a whole number of at least 4",
        ),
        (
            DMDCalibratorConfig,
            {"max_growth": 0.5},
            ConfigError,
            "max_growth is 0.5; give a number of at least 1",
        ),
        (DMDCalibratorConfig, {"max_growth": math.inf}, ConfigError, "max_growth is inf"),
        (
            DiCacheCalibratorConfig,
            {"gamma": 1},
            ConfigTypeError,
            "DiCacheCalibratorConfig has no option 'gamma'",
        ),
        (FoCaCalibratorConfig, {"order": 2}, ConfigTypeError, "FoCaCalibratorConfig has no option 'order'"),
    ],
)
def test_bad_options(
    kind: type[CalibratorConfig], given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(**given)


# On a model


def denoised(calibrator: CalibratorConfig | None) -> Tensor:
    """The result of a run that skips every other step after the sixth; None: without a cache."""
    model, mask = small_flux(), [1] * 6 + [0, 1] * 9
    if calibrator is not None:
        cache = DBCacheConfig(
            Fn_compute_blocks=1,
            residual_diff_threshold=1.0,
            # Far off, but with it the first blocks are looked at, as DiCache's alignment needs.
            max_accumulated_residual_diff_threshold=1e9,
            steps_computation_mask=mask,
        )
        cache_dit.enable_cache(model, cache, calibrator)
    result = Denoising(model, 0, len(mask)).finish()
    assert calibrator is None or decisions(model) == "CCCCCC" + "SC" * 9
    return result


@pytest.fixture(scope="module")
def uncached_and_reused() -> tuple[Tensor, Tensor]:
    return denoised(None), denoised(CalibratorConfig())


@pytest.mark.parametrize(
    "calibrator",
    [
        TaylorSeerCalibratorConfig(taylorseer_order=2, differences="published"),
        FoCaCalibratorConfig(),
        HiCacheCalibratorConfig(),
        SpectrumCalibratorConfig(),
        SpectrumCalibratorConfig(forecast_axis="sigma", anchored=True),
        DMDCalibratorConfig(),
        DiCacheCalibratorConfig(),
        FreqCaCalibratorConfig(),
    ],
    ids=lambda calibrator: calibrator.strify(),
)
def test_a_run_is_forecast_otherwise_than_by_reuse_and_not_far_off(
    calibrator: CalibratorConfig, uncached_and_reused: tuple[Tensor, Tensor]
) -> None:
    uncached, reused = uncached_and_reused
    made = denoised(calibrator)
    assert not torch.equal(made, reused)
    assert float((made - uncached).norm()) < 3 * float((reused - uncached).norm())
