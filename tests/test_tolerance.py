"""The tolerance gate: from hand-made errors to the string of computed (C) and skipped (S) steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny.models import FLUX
from tiny.runs import Denoising, decisions

import cache_dit
from cache_dit import Request, TaylorSeerCalibratorConfig
from cache_dit.caching.catalogue import ToleranceConfig
from cache_dit.caching.config import Place
from cache_dit.caching.maths.gate import Reason, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.errors import ConfigError, ConfigTypeError


def run(
    config: ToleranceConfig, error: Callable[[int, list[int]], float], *, total: int = 16, known: bool = True
) -> str:
    """The steps of a run, decided as the engine does; `error` is that of the forecast of a step."""
    policy = config.policy()
    state, steps, computed = policy.init(), "", list[int]()
    for step in range(total):
        at = Moment(step, float(step), total=total if known else None)
        verdict = policy.decide(state, at)
        assert verdict is not None
        state = policy.advance(state, at, verdict, None)
        if not verdict.skip:
            if computed:
                state = state._replace(gate=policy.gate.learn(state.gate, at, error(step, computed)))
            computed.append(step)
        steps += "CS"[verdict.skip]
    return steps


def of_a_line(curve: Callable[[int], float] = lambda step: 1.0) -> Callable[[int, list[int]], float]:
    """What a line through the latest two computed steps is off by on a curve with this second derivative."""
    return lambda step, computed: math.prod(
        [float(step - one) for one in computed[-2:]], start=curve(step) / 2
    )


@pytest.mark.parametrize(
    ("config", "curve", "expected"),
    [
        # A line that is drawn on for n steps behind a gap of m is off by n (n + m) / 2 times the curve.
        pytest.param(ToleranceConfig(tolerance=1.1), lambda _: 1.0, "CCCCCCCCCCCCCCCC", id="too-curved"),
        pytest.param(ToleranceConfig(tolerance=1.2), lambda _: 1.0, "CCCSCCSCCSCCSCCC", id="two-of-three"),
        pytest.param(ToleranceConfig(tolerance=1.7), lambda _: 1.0, "CCCSCSCSCSCSCSCC", id="every-second"),
        pytest.param(ToleranceConfig(tolerance=9.0), lambda _: 1.0, "CCCSCSSSCSSCSSCC", id="gaps-double"),
        pytest.param(ToleranceConfig(tolerance=0.0), lambda _: 0.0, "CCCCCCCCCCCCCCCC", id="tolerance-0"),
        pytest.param(
            ToleranceConfig(tolerance=3.0),
            lambda step: 20.0 if step >= 8 else 0.5,
            "CCCSCSSCSSCCCCCC",
            id="a-bend",
        ),
        pytest.param(
            ToleranceConfig(tolerance=1.7, max_warmup_steps=6),
            lambda _: 1.0,
            "CCCCCCSCSCSCSCSC",
            id="warm-up",
        ),
        pytest.param(
            ToleranceConfig(tolerance=9.0, max_continuous_cached_steps=1),
            lambda _: 1.0,
            "CCCSCSCSCSCSCSCC",
            id="limit-in-a-row",
        ),
    ],
)
def test_steps_are_as_far_apart_as_the_curve_allows(
    config: ToleranceConfig, curve: Callable[[int], float], expected: str
) -> None:
    assert run(config, of_a_line(curve)) == expected


def test_predicted_errors_of_a_parabola_are_right() -> None:
    gate = ToleranceConfig().gate()
    state = gate.init()
    for step in (0, 1, 4):
        at = Moment(step, float(step))
        state = gate.advance(state, at, Verdict(False, Reason.NO_HISTORY), None)
        state = gate.learn(state, at, 3.0 * (step - 0) * (step - 1))
    verdict = gate.decide(state, Moment(9, 9.0), None)
    assert verdict.change == pytest.approx(3.0 * (9 - 4) * (9 - 1))


def test_reuse_has_errors_that_grow_with_the_distance() -> None:
    def error(step: int, computed: list[int]) -> float:
        return 0.1 * (step - computed[-1])

    assert run(ToleranceConfig(tolerance=0.35, order=0), error) == "CCSCSSSCSSSCSSSC"


def test_an_error_that_is_no_number_is_learnt_anew() -> None:
    def error(step: int, computed: list[int]) -> float:
        return math.nan if step == 4 else 0.0

    assert run(ToleranceConfig(), error, total=10) == "CCCSCCSCSC"


def test_the_last_step_needs_the_length_of_the_run() -> None:
    assert run(ToleranceConfig(tolerance=1.7), of_a_line(), known=False) == "CCCSCSCSCSCSCSCS"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance": -0.1}, ConfigError, r"tolerance is -0\.1; give a number of at least 0"),
        ({"tolerance": "a"}, ConfigTypeError, "tolerance is 'a', a str; give a number"),
        ({"order": 5}, ConfigError, "order is 5; give a whole number from 0 to 4"),
        ({"order": 1.5}, ConfigTypeError, r"order is 1\.5, a float; give a whole number"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ToleranceConfig(**options)


def test_the_short_form() -> None:
    assert ToleranceConfig(tolerance=0.02, order=2).strify() == "F0B0_W0I1M0MC0_TOL0.02O2_OUTPUT"


@pytest.mark.parametrize("place", [Place.OUTPUT, Place.MIDDLE])
def test_a_tighter_tolerance_computes_more_and_is_nearer(place: Place) -> None:
    from tiny.runs import Denoising, decisions, small_flux

    exact = Denoising(small_flux(), 0, steps=20).finish()
    model, counts, errors = small_flux(), [], []
    for tolerance in (5.0, 1.0, 0.0):
        config = ToleranceConfig(tolerance=tolerance, place=place, Fn_compute_blocks=0)
        cache_dit.enable_cache(model, config, TaylorSeerCalibratorConfig())
        made = Denoising(model, 0, steps=20, request=Request(20)).finish()
        counts.append(decisions(model).count("C"))
        errors.append(float(torch.linalg.vector_norm(made - exact)))
    assert counts == sorted(counts)
    assert counts[0] < 20 == counts[-1]
    assert errors[0] > errors[1] >= errors[2] == 0.0


def test_branches_of_a_step_skip_together_unless_told_otherwise() -> None:
    from tiny.runs import Denoising, attachments_of, small_flux

    def both(**options: bool) -> list[list[Verdict]]:
        model = small_flux()
        config = ToleranceConfig(tolerance=0.8, place=Place.MIDDLE, Fn_compute_blocks=0, **options)
        cache_dit.enable_cache(model, config, TaylorSeerCalibratorConfig())
        Denoising(model, 0, steps=20, branches=("cond", "uncond"), request=Request(20)).finish()
        record = attachments_of(model)[0].session.latest
        return [[step.verdict for step in record.of(0, branch)] for branch in record.branches]

    first, second = both()
    assert second == first
    assert {verdict.skip for verdict in first} == {True, False}
    first, second = both(cfg_diff_compute_separate=True)
    assert [verdict.change for verdict in second] != [verdict.change for verdict in first]


@pytest.mark.parametrize("axis", ["step", "sigma"])
def test_a_tolerance_holds_along_noise_levels_too(axis: str) -> None:
    line = TaylorSeerCalibratorConfig(taylorseer_order=1, forecast_axis=axis)
    config = ToleranceConfig(tolerance=1000.0, Fn_compute_blocks=1, num_inference_steps=20)
    model = cache_dit.enable_cache(FLUX.build(), config, line)
    sigmas = [1.0 - step / 20 for step in range(21)]
    Denoising(model, 0, 20, request=Request(num_inference_steps=20, sigmas=sigmas)).finish()
    assert decisions(model).count("S") >= 8
