"""Requests: many runs of other lengths and configurations on one model, freed in time, limited in number."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny.models import FLUX
from tiny.pipelines import FLUX_TRUE_CFG
from tiny.runs import Denoising, small_flux
from torch import Tensor
from torch.utils._pytree import tree_leaves

import cache_dit
from cache_dit import (
    BasicCacheConfig,
    CacheDiTError,
    CalibratorConfig,
    DBCacheConfig,
    Request,
    TaylorSeerCalibratorConfig,
)
from cache_dit.api import attachments_of
from cache_dit.caching.engine.flow import FlowCheck
from cache_dit.caching.engine.requests import current_request
from cache_dit.caching.engine.run import RunState
from cache_dit.caching.engine.session import Session
from cache_dit.errors import ConfigError
from cache_dit.stats import Problem

BASE = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=3, residual_diff_threshold=0.9, max_continuous_cached_steps=1
)
SECOND = DBCacheConfig(
    Fn_compute_blocks=2,
    Bn_compute_blocks=1,
    max_warmup_steps=1,
    residual_diff_threshold=0.8,
    max_continuous_cached_steps=1,
)
PARTIAL = DBCacheConfig().reset(residual_diff_threshold=1.0, max_warmup_steps=2)
TAYLOR = TaylorSeerCalibratorConfig(taylorseer_order=2)
LEVELS = TaylorSeerCalibratorConfig(taylorseer_order=1, calibrator_cache_type="hidden_states")
NAMED, UNNAMED = ("cond", "uncond"), (None, None)

# Of a request, and what comes out of it on a model that is cached with BASE and TAYLOR.
OWN: tuple[dict[str, Any], ...] = (
    {},
    {"cache_config": SECOND, "calibrator_config": CalibratorConfig()},
    {"cache_config": PARTIAL, "calibrator_config": LEVELS},
)
IN_FORCE = ((BASE, TAYLOR), (SECOND, CalibratorConfig()), (BASE.updated(PARTIAL), LEVELS))

FLOAT, WIDTH, IMAGE, TEXT = 4, 32, 16, 5
STREAMS, SIGNAL = (IMAGE + TEXT) * WIDTH * FLOAT, IMAGE * WIDTH * FLOAT
# One image, two branches: values of both streams, and a reference signal with its norm where one is measured.
PEAK_BYTES = (
    2 * (3 * STREAMS + SIGNAL + FLOAT),
    2 * (1 * STREAMS + SIGNAL + FLOAT),
    2 * (2 * STREAMS),
)


def run_of(request: Request) -> RunState:
    (state,) = request.states.values()
    return state


def verdicts(request: Request) -> list[Any]:
    return [step.verdict for step in run_of(request).record.steps]


def kept_bytes(request: Request) -> int:
    segments = [
        segment.tensors()
        for state in request.states.values()
        for branch in state.branches.values()
        for segment in branch.segments
    ]
    return sum(leaf.nbytes for leaf in tree_leaves(segments) if isinstance(leaf, Tensor))


@functools.cache
def alone(seed: int, steps: int, kind: int) -> tuple[Tensor, list[Any]]:
    """Result and verdicts of a run on a model of its own, which has the configuration."""
    model = cache_dit.enable_cache(small_flux(), *IN_FORCE[kind])
    request = Request()
    return Denoising(model, seed, steps, NAMED, request, batch=1).finish(), verdicts(request)


def test_results_depend_on_the_configuration() -> None:
    for seed in range(4):
        for kind in range(3):
            assert {verdict.skip for verdict in alone(seed, 5, kind)[1]} == {True, False}
    results = [alone(0, 5, kind)[0] for kind in range(3)]
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[1], results[2])


# --- random interleavings ---

Shape = tuple[int, int, bool, bool]  # configuration, steps, named branches, length is told


@st.composite
def interleavings(draw: Callable[..., Any]) -> tuple[list[Shape], list[int]]:
    """Four requests, and the order of twice their forwards (the second half of one counts by itself)."""
    shape = st.tuples(st.sampled_from(range(3)), st.sampled_from((4, 5)), st.booleans(), st.booleans())
    shapes: list[Shape] = draw(st.lists(shape, min_size=4, max_size=4))
    halves = [who for who, (_, steps, _, _) in enumerate(shapes) for _ in range(2 * 2 * steps)]
    return shapes, draw(st.permutations(halves))


def made(model: Any, shapes: list[Shape]) -> list[Denoising]:
    return [
        Denoising(
            model,
            seed,
            steps,
            NAMED if named else UNNAMED,
            Request(steps if told else None, **OWN[kind]),
            batch=1,
        )
        for seed, (kind, steps, named, told) in enumerate(shapes)
    ]


def in_a_loop(runs: list[Denoising], halves: Sequence[int]) -> None:
    forwards = [run.forwards() for run in runs]
    for who in halves[::2]:
        next(forwards[who], None)
    for rest in forwards:
        list(rest)


_speaker: ContextVar[int | None] = ContextVar("speaker", default=None)


class Turns:
    """One thread at a time: each waits before every half of a forward until it is next."""

    def __init__(self, halves: Sequence[int]) -> None:
        self._order = list(halves)
        self._changed = threading.Condition()
        self._speaking: int | None = None
        self._broken = False

    def take(self, who: int) -> None:
        with self._changed:
            self._give_back(who)
            mine = lambda: self._broken or (self._speaking is None and self._order[0] == who)  # noqa: E731
            assert self._changed.wait_for(mine, timeout=60), "a thread does not take its turn"
            assert not self._broken
            self._speaking = who
            del self._order[0]

    def leave(self, who: int, broken: bool) -> None:
        with self._changed:
            self._broken = self._broken or broken
            self._give_back(who)

    def _give_back(self, who: int) -> None:
        if self._speaking == who:
            self._speaking = None
            self._changed.notify_all()


class InTurn:
    """A request whose thread waits for its turn as soon as it has entered it."""

    def __init__(self, request: Any, turns: Turns, who: int) -> None:
        self.request, self._turns, self._who = request, turns, who

    def __enter__(self) -> None:
        self.request.__enter__()
        self._turns.take(self._who)

    def __exit__(self, *error: Any) -> None:
        self.request.__exit__(*error)


_turns: list[Turns] = []


def in_threads(runs: list[Denoising], halves: Sequence[int]) -> None:
    turns = Turns(halves)
    errors: list[BaseException] = []

    def go(who: int) -> None:
        _speaker.set(who)
        try:
            runs[who].request = InTurn(runs[who].request, turns, who)
            runs[who].finish()
            runs[who].request = runs[who].request.request
            turns.leave(who, broken=False)
        except BaseException as error:  # noqa: BLE001 - raised by the test
            errors.append(error)
            turns.leave(who, broken=True)

    threads = [threading.Thread(target=go, args=(who,)) for who in range(len(runs))]
    _turns.append(turns)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _turns.remove(turns)
    for error in errors:
        raise error


def in_tasks(runs: list[Denoising], halves: Sequence[int]) -> None:
    async def go(who: int, mine: asyncio.Semaphore, done: asyncio.Semaphore) -> None:
        for _ in runs[who].forwards():
            done.release()
            await mine.acquire()

    async def all_of_them() -> None:
        done = asyncio.Semaphore(0)
        gates = [asyncio.Semaphore(0) for _ in runs]
        async with asyncio.TaskGroup() as group:
            for who in range(len(runs)):
                group.create_task(go(who, gates[who], done))
                await done.acquire()
            for who in halves[::2]:
                gates[who].release()
                await asyncio.sleep(0)
            for who, run in enumerate(runs):
                for _ in range(2 * run.steps):
                    gates[who].release()

    asyncio.run(all_of_them())


@pytest.fixture(scope="module")
def model() -> Any:
    """Shared by all examples, so what one of them left behind would show in the next."""
    made = cache_dit.enable_cache(small_flux(), BASE, TAYLOR)

    def half(*_: Any) -> None:
        who = _speaker.get()
        if who is not None and _turns:
            _turns[-1].take(who)

    # The first block runs in every forward, before the decision.
    made.transformer_blocks[0].register_forward_hook(half)
    return made


@pytest.mark.parametrize("drive", [in_a_loop, in_threads, in_tasks])
@settings(
    max_examples=34,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(drawn=interleavings())
def test_every_request_is_as_if_alone(
    drive: Callable[[list[Denoising], Sequence[int]], None],
    model: Any,
    drawn: tuple[list[Shape], list[int]],
) -> None:
    shapes, halves = drawn
    runs = made(model, shapes)
    drive(runs, halves)
    for seed, (run, (kind, steps, _, told)) in enumerate(zip(runs, shapes, strict=True)):
        result, expected = alone(seed, steps, kind)
        assert torch.equal(run.latents, result)
        assert verdicts(run.request) == expected
        assert run_of(run.request).record.state_bytes == PEAK_BYTES[kind]
        assert bool(kept_bytes(run.request)) is not told


def test_threads_that_wait_for_nobody(model: Any) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    shapes: list[Shape] = [(kind, 5, kind != 1, kind != 2) for kind in (0, 1, 2, 0)]
    try:
        for _ in range(3):
            runs = made(model, shapes)
            with ThreadPoolExecutor(4) as pool:
                results = list(pool.map(Denoising.finish, runs, timeout=120))
            for seed, (kind, *_rest) in enumerate(shapes):
                assert torch.equal(results[seed], alone(seed, 5, kind)[0])
                assert verdicts(runs[seed].request) == alone(seed, 5, kind)[1]
    finally:
        sys.setswitchinterval(interval)


def test_the_bytes_of_requests_add_up(model: Any) -> None:
    shapes = [(kind, 5, True, True) for kind in (0, 1, 2, 1)]
    runs = made(model, shapes)
    forwards = [run.forwards() for run in runs]
    most = 0
    for _ in range(2 * 5):
        for rest in forwards:
            next(rest)
        most = max(most, sum(kept_bytes(run.request) for run in runs))
    assert most == sum(PEAK_BYTES[kind] for kind, *_ in shapes)
    assert sum(kept_bytes(run.request) for run in runs) == 0


# --- configurations of their own ---


def test_a_request_for_a_call_of_a_pipeline() -> None:
    expected, plain = (
        FLUX_TRUE_CFG.call(cache_dit.enable_cache(FLUX_TRUE_CFG.build(), config, TAYLOR), 0, 6)
        for config in (BASE.updated(PARTIAL), BASE)
    )
    pipe = cache_dit.enable_cache(FLUX_TRUE_CFG.build(), BASE, TAYLOR)
    with Request(cache_config=PARTIAL):
        assert torch.equal(FLUX_TRUE_CFG.call(pipe, 0, 6), expected)
    assert torch.equal(FLUX_TRUE_CFG.call(pipe, 0, 6), plain)
    assert not torch.equal(expected, plain)


def test_a_summary_tells_what_ran_under_each_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = cache_dit.enable_cache(FLUX_TRUE_CFG.build(), BASE, TAYLOR)
    with Request(cache_config=PARTIAL, calibrator_config=LEVELS):
        FLUX_TRUE_CFG.call(pipe, 0, 6)
    FLUX_TRUE_CFG.call(pipe, 0, 5)
    never = DBCacheConfig().reset(residual_diff_threshold=0.0, max_warmup_steps=1)
    for _ in range(2):
        with Request(cache_config=never):
            FLUX_TRUE_CFG.call(pipe, 0, 4)
    found = cache_dit.summary(pipe)
    assert [(entry.total_steps, entry.requested) for entry in found] == [(5, False), (6, True), (4, True)]
    assert [entry.config.partition("_R")[2] for entry in found] == ["0.9_T1O2", "1_T1O1", "0_T1O2"]
    assert found[1].cached_steps == [2, 4]
    (only,) = cache_dit.diagnose(pipe, logging=False)
    assert only.problem is Problem.NEVER_CACHED
    assert only.text.startswith(f"under {found[2].config}, as requested: residual_diff_threshold is 0,")
    printed = capsys.readouterr().out
    assert printed.count("(as requested)") == 2
    assert str(only) in printed


def test_equal_configurations_of_requests_are_one_session() -> None:
    model = cache_dit.enable_cache(small_flux(), BASE, TAYLOR)
    (attached,) = attachments_of(model)
    first, same, other = (
        attached.of(Request(cache_config=DBCacheConfig().reset(max_warmup_steps=warmup)))
        for warmup in (2, 2, 3)
    )
    assert first is same
    assert first.session.live is other.session.live is attached.session.live
    assert [one.requested for one in (attached, first, other)] == [False, True, True]
    for warmup in range(20):
        attached.of(Request(cache_config=DBCacheConfig().reset(max_warmup_steps=warmup)))
    assert len(attached.others) == 8


def test_a_configuration_that_does_not_fit_harms_no_other_request() -> None:
    model = cache_dit.enable_cache(small_flux(), BASE, TAYLOR)
    run = Denoising(model, 0, 5, NAMED, Request(), batch=1)
    run.advance()
    wrong = Request(cache_config=DBCacheConfig().reset(Fn_compute_blocks=3))
    with pytest.raises(ConfigError, match=r"Fn_compute_blocks is 3 but transformer_blocks .* has 3 blocks"):
        Denoising(model, 1, 5, NAMED, wrong, batch=1).advance()
    assert torch.equal(run.finish(), alone(0, 5, 0)[0])


def test_refresh_context_changes_what_a_partial_configuration_is_laid_over() -> None:
    model = cache_dit.enable_cache(small_flux(), SECOND, CalibratorConfig())
    request = Request(**OWN[2])
    Denoising(model, 1, 5, NAMED, request, batch=1).advance()
    cache_dit.refresh_context(model, cache_config=BASE, calibrator_config=TAYLOR)
    assert not request.states
    assert torch.equal(Denoising(model, 0, 5, NAMED, request, batch=1).finish(), alone(0, 5, 2)[0])


def test_a_request_takes_a_second_run() -> None:
    model = cache_dit.enable_cache(small_flux(), BASE, TAYLOR)
    request = Request(num_inference_steps=5)
    for seed in (0, 1):
        run = Denoising(model, seed, 5, NAMED, request, batch=1)
        assert torch.equal(run.finish(), alone(seed, 5, 0)[0])
        assert verdicts(request) == alone(seed, 5, 0)[1]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"num_inference_steps": 0}, ConfigError, "num_inference_steps is 0"),
        ({"num_inference_steps": 2.5}, TypeError, "num_inference_steps is 2.5"),
        ({"cache_config": {"Fn_compute_blocks": 1}}, TypeError, "cache_config is of type dict"),
        ({"calibrator_config": TAYLOR.reset(taylorseer_order=1)}, TypeError, "calibrator_config is of type"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Request(**arguments)


# --- the limit, and what ends a request ---


def limited(limit: int) -> Any:
    config = BASE.updated(BasicCacheConfig().reset(max_live_requests=limit))
    return cache_dit.enable_cache(small_flux(), config, TAYLOR)


def begun(model: Any, seed: int, **arguments: Any) -> Denoising:
    run = Denoising(model, seed, 5, NAMED, Request(**arguments), batch=1)
    run.advance()
    return run


def test_a_request_beyond_the_limit_is_refused_and_the_others_go_on() -> None:
    model = limited(2)
    first, second = begun(model, 0, num_inference_steps=5), begun(model, 1, **OWN[1])
    third = Denoising(model, 2, 5, NAMED, Request(**OWN[2]), batch=1)
    with pytest.raises(ConfigError) as caught:
        third.advance()
    for words in ("max_live_requests is 2", "FluxTransformer2DModel", "close()", "-1 for no limit"):
        assert words in str(caught.value)
    assert not third.request.states
    assert torch.equal(first.finish(), alone(0, 5, 0)[0])
    assert torch.equal(third.finish(), alone(2, 5, 2)[0])
    assert torch.equal(second.finish(), alone(1, 5, 1)[0])


@pytest.mark.parametrize("end", ["close", "last step", "object", "exception", "next run"])
def test_what_makes_room(end: str) -> None:
    model = limited(1)
    run = begun(model, 1, num_inference_steps=5)
    with pytest.raises(ConfigError):
        begun(model, 0)
    if end == "close":
        run.request.close()
        assert kept_bytes(run.request) == 0
    elif end == "last step":
        run.finish()
    elif end == "object":
        del run
    elif end == "exception":
        with run.request, pytest.raises(TypeError) as kept:
            model(hidden_states="nonsense")
        # Whoever keeps the error keeps the frames of the forward.
        assert kept.value.__traceback__ is not None
    else:
        again = Denoising(model, 0, 5, NAMED, run.request, batch=1)
        run.request.close()
        assert torch.equal(again.finish(), alone(0, 5, 0)[0])
    assert torch.equal(begun(model, 0).finish(), alone(0, 5, 0)[0])


@pytest.mark.parametrize(("limit", "allowed"), [(3, 3), (-1, 80)])
def test_how_many_may_live(limit: int, allowed: int) -> None:
    model = limited(limit)
    requests = [Request() for _ in range(allowed)]
    with torch.no_grad():
        for request in requests:
            with request:
                model(**FLUX.inputs(0))
        if limit > 0:
            with Request(), pytest.raises(ConfigError):
                model(**FLUX.inputs(0))


def test_the_limit_holds_between_threads() -> None:
    model = limited(2)
    start = threading.Barrier(6, timeout=60)
    outcomes: list[str] = []
    kept: list[Denoising] = []

    def begin(seed: int) -> None:
        start.wait()
        try:
            kept.append(begun(model, seed))
            outcomes.append("begun")
        except CacheDiTError:
            outcomes.append("refused")

    threads = [threading.Thread(target=begin, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["begun"] * 2 + ["refused"] * 4


def test_the_limit_is_that_of_the_transformer() -> None:
    model = limited(5)
    with pytest.raises(ConfigError, match=r"max_live_requests is 9 .* where it is 5; set it in enable_cache"):
        begun(model, 0, cache_config=DBCacheConfig().reset(max_live_requests=9))
    begun(model, 0, cache_config=SECOND)
    begun(model, 0, cache_config=BASE.updated(DBCacheConfig().reset(max_live_requests=5)))


def test_a_closed_request_begins_again() -> None:
    model = cache_dit.enable_cache(small_flux(), BASE, TAYLOR)
    request = Request(num_inference_steps=5)
    run = Denoising(model, 1, 5, NAMED, request, batch=1)
    run.advance()
    request.close()
    assert torch.equal(Denoising(model, 0, 5, NAMED, request, batch=1).finish(), alone(0, 5, 0)[0])


# --- entering ---


def test_requests_nest() -> None:
    outer, inner = Request(), Request()
    with outer:
        with inner, outer, inner:
            assert current_request() is inner
        assert current_request() is outer
    assert current_request().implicit


def test_a_request_entered_in_two_threads_is_left_in_each() -> None:
    request, entered, seen = Request(), threading.Barrier(2, timeout=60), []

    def enter(first: bool) -> None:
        with request:
            entered.wait()
            seen.append(current_request() is request)
            if not first:
                entered.wait()
        seen.append(current_request() is request)
        if first:
            entered.wait()

    threads = [threading.Thread(target=enter, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [False, False, True, True]


def test_generators_may_leave_requests_in_any_order() -> None:
    def hold(request: Request) -> Iterator[None]:
        with request:
            yield

    first, second = Request(), Request()
    holders = [hold(first), hold(second)]
    for holder in holders:
        next(holder)
    assert current_request() is second
    next(holders[0], None)
    assert current_request() is second
    next(holders[1], None)
    assert current_request().implicit


def test_a_thread_gets_the_request_that_its_task_entered() -> None:
    model = cache_dit.enable_cache(small_flux(), BASE, TAYLOR)

    async def serve(seed: int) -> Tensor:
        run = Denoising(model, seed, 5, NAMED, batch=1)
        with Request(num_inference_steps=5):
            while run.step < run.steps:
                await asyncio.to_thread(run.advance)
        return run.latents

    async def both() -> list[Tensor]:
        return await asyncio.gather(serve(0), serve(1))

    for seed, result in enumerate(asyncio.run(both())):
        assert torch.equal(result, alone(seed, 5, 0)[0])


# --- the first forward ---


def test_two_first_forwards_each_check_the_flow_over_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Once the flow is known, only 3 of the 5 blocks are visited.
    model = cache_dit.enable_cache(small_flux(), SECOND, TAYLOR)
    seen: dict[FlowCheck, int] = {}
    after, call = FlowCheck.after, Session._call

    def count(check: FlowCheck, output: Any) -> None:
        seen[check] = seen.get(check, 0) + 1
        after(check, output)

    def interrupt(*given: Any) -> Any:
        # What another thread may do between the decision to check and the forward.
        monkeypatch.setattr(Session, "_call", call)
        Denoising(model, 1, 5, NAMED, Request(), batch=1).forward(0)
        return call(*given)

    monkeypatch.setattr(FlowCheck, "after", count)
    monkeypatch.setattr(Session, "_call", interrupt)
    Denoising(model, 0, 5, NAMED, Request(), batch=1).forward(0)
    assert list(seen.values()) == [5, 5]


# --- the document ---


def test_the_example_of_the_document() -> None:
    text = (Path(__file__).parents[1] / "docs" / "requests.md").read_text()
    code = "\n".join(part.split("```")[0] for part in text.split("```python\n")[1:])

    def noise(seed: int) -> Tensor:
        return FLUX.inputs(seed)["hidden_states"]

    def prompt(seed: int) -> dict[str, Any]:
        skipped = ("hidden_states", "timestep")
        return {name: value for name, value in FLUX.inputs(seed).items() if name not in skipped}

    names: dict[str, Any] = {"transformer": small_flux(), "noise": noise, "prompt": prompt}
    exec(compile(code, "requests.md", "exec"), names)
    done = names["done"]
    assert [job.request.num_inference_steps for job in done] == [6, 8, 9]
    assert all(any(verdict.skip for verdict in verdicts(job.request)) for job in done)
    base = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9)
    own = base.updated(DBCacheConfig().reset(max_continuous_cached_steps=1))
    settings_of = {0: (base, CalibratorConfig()), 1: (base, CalibratorConfig()), 2: (own, TAYLOR)}
    for job, seed in zip(done, (0, 2, 1), strict=True):
        model = cache_dit.enable_cache(small_flux(), *settings_of[seed])
        request = Request(job.request.num_inference_steps)
        alone = names["Job"](noise(seed), prompt(seed), request)
        while not alone.advance(model):
            pass
        assert torch.equal(job.latents, alone.latents)
        assert verdicts(job.request) == verdicts(request)
