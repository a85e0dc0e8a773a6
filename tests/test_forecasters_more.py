"""Forecasters of the literature on functions whose forecasts are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cache_dit.caching.catalogue import (
    CalibratorConfig,
    FoCaCalibratorConfig,
    HiCacheCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from cache_dit.caching.forecasters.foca import FoCa
from cache_dit.caching.forecasters.hicache import HiCache, scaled_hermite
from cache_dit.caching.forecasters.newton import Newton
from cache_dit.caching.forecasters.reuse import Reuse
from cache_dit.caching.forecasters.taylorseer import TaylorSeer
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.weights import blend, combine, ladder
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
    assert blend(values, (1.0, 1.0, -1.0)).unique().tolist() == [1.0]


def test_combine_stops_at_the_shorter() -> None:
    assert combine([[1, 0], [0, 1]], [2.0, 3.0, 4.0]) == [2.0, 3.0]


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
        (FoCaCalibratorConfig, {"order": 2}, ConfigTypeError, "FoCaCalibratorConfig has no option 'order'"),
    ],
)
def test_bad_options(
    kind: type[CalibratorConfig], given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(**given)
