"""Gates: from hand-made changes to the literal string of computed (C) and skipped (S) steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from cache_dit import DBCacheConfig
from cache_dit.caching.gates.residual import ResidualGate
from cache_dit.caching.maths.change import relative_l1
from cache_dit.caching.maths.gate import Policy, Reason, Signal, Verdict
from cache_dit.caching.maths.moment import Moment

NAN, INF = math.nan, math.inf


def db(
    threshold: float,
    *,
    warmup: int = 0,
    warmup_interval: int = 1,
    max_cached: int = -1,
    max_continuous: int = -1,
    max_accumulated: float | None = None,
    mask: tuple[int, ...] | None = None,
    static: bool = False,
) -> Policy:
    """DBCache's rule within limits."""
    return DBCacheConfig(
        residual_diff_threshold=threshold,
        max_warmup_steps=warmup,
        warmup_interval=warmup_interval,
        max_cached_steps=max_cached,
        max_continuous_cached_steps=max_continuous,
        max_accumulated_residual_diff_threshold=max_accumulated,
        steps_computation_mask=mask,
        steps_computation_policy="static" if static else "dynamic",
    ).policy()


def moment(step: int) -> Moment:
    return Moment(step, float(step))


def verdicts(policy: Policy, changes: Sequence[float]) -> list[Verdict]:
    """Run a policy as the engine does: a change is measured only when the policy asks for it."""
    state, made = policy.init(), []
    for step, change in enumerate(changes):
        verdict = policy.decide(state, moment(step))
        if verdict is None and state.gate is not None:
            verdict = policy.decide(state, moment(step), change)
        verdict = verdict or Verdict(False, Reason.NO_HISTORY)
        state = policy.advance(state, moment(step), verdict, torch.ones(1))
        made.append(verdict)
    return made


def string(policy: Policy, changes: Sequence[float]) -> str:
    return "".join("S" if verdict.skip else "C" for verdict in verdicts(policy, changes))


def reasons(policy: Policy, changes: Sequence[float]) -> list[Reason]:
    return [verdict.reason for verdict in verdicts(policy, changes)]


@pytest.mark.parametrize(
    ("policy", "changes", "expected"),
    [
        pytest.param(db(0.1), [0.0] * 5, "CSSSS", id="first-step-has-no-history"),
        pytest.param(
            db(0.1),
            [0, 0.05, 0.099, 0.1, 0.2, 0.05, 0.3, 0.0, 0.09],
            "CSSCCSCSS",
            id="threshold-is-exclusive",
        ),
        pytest.param(db(0.1, warmup=4), [0.0] * 8, "CCCCSSSS", id="warm-up"),
        pytest.param(
            db(0.1, warmup=4),
            [0, 0, 0, 0, 0.01, 0.02, 0.5, 0.01, 0.02],
            "CCCCSSCSS",
            id="warm-up-then-threshold",
        ),
        pytest.param(
            db(0.1, warmup=6, warmup_interval=2),
            [0.0] * 8,
            "CSCSCSSS",
            id="warm-up-interval",
        ),
        pytest.param(
            db(0.1, warmup=7, warmup_interval=3),
            [0, 0.5, 0, 0, 0, 0, 0, 0, 0.5],
            "CCSCSSCSC",
            id="warm-up-interval-still-looks-at-the-change",
        ),
        pytest.param(
            db(0.1, warmup=1, max_cached=3),
            [0, 0, 0.5, 0, 0, 0, 0],
            "CSCSSCC",
            id="limit-over-the-run",
        ),
        pytest.param(
            db(0.1, warmup=1, max_continuous=2),
            [0.0] * 9,
            "CSSCSSCSS",
            id="limit-in-a-row",
        ),
        pytest.param(
            db(1.0, warmup=1, max_cached=4, max_continuous=2),
            [9.0] * 9,
            "CSSCSSCCC",
            id="both-limits-at-threshold-1",
        ),
        pytest.param(
            db(0.5, warmup=1, max_accumulated=0.25),
            [0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
            "CSSCSSCS",
            id="accumulated-starts-anew-at-each-computed-step",
        ),
        pytest.param(
            db(0.15, warmup=1, max_accumulated=0.25),
            [0, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1],
            "CSSCSSC",
            id="accumulated-starts-anew-after-a-change-over-the-threshold",
        ),
        pytest.param(
            db(1.0, warmup=1, max_accumulated=0.25),
            [0, 0.1, 0.1, 0.1, 0.2, 2.0],
            "CSSCSC",
            id="accumulated-at-threshold-1",
        ),
        pytest.param(db(0.1), [0, NAN, 0, NAN, INF, 0], "CCSCCS", id="nan-is-computed"),
        pytest.param(
            db(1.0, max_accumulated=0.5),
            [0, 0.1, NAN, 0.1, INF, 0.1],
            "CSCSCS",
            id="nan-is-computed-at-threshold-1-with-a-limit-on-the-sum",
        ),
        pytest.param(db(0.0), [0.0] * 4, "CCCC", id="threshold-0-never-skips"),
        pytest.param(db(1.0, warmup=2), [0, 0, 5.0, INF, NAN], "CCSSS", id="threshold-1-skips-all"),
        pytest.param(
            db(0.1, warmup=3, mask=(1, 0, 0, 1, 0, 0)),
            [0, 0.01, 0.5, 0, 0.01, 0.02],
            "CSCCSS",
            id="dynamic-mask-replaces-the-warm-up",
        ),
        pytest.param(
            db(0.1, mask=(1, 0, 0, 0, 0), max_continuous=2),
            [0.0] * 5,
            "CSSCS",
            id="dynamic-mask-with-limit",
        ),
        pytest.param(db(0.0, mask=(1, 0, 0)), [0.0] * 3, "CCC", id="dynamic-mask-threshold-0"),
        pytest.param(
            db(0.0, mask=(1, 0, 0, 1, 0), static=True, max_cached=1, max_continuous=1),
            [0, NAN, 9.0, 0, 9.0],
            "CSSCS",
            id="static-mask-alone-decides",
        ),
        pytest.param(db(1.0, mask=(1, 0, 0)), [0.0] * 5, "CSSCC", id="behind-the-mask-is-computed"),
        pytest.param(
            db(1.0, mask=(1, 0), static=True),
            [0.0] * 4,
            "CSCC",
            id="behind-a-static-mask-is-computed",
        ),
    ],
)
def test_steps(policy: Policy, changes: Sequence[float], expected: str) -> None:
    assert string(policy, changes) == expected


def test_reasons_name_the_rule() -> None:
    policy = db(0.1, warmup=1, max_cached=3, max_continuous=2, max_accumulated=0.1)
    changes = [0, 0.01, 0.01, 0, 0.08, 0.08, 0.2, 0.01, 0.01]
    assert reasons(policy, changes) == [
        Reason.WARMUP,
        Reason.SIMILAR,
        Reason.SIMILAR,
        Reason.CONTINUOUS_LIMIT,
        Reason.SIMILAR,
        *[Reason.CACHED_LIMIT] * 4,
    ]
    policy = db(0.1, max_accumulated=0.1)
    changes = [0, 0.08, 0.08, 0.1]
    assert reasons(policy, changes) == [
        Reason.NO_HISTORY,
        Reason.SIMILAR,
        Reason.ACCUMULATED_LIMIT,
        Reason.CHANGED,
    ]
    assert reasons(db(0.0), [0.0]) == [Reason.OFF]
    assert reasons(db(1.0, warmup=1), [0.0, 0.0]) == [Reason.WARMUP, Reason.ALWAYS]
    assert reasons(db(0.1, mask=(1, 0), static=True), [0.0, 0.0]) == [Reason.MASK] * 2


def test_measured_change_is_kept_only_where_it_was_asked_for() -> None:
    policy = db(0.1, warmup=2)
    changes = [verdict.change for verdict in verdicts(policy, [0.7, 0.6, 0.05, 0.2])]
    assert changes == [None, None, 0.05, 0.2]


@pytest.mark.parametrize(
    ("policy", "measures"),
    [
        (db(0.1), True),
        (db(1.0), False),
        (db(1.0, max_accumulated=1.0), True),
        (db(0.1, mask=(1, 0), static=True), False),
        (db(0.1, mask=(1, 0)), True),
    ],
)
def test_nothing_is_measured_where_no_rule_needs_it(policy: Policy, measures: bool) -> None:
    assert (policy.gate.signal is Signal.RESIDUAL) is measures


@pytest.mark.parametrize(
    ("policy", "certain"),
    [
        (db(0.1, warmup=3), "111000"),
        (db(0.1, warmup=4, warmup_interval=2), "101000"),
        (db(0.0), "111111"),
        (db(0.1, mask=(1, 0, 1)), "101111"),
        (db(0.0, mask=(1, 0, 1), static=True), "101111"),
    ],
)
def test_certain_steps(policy: Policy, certain: str) -> None:
    assert "".join(str(int(policy.certain(step) is not None)) for step in range(6)) == certain


def test_change_is_measured_from_the_last_computed_step() -> None:
    policy = db(0.5)
    signal = torch.tensor([2.0, -2.0])
    state = policy.advance(
        policy.init(), moment(0), Verdict(False, Reason.NO_HISTORY), torch.tensor([1.0, -1.0])
    )
    assert policy.measure(state, moment(1), torch.tensor([1.5, -1.0])) == pytest.approx(0.25)
    state = policy.advance(state, moment(1), Verdict(True, Reason.SIMILAR, 0.25), torch.tensor([1.5, -1.0]))
    assert (state.cached, state.continuous, state.accumulated) == (1, 1, 0.25)
    assert policy.measure(state, moment(2), signal) == pytest.approx(1.0)
    state = policy.advance(state, moment(2), Verdict(False, Reason.CHANGED, 1.0), signal)
    assert policy.measure(state, moment(3), signal) == 0.0
    assert (state.cached, state.continuous, state.accumulated) == (1, 0, 0.0)
    assert state.gate.signal is signal


def test_no_change_is_measured_against_another_shape() -> None:
    gate = ResidualGate(0.5)
    state = gate.advance(gate.init(), moment(0), Verdict(False, Reason.NO_HISTORY), torch.ones(2))
    assert gate.measure(state, moment(1), torch.ones(3)) is None
    assert gate.measure(gate.init(), moment(1), torch.ones(3)) is None


def test_nothing_is_kept_of_a_computed_step_whose_signal_was_not_taken() -> None:
    gate = ResidualGate(0.5)
    state = gate.advance(gate.init(), moment(0), Verdict(False, Reason.NO_HISTORY), torch.ones(2))
    assert gate.advance(state, moment(1), Verdict(False, Reason.WARMUP), None) is None


def test_relative_l1() -> None:
    reference = torch.tensor([1.0, -2.0, 3.0, -4.0])
    assert relative_l1(reference + 0.5, reference) == pytest.approx(0.2)
    assert relative_l1(reference, reference) == 0.0
    assert relative_l1(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_l1(torch.ones(2), torch.zeros(2)) == INF
    assert math.isnan(relative_l1(torch.tensor([NAN, 1.0]), torch.ones(2)))


def test_relative_l1_sums_half_precision_in_full_precision() -> None:
    reference = torch.ones(20_000, dtype=torch.bfloat16)
    assert relative_l1(reference * 1.25, reference) == pytest.approx(0.25, rel=1e-6)
