"""The clock: which step and branch a forward belongs to, and when a new run has begun."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from cache_dit.caching.engine.clock import Clock, Tick

Call = tuple[str | None, Any]


def ticks(clock: Clock, calls: Iterable[Call]) -> list[Tick | None]:
    return [clock.tick(name, marker) for name, marker in calls]


def steps(clock: Clock, markers: Iterable[Any]) -> str:
    """`step.branch` of unnamed calls; "new" where a new run must have begun."""
    made = ticks(clock, ((None, marker) for marker in markers))
    return " ".join("new" if tick is None else f"{tick.step}.{tick.branch}" for tick in made)


def unnamed(markers: Iterable[Any]) -> list[Call]:
    return [(None, marker) for marker in markers]


def test_named_branches_count_their_own_calls() -> None:
    calls: list[Call] = [(name, None) for name in ("cond", "uncond", "cond", "uncond", "cond")]
    assert ticks(Clock(), calls) == [("cond", 0), ("uncond", 0), ("cond", 1), ("uncond", 1), ("cond", 2)]


def test_a_branch_that_joins_late_starts_at_its_own_first_step() -> None:
    calls: list[Call] = [("cond", 900), ("cond", 800), ("uncond", 800), ("cond", 700), ("uncond", 700)]
    assert ticks(Clock(), calls) == [("cond", 0), ("cond", 1), ("uncond", 0), ("cond", 2), ("uncond", 1)]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("calls_per_step", "markers", "expected"),
    [
        pytest.param(None, [9, 8, 7], "0.0 1.0 2.0", id="marker-moves-each-call"),
        pytest.param(None, [9, 9, 8, 8], "0.0 0.1 1.0 1.1", id="two-calls-share-a-marker"),
        pytest.param(None, [0, 0, 0, 1, 1, 1], "0.0 0.1 0.2 1.0 1.1 1.2", id="three-calls-rising"),
        pytest.param(None, [None, None, None], "0.0 1.0 2.0", id="nothing-known"),
        pytest.param(1, [9, 8, 7], "0.0 1.0 2.0", id="one-call"),
        pytest.param(2, [9, 9, 8, 8], "0.0 0.1 1.0 1.1", id="two-calls"),
        pytest.param(2, [None] * 5, "0.0 0.1 1.0 1.1 2.0", id="two-calls-without-marker"),
        pytest.param(3, [None] * 4, "0.0 0.1 0.2 1.0", id="three-calls-without-marker"),
    ],
)
def test_unnamed_calls(calls_per_step: int | None, markers: list[Any], expected: str, strict: bool) -> None:
    assert steps(Clock(calls_per_step, strict=strict), markers) == expected


def test_count_of_calls_goes_before_the_marker() -> None:
    assert steps(Clock(1), [9, 9, 9]) == "0.0 1.0 2.0"
    assert steps(Clock(2), [9, 8, 7, 6]) == "0.0 0.1 1.0 1.1"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "markers", [[9, 8, 7, 9], [1, 2, 3, 1], [9, 9, 8, 8, 9], [0.9, 0.5, 0.6], [-1, 0, 1, -1]]
)
def test_time_that_turns_back_is_a_new_run(markers: list[float], strict: bool) -> None:
    *before, last = ticks(Clock(strict=strict), unnamed(markers))
    assert None not in before
    assert last is None


def test_time_that_turns_back_is_a_new_run_for_named_calls_too() -> None:
    calls: list[Call] = [("cond", 9), ("uncond", 9), ("cond", 8), ("uncond", 8)]
    for name in ("cond", "uncond"):
        clock = Clock()
        assert None not in ticks(clock, calls)
        assert clock.tick(name, 9) is None


def test_a_second_call_of_a_name_in_one_step_is_a_new_run_in_strict_mode() -> None:
    calls: list[Call] = [("cond", 9), ("uncond", 9), ("cond", 9)]
    assert ticks(Clock(strict=True), calls)[-1] is None
    assert ticks(Clock(), calls)[-1] == ("cond", 1)


@pytest.mark.parametrize(
    ("calls_per_step", "markers"),
    [
        pytest.param(2, [9, 9, 8, 9], id="dropped-between-the-branches-of-a-step"),
        pytest.param(2, [9, 9, 8, 7], id="step-ends-early"),
        pytest.param(2, [9, 9, 9], id="step-ends-late"),
        pytest.param(1, [9, 9], id="first-step-of-two-runs"),
        pytest.param(None, [9, 9, 8, 8, 7, 6], id="calls-of-a-step-change"),
    ],
)
def test_dropped_runs_are_recognised_in_strict_mode(calls_per_step: int | None, markers: list[int]) -> None:
    *before, last = ticks(Clock(calls_per_step, strict=True), unnamed(markers))
    assert None not in before
    assert last is None


def test_an_announced_run_may_change_its_calls_per_step() -> None:
    assert steps(Clock(), [9, 9, 8, 8, 7, 6]) == "0.0 0.1 1.0 1.1 2.0 3.0"


def test_two_clocks_do_not_know_each_other() -> None:
    first, second = Clock(), Clock()
    assert ticks(first, [("cond", 9), ("cond", 8)])[-1] == ("cond", 1)
    assert second.tick("cond", 9) == ("cond", 0)
    assert steps(Clock(), [3]) == "0.0"


def certainty(clock: Clock, markers: Iterable[int]) -> list[bool]:
    return [clock.tick(None, marker) is not None and clock.certain for marker in markers]


def test_the_second_step_after_several_unnamed_calls_is_uncertain_where_nobody_announces_runs() -> None:
    twice, once = (9, 9, 8, 8, 7, 7), (9, 8, 7)
    assert certainty(Clock(strict=True), twice) == [True, True, False, False, True, True]
    assert all(certainty(Clock(), twice))
    assert all(certainty(Clock(calls_per_step=2, strict=True), twice))
    assert all(certainty(Clock(strict=True), once))
