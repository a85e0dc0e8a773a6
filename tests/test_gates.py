"""Gates: from hand-made changes to the literal string of computed (C) and skipped (S) steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from cache_dit.caching.maths.change import relative_l1
from cache_dit.caching.maths.gates import GateState, Reason, ResidualGate, Verdict

NAN, INF = math.nan, math.inf


def verdicts(gate: ResidualGate, changes: Sequence[float]) -> list[Verdict]:
    """Run a gate as the engine does: a change is measured only when the gate asks for it."""
    state, made = gate.init(), []
    for step, change in enumerate(changes):
        verdict = gate.decide(state, step)
        if verdict is None and state.reference is not None:
            verdict = gate.decide(state, step, change)
        verdict = verdict or Verdict(False, Reason.NO_HISTORY)
        state = gate.advance(state, verdict, torch.ones(1))
        made.append(verdict)
    return made


def string(gate: ResidualGate, changes: Sequence[float]) -> str:
    return "".join("S" if verdict.skip else "C" for verdict in verdicts(gate, changes))


def reasons(gate: ResidualGate, changes: Sequence[float]) -> list[Reason]:
    return [verdict.reason for verdict in verdicts(gate, changes)]


@pytest.mark.parametrize(
    ("gate", "changes", "expected"),
    [
        pytest.param(ResidualGate(threshold=0.1), [0.0] * 5, "CSSSS", id="first-step-has-no-history"),
        pytest.param(
            ResidualGate(threshold=0.1),
            [0, 0.05, 0.099, 0.1, 0.2, 0.05, 0.3, 0.0, 0.09],
            "CSSCCSCSS",
            id="threshold-is-exclusive",
        ),
        pytest.param(ResidualGate(threshold=0.1, warmup=4), [0.0] * 8, "CCCCSSSS", id="warm-up"),
        pytest.param(
            ResidualGate(threshold=0.1, warmup=4),
            [0, 0, 0, 0, 0.01, 0.02, 0.5, 0.01, 0.02],
            "CCCCSSCSS",
            id="warm-up-then-threshold",
        ),
        pytest.param(
            ResidualGate(threshold=0.1, warmup=6, warmup_interval=2),
            [0.0] * 8,
            "CSCSCSSS",
            id="warm-up-interval",
        ),
        pytest.param(
            ResidualGate(threshold=0.1, warmup=7, warmup_interval=3),
            [0, 0.5, 0, 0, 0, 0, 0, 0, 0.5],
            "CCSCSSCSC",
            id="warm-up-interval-still-looks-at-the-change",
        ),
        pytest.param(
            ResidualGate(threshold=0.1, warmup=1, max_cached=3),
            [0, 0, 0.5, 0, 0, 0, 0],
            "CSCSSCC",
            id="limit-over-the-run",
        ),
        pytest.param(
            ResidualGate(threshold=0.1, warmup=1, max_continuous=2),
            [0.0] * 9,
            "CSSCSSCSS",
            id="limit-in-a-row",
        ),
        pytest.param(
            ResidualGate(threshold=1.0, warmup=1, max_cached=4, max_continuous=2),
            [9.0] * 9,
            "CSSCSSCCC",
            id="both-limits-at-threshold-1",
        ),
        pytest.param(
            ResidualGate(threshold=0.5, warmup=1, max_accumulated=0.25),
            [0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
            "CSSCSSCS",
            id="accumulated-starts-anew-at-each-computed-step",
        ),
        pytest.param(
            ResidualGate(threshold=0.15, warmup=1, max_accumulated=0.25),
            [0, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1],
            "CSSCSSC",
            id="accumulated-starts-anew-after-a-change-over-the-threshold",
        ),
        pytest.param(
            ResidualGate(threshold=1.0, warmup=1, max_accumulated=0.25),
            [0, 0.1, 0.1, 0.1, 0.2, 2.0],
            "CSSCSC",
            id="accumulated-at-threshold-1",
        ),
        pytest.param(ResidualGate(threshold=0.1), [0, NAN, 0, NAN, INF, 0], "CCSCCS", id="nan-is-computed"),
        pytest.param(
            ResidualGate(threshold=1.0, max_accumulated=0.5),
            [0, 0.1, NAN, 0.1, INF, 0.1],
            "CSCSCS",
            id="nan-is-computed-at-threshold-1-with-a-limit-on-the-sum",
        ),
        pytest.param(ResidualGate(threshold=0.0), [0.0] * 4, "CCCC", id="threshold-0-never-skips"),
        pytest.param(
            ResidualGate(threshold=1.0, warmup=2), [0, 0, 5.0, INF, NAN], "CCSSS", id="threshold-1-skips-all"
        ),
        pytest.param(
            ResidualGate(threshold=0.1, warmup=3, mask=(1, 0, 0, 1, 0, 0)),
            [0, 0.01, 0.5, 0, 0.01, 0.02],
            "CSCCSS",
            id="dynamic-mask-replaces-the-warm-up",
        ),
        pytest.param(
            ResidualGate(threshold=0.1, mask=(1, 0, 0, 0, 0), max_continuous=2),
            [0.0] * 5,
            "CSSCS",
            id="dynamic-mask-with-limit",
        ),
        pytest.param(
            ResidualGate(threshold=0.0, mask=(1, 0, 0)), [0.0] * 3, "CCC", id="dynamic-mask-threshold-0"
        ),
        pytest.param(
            ResidualGate(threshold=0.0, mask=(1, 0, 0, 1, 0), static=True, max_cached=1, max_continuous=1),
            [0, NAN, 9.0, 0, 9.0],
            "CSSCS",
            id="static-mask-alone-decides",
        ),
        pytest.param(
            ResidualGate(threshold=1.0, mask=(1, 0, 0)), [0.0] * 5, "CSSCC", id="behind-the-mask-is-computed"
        ),
        pytest.param(
            ResidualGate(threshold=1.0, mask=(1, 0), static=True),
            [0.0] * 4,
            "CSCC",
            id="behind-a-static-mask-is-computed",
        ),
    ],
)
def test_steps(gate: ResidualGate, changes: Sequence[float], expected: str) -> None:
    assert string(gate, changes) == expected


def test_reasons_name_the_rule() -> None:
    gate = ResidualGate(threshold=0.1, warmup=1, max_cached=3, max_continuous=2, max_accumulated=0.1)
    changes = [0, 0.01, 0.01, 0, 0.08, 0.08, 0.2, 0.01, 0.01]
    assert reasons(gate, changes) == [
        Reason.WARMUP,
        Reason.SIMILAR,
        Reason.SIMILAR,
        Reason.CONTINUOUS_LIMIT,
        Reason.SIMILAR,
        *[Reason.CACHED_LIMIT] * 4,
    ]
    gate = ResidualGate(threshold=0.1, max_accumulated=0.1)
    changes = [0, 0.08, 0.08, 0.1]
    assert reasons(gate, changes) == [
        Reason.NO_HISTORY,
        Reason.SIMILAR,
        Reason.ACCUMULATED_LIMIT,
        Reason.CHANGED,
    ]
    assert reasons(ResidualGate(threshold=0.0), [0.0]) == [Reason.OFF]
    assert reasons(ResidualGate(threshold=1.0, warmup=1), [0.0, 0.0]) == [Reason.WARMUP, Reason.ALWAYS]
    assert reasons(ResidualGate(threshold=0.1, mask=(1, 0), static=True), [0.0, 0.0]) == [Reason.MASK] * 2


def test_measured_change_is_kept_only_where_it_was_asked_for() -> None:
    gate = ResidualGate(threshold=0.1, warmup=2)
    changes = [verdict.change for verdict in verdicts(gate, [0.7, 0.6, 0.05, 0.2])]
    assert changes == [None, None, 0.05, 0.2]


@pytest.mark.parametrize(
    ("gate", "measures"),
    [
        (ResidualGate(threshold=0.1), True),
        (ResidualGate(threshold=1.0), False),
        (ResidualGate(threshold=1.0, max_accumulated=1.0), True),
        (ResidualGate(threshold=0.1, mask=(1, 0), static=True), False),
        (ResidualGate(threshold=0.1, mask=(1, 0)), True),
    ],
)
def test_nothing_is_measured_where_no_rule_needs_it(gate: ResidualGate, measures: bool) -> None:
    assert gate.measures is measures


@pytest.mark.parametrize(
    ("gate", "certain"),
    [
        (ResidualGate(threshold=0.1, warmup=3), "111000"),
        (ResidualGate(threshold=0.1, warmup=4, warmup_interval=2), "101000"),
        (ResidualGate(threshold=0.0), "111111"),
        (ResidualGate(threshold=0.1, mask=(1, 0, 1)), "101111"),
        (ResidualGate(threshold=0.0, mask=(1, 0, 1), static=True), "101111"),
    ],
)
def test_certain_steps(gate: ResidualGate, certain: str) -> None:
    assert "".join(str(int(gate.must_compute(step))) for step in range(6)) == certain


def test_change_is_measured_from_the_last_computed_step() -> None:
    gate = ResidualGate(threshold=0.5)
    state = gate.advance(gate.init(), Verdict(False, Reason.NO_HISTORY), torch.tensor([1.0, -1.0]))
    assert gate.measure(state, torch.tensor([1.5, -1.0])) == pytest.approx(0.25)
    state = gate.advance(state, Verdict(True, Reason.SIMILAR, 0.25), None)
    assert gate.measure(state, torch.tensor([2.0, -2.0])) == pytest.approx(1.0)
    state = gate.advance(state, Verdict(False, Reason.CHANGED, 1.0), torch.tensor([2.0, -2.0]))
    assert gate.measure(state, torch.tensor([2.0, -2.0])) == 0.0
    assert state == GateState(cached=1, reference=state.reference, norm=state.norm)


def test_no_change_is_measured_against_another_shape() -> None:
    gate = ResidualGate(threshold=0.5)
    state = gate.advance(gate.init(), Verdict(False, Reason.NO_HISTORY), torch.ones(2))
    assert gate.measure(state, torch.ones(3)) is None
    assert gate.measure(gate.init(), torch.ones(3)) is None


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
