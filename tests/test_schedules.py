"""Schedules: the literal string of computed (C) and skipped (S) steps, and files of schedules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cache_dit.caching.config import CacheConfig, Kind, Place
from cache_dit.caching.gates.delta_dit import DeltaDiTConfig
from cache_dit.caching.gates.growing import GrowingIntervalConfig
from cache_dit.caching.gates.interval import IntervalConfig
from cache_dit.caching.gates.pab import PABConfig
from cache_dit.caching.gates.scheduled import ScheduleConfig
from cache_dit.caching.maths.gate import Policy, Reason, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.errors import ConfigError, ConfigTypeError

SCHEDULE = Schedule(total=10, computed=(0, 1, 2, 4, 6, 9))


def string(policy: Policy, steps: int, *, known: bool = True, sigmas: Sequence[float] | None = None) -> str:
    """Run a policy as the engine does; `known`: whether the length of the run is."""
    state, made = policy.init(), ""
    for step in range(steps):
        at = Moment(step, float(step), total=steps if known else None, sigma=sigmas and sigmas[step])
        verdict = policy.decide(state, at)
        assert verdict is not None, "a schedule measures nothing"
        state = policy.advance(state, at, verdict, None)
        made += "S" if verdict.skip else "C"
    return made


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(IntervalConfig(), "CCCSSCSSCSSCSSC", id="defaults"),
        pytest.param(IntervalConfig(interval=3, max_warmup_steps=0), "CSSCSSCSSCSS", id="fora"),
        pytest.param(IntervalConfig(interval=5, max_warmup_steps=3), "CCCSSSSCSSSSCS", id="taylorseer"),
        pytest.param(
            IntervalConfig(interval=5, max_warmup_steps=3, last_step_computed=True),
            "CCCSSSSCSSSSCC",
            id="last-step",
        ),
        pytest.param(IntervalConfig(interval=2, max_warmup_steps=1), "CSCSCSCS", id="every-second"),
        pytest.param(IntervalConfig(interval=1, max_warmup_steps=0), "CCCC", id="one-skips-nothing"),
        pytest.param(
            IntervalConfig(interval=4, max_warmup_steps=6, warmup_interval=2),
            "CSCSCSSSCSSSC",
            id="warm-up-interval",
        ),
        pytest.param(
            IntervalConfig(interval=5, max_continuous_cached_steps=2),
            "CCCSSCSSCSSC",
            id="a-limit-moves-the-count",
        ),
        pytest.param(
            IntervalConfig(interval=4, steps_computation_mask=[1, 0, 0, 1, 0, 0, 0, 0, 0]),
            "CSSCSSSCS",
            id="a-mask-moves-the-count",
        ),
        pytest.param(GrowingIntervalConfig(), "CCCCCSCSCSSCSSSCSSSSCSSSSC", id="spectrum"),
        pytest.param(GrowingIntervalConfig(growth=3.0), "CCCCCSCSSSSCSSSSSSSC", id="spectrum-fast"),
        pytest.param(
            GrowingIntervalConfig(first=1, growth=0.5, max_warmup_steps=2), "CCCCSCSCSSC", id="window-of-one"
        ),
        pytest.param(GrowingIntervalConfig(growth=0.0, max_warmup_steps=1), "CSCSCSC", id="no-growth"),
        pytest.param(
            GrowingIntervalConfig(growth=3.0, last_step_computed=True), "CCCCCSCSSSSCSSC", id="growing-last"
        ),
        pytest.param(ScheduleConfig(schedule=SCHEDULE), "CCCSCSCSSC", id="schedule"),
        pytest.param(ScheduleConfig(schedule=SCHEDULE), "CCSSC", id="schedule-of-a-shorter-run"),
        pytest.param(ScheduleConfig(schedule=SCHEDULE), "CCCCCSCSCSCSCSCSSCCC", id="of-a-longer-run"),
        pytest.param(
            ScheduleConfig(schedule=SCHEDULE, max_continuous_cached_steps=1), "CCCSCSCSCC", id="within-limits"
        ),
    ],
)
def test_steps(config: CacheConfig, expected: str) -> None:
    assert string(config.policy(), len(expected)) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(IntervalConfig(last_step_computed=True), "CCCSSCSS", id="the-last-step-is-not-known"),
        pytest.param(ScheduleConfig(schedule=SCHEDULE), "CCCSCSCSSCCC", id="literal-then-computed"),
        pytest.param(PABConfig(), "CCCC", id="no-noise-level-and-no-share"),
    ],
)
def test_steps_of_a_run_of_unknown_length(config: CacheConfig, expected: str) -> None:
    assert string(config.policy(), len(expected), known=False) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.SPATIAL, "CCCSCSCSCCC"),
        (Kind.TEMPORAL, "CCCSCSSSCCC"),
        (Kind.CROSS, "CCCSSSCSSCC"),
        (Kind.MLP, "CCCCCCCCCCC"),
    ],
)
def test_each_kind_of_module_has_its_own_interval_within_the_window(kind: Kind, expected: str) -> None:
    sigmas = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert string(PABConfig().policy_of(kind), 11, sigmas=sigmas) == expected


def test_without_a_noise_level_the_share_of_steps_to_come_stands_for_it() -> None:
    # The shares are 1, .9, .8, ..., .1: the window leaves the numbers 3 to 8.
    assert string(PABConfig(spatial=3).policy_of(Kind.SPATIAL), 10) == "CCCCSSCSSC"


def test_a_static_mask_decides_over_every_kind_of_module() -> None:
    config = PABConfig(steps_computation_mask=[1, 0, 0, 1], steps_computation_policy="static")
    assert string(config.policy_of(Kind.MLP), 4) == "CSSC"


def test_rear_blocks_are_skipped_before_the_boundary_and_front_blocks_behind_it() -> None:
    front, rear = DeltaDiTConfig(interval=3).regions(2, 12)
    assert (front.start, front.stop, rear.start, rear.stop) == (2, 7, 7, 12)
    assert front.policy is not None
    assert rear.policy is not None
    assert string(rear.policy, 12) == "CSSCSSCCCCCC"
    assert string(front.policy, 12) == "CCCCCCSSCSSC"


def test_blocks_between_the_two_regions_are_always_computed() -> None:
    front, rear = DeltaDiTConfig(blocks=0.2, boundary=0.25).regions(0, 12)
    assert (front.start, front.stop, rear.start, rear.stop) == (0, 2, 10, 12)
    assert rear.policy is not None
    assert string(rear.policy, 8) == "CSCCCCCC"


def test_a_static_mask_decides_over_both_regions() -> None:
    mask = {"steps_computation_mask": [1, 0, 0, 1], "steps_computation_policy": "static"}
    for region in DeltaDiTConfig(**mask).regions(0, 4):
        assert region.policy is not None
        assert string(region.policy, 4, known=False) == "CSSC"


def test_a_share_of_an_unknown_number_of_steps_is_an_error() -> None:
    with pytest.raises(ConfigError, match="boundary is a share of an unknown number of steps; give num_inf"):
        string(DeltaDiTConfig().policy(), 4, known=False)


def test_too_few_blocks_for_a_share_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"blocks is 0\.1 of 5 blocks, which is none"):
        DeltaDiTConfig(blocks=0.1).regions(0, 5)


def test_the_reason_is_the_schedule() -> None:
    at = Moment(4, 4.0, total=10)
    for config in (ScheduleConfig(schedule=SCHEDULE), IntervalConfig(max_warmup_steps=0)):
        policy = config.policy()
        verdict = policy.decide(policy.init(), at)
        assert verdict == Verdict(False, Reason.SCHEDULE)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (IntervalConfig(), "F0B0_W3I1M0MC0_N3"),
        (IntervalConfig(interval=5, last_step_computed=True), "F0B0_W3I1M0MC0_N5L"),
        (GrowingIntervalConfig(growth=3.0), "F0B0_W5I1M0MC0_N2G3"),
        (PABConfig(), "F0B0_W0I1M0MC0_S2T4C6M1_ATTENTION"),
        (DeltaDiTConfig(), "F0B0_W0I1M0MC0_N2B0.5_0.5"),
        (ScheduleConfig(schedule=SCHEDULE, place=Place.OUTPUT), "F0B0_W0I1M0MC0_S6of10_OUTPUT"),
    ],
)
def test_the_short_form_names_what_differs(config: CacheConfig, expected: str) -> None:
    assert config.strify() == expected


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (IntervalConfig, {"interval": 0}, ConfigError, "interval is 0; give a whole number of at least 1"),
        (IntervalConfig, {"interval": 2.5}, ConfigTypeError, "interval is 2.5, a float"),
        (IntervalConfig, {"last_step_computed": 1}, ConfigTypeError, "last_step_computed is 1"),
        (IntervalConfig, {"intervall": 2}, ConfigTypeError, "Did you mean 'interval'"),
        (GrowingIntervalConfig, {"first": 0.5}, ConfigError, r"first is 0\.5; give a number of at least 1"),
        (GrowingIntervalConfig, {"growth": -1.0}, ConfigError, r"growth is -1\.0"),
        (PABConfig, {"cross": 0}, ConfigError, "cross is 0"),
        (
            PABConfig,
            {"window": (0.8, 0.1)},
            ConfigError,
            r"window is \(0\.8, 0\.1\); give a low and a higher",
        ),
        (
            PABConfig,
            {"window": (100, 800)},
            ConfigError,
            r"window\[0\] is 100; give a number from 0\.0 to 1\.0",
        ),
        (PABConfig, {"window": (-0.1, 0.8)}, ConfigError, r"window\[0\] is -0\.1"),
        (PABConfig, {"window": 0.5}, ConfigTypeError, r"window is 0\.5, a float; give a list"),
        (
            DeltaDiTConfig,
            {"boundary": 1.5},
            ConfigError,
            r"boundary is 1\.5; give a number from 0\.0 to 1\.0",
        ),
        (DeltaDiTConfig, {"blocks": 0.6}, ConfigError, r"blocks is 0\.6; give a number from 0\.0 to 0\.5"),
        (ScheduleConfig, {"schedule": [0, 1]}, ConfigTypeError, "schedule is of type list"),
    ],
)
def test_bad_options_are_named(
    kind: type[CacheConfig], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(**options)


def test_a_schedule_is_required() -> None:
    with pytest.raises(ConfigError, match="schedule is missing; give one"):
        ScheduleConfig().policy()


def test_a_schedule_is_the_same_after_a_file(tmp_path: Path) -> None:
    schedule = Schedule(
        total=4,
        computed=(0, 1, 3),
        model="Flux",
        method="LeMiCa",
        versions={"torch": "2.13"},
    )
    path = tmp_path / "schedule.json"
    schedule.save(path)
    assert Schedule.load(path) == schedule
    assert '"computed": [ 0, 1, 3 ],' in path.read_text(encoding="utf-8"), "readable: one line"


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"total": 4, "computed": (1, 2)}, ConfigError, "the first of them 0"),
        ({"total": 4, "computed": ()}, ConfigError, "the first of them 0"),
        ({"total": 4, "computed": (0, 2, 2)}, ConfigError, r"computed is \[0, 2, 2\]; give rising"),
        (
            {"total": 4, "computed": (0, 4)},
            ConfigError,
            "ends with step 4 but total is 4; the last step has numb",
        ),
        ({"total": 4, "computed": (0, 1.0)}, ConfigTypeError, r"computed has 1\.0; give whole numbers"),
        ({"total": "4", "computed": (0, 1)}, ConfigTypeError, "total has '4'"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Schedule(**fields)


@pytest.mark.parametrize(
    "text",
    ["not json", json.dumps([1, 2]), json.dumps({"total": 4}), json.dumps({"total": 2, "computed": [1]})],
)
def test_a_file_that_is_no_schedule_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"schedule\.json is no schedule \(.*\); see"):
        Schedule.load(path)
