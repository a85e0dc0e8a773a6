"""Runs do not know each other: whatever happened before or happens beside it, a run is as if alone.

Every comparison is bit for bit, between results that depend on what was cached: the gate looks at the
change, and the forecast is made of the last three computed steps.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny.models import FLUX
from tiny.pipelines import (
    CHROMA_PIPELINE,
    FLUX_IMAGE_TO_IMAGE,
    FLUX_TRUE_CFG,
    SD3_PIPELINE,
    WAN_TWO_TRANSFORMERS,
    TinyPipeline,
)
from tiny.runs import Denoising, decisions
from torch import Tensor, nn

import cache_dit
from cache_dit import DBCacheConfig, Request, TaylorSeerCalibratorConfig
from cache_dit.api import attachments_of
from cache_dit.caching.attach.timeline import PipelineTimeline
from cache_dit.caching.catalogue import IntervalConfig
from cache_dit.caching.config import Place
from cache_dit.caching.engine.clock import Clock
from cache_dit.caching.engine.records import RunRecord
from cache_dit.caching.engine.requests import Noise
from cache_dit.caching.engine.run import RunState
from cache_dit.caching.maths.gate import Reason

STEPS = 6
CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=2
)
TAYLOR = TaylorSeerCalibratorConfig(taylorseer_order=2)
NAMED, UNNAMED, SINGLE = ("cond", "uncond"), (None, None), (None,)

each_pipeline = pytest.mark.parametrize(
    "tiny", [FLUX_TRUE_CFG, CHROMA_PIPELINE, WAN_TWO_TRANSFORMERS], ids=lambda tiny: tiny.id
)
each_calling = pytest.mark.parametrize(
    ("branches", "separate"),
    [(NAMED, None), (UNNAMED, None), (UNNAMED, True), (SINGLE, None), (SINGLE, False)],
    ids=["named", "unnamed", "by parity", "single", "single by parity"],
)


def cached(target: Any, **options: Any) -> Any:
    return cache_dit.enable_cache(target, CONFIG.updated(DBCacheConfig().reset(**options)), TAYLOR)


def second_pipeline(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Another pipeline with the same models and a scheduler of its own."""
    parts = pipe.components | {"scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)}
    if "boundary_ratio" in pipe.config:
        parts["boundary_ratio"] = pipe.config.boundary_ratio
    other = type(pipe)(**parts)
    other.set_progress_bar_config(disable=True)
    return other


@functools.cache
def pipeline_alone(tiny: TinyPipeline, seed: int, steps: int = STEPS) -> Tensor:
    pipe = cached(tiny.build())
    result = tiny.call(pipe, seed, steps)
    assert any("S" in decisions(pipe, branch=0, which=which) for which in range(len(tiny.transformers)))
    return result


@functools.cache
def alone(
    seed: int,
    steps: int = STEPS,
    branches: tuple[str | None, ...] = SINGLE,
    separate: bool | None = None,
    batch: int = 2,
) -> Tensor:
    model = cached(FLUX.build(), enable_separate_cfg=separate)
    result = Denoising(model, seed, steps, branches, batch=batch).finish()
    assert "S" in decisions(model)
    assert "C" in decisions(model)[CONFIG.max_warmup_steps :]
    return result


class Broken(Exception):
    """Raised on purpose."""


def break_once(module: nn.Module, calls: int) -> None:
    """Let a module raise in one of its forwards, after `calls` others."""
    count = itertools.count()

    def raise_once(*_: Any) -> None:
        if next(count) == calls:
            raise Broken

    module.register_forward_hook(raise_once)


def in_turns(first: Denoising, second: Denoising) -> Iterator[Denoising]:
    """Both runs, step by step, until both are finished."""
    while first.step < first.steps or second.step < second.steps:
        for run in (first, second):
            if run.step < run.steps:
                yield run


def in_two_threads(first: Callable[[], Tensor], second: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(first), pool.submit(second)]
        return futures[0].result(timeout=60), futures[1].result(timeout=60)


def meet(module: nn.Module) -> None:
    """Every forward of a module waits for one in another thread, so that two runs go side by side."""
    barrier = threading.Barrier(2, timeout=30)

    def wait(*_: Any) -> None:
        barrier.wait()

    module.register_forward_pre_hook(wait)


# --- the tests can fail ---


def test_results_depend_on_seed_steps_and_cache() -> None:
    plain = Denoising(FLUX.build(), 0).finish()
    results = [plain, alone(0), alone(1), alone(0, steps=STEPS + 2)]
    for one, other in itertools.combinations(results, 2):
        assert not torch.equal(one, other)


# --- side by side ---


@each_pipeline
def test_two_threads_with_a_pipeline_each(tiny: TinyPipeline) -> None:
    first = cached(tiny.build())
    second = cached(second_pipeline(first))
    for name in tiny.transformers:
        meet(getattr(first, name))
    results = in_two_threads(lambda: tiny.call(first, 0, STEPS), lambda: tiny.call(second, 1, STEPS))
    assert torch.equal(results[0], pipeline_alone(tiny, 0))
    assert torch.equal(results[1], pipeline_alone(tiny, 1))


@each_calling
@pytest.mark.parametrize("with_requests", [True, False])
def test_two_threads_with_a_bare_transformer(
    branches: tuple[str | None, ...], separate: bool | None, with_requests: bool
) -> None:
    model = cached(FLUX.build(), enable_separate_cfg=separate)
    meet(model)
    runs = [Denoising(model, seed, STEPS, branches, Request() if with_requests else None) for seed in (0, 1)]
    results = in_two_threads(runs[0].finish, runs[1].finish)
    assert torch.equal(results[0], alone(0, branches=branches, separate=separate))
    assert torch.equal(results[1], alone(1, branches=branches, separate=separate))


@each_calling
def test_two_requests_in_turns(branches: tuple[str | None, ...], separate: bool | None) -> None:
    model = cached(FLUX.build(), enable_separate_cfg=separate)
    first = Denoising(model, 0, 6, branches, Request(num_inference_steps=6))
    second = Denoising(model, 1, 8, branches, Request())
    for run in in_turns(first, second):
        run.advance()
    assert torch.equal(first.latents, alone(0, 6, branches, separate))
    assert torch.equal(second.latents, alone(1, 8, branches, separate))


@pytest.mark.parametrize("with_requests", [True, False])
def test_two_tasks(with_requests: bool) -> None:
    model = cached(FLUX.build())

    async def finish(run: Denoising) -> Tensor:
        while run.step < run.steps:
            run.advance()
            await asyncio.sleep(0)
        return run.latents

    async def both() -> list[Tensor]:
        # Tasks start with a copy of what this one has in its context variables.
        Denoising(model, 2).finish()
        runs = [
            Denoising(model, seed, steps, request=Request() if with_requests else None)
            for seed, steps in ((0, 6), (1, 8))
        ]
        return await asyncio.gather(*(finish(run) for run in runs))

    first, second = asyncio.run(both())
    assert torch.equal(first, alone(0, 6))
    assert torch.equal(second, alone(1, 8))


def test_two_threads_that_started_with_the_context_of_one() -> None:
    model = cached(FLUX.build())
    Denoising(model, 2).finish()
    meet(model)

    async def both() -> list[Tensor]:
        runs = [Denoising(model, seed) for seed in (0, 1)]
        return await asyncio.gather(*(asyncio.to_thread(run.finish) for run in runs))

    first, second = asyncio.run(both())
    assert torch.equal(first, alone(0))
    assert torch.equal(second, alone(1))


@each_pipeline
@pytest.mark.parametrize("both_enabled", [True, False])
def test_two_pipelines_take_turns_with_a_transformer(tiny: TinyPipeline, both_enabled: bool) -> None:
    first = cached(tiny.build())
    second = second_pipeline(first)
    if both_enabled:
        cached(second)
    for pipe, seed in ((first, 0), (second, 1), (second, 0), (first, 1)):
        assert torch.equal(tiny.call(pipe, seed, STEPS), pipeline_alone(tiny, seed))


def test_a_bare_transformer_beside_its_pipeline() -> None:
    pipe = cached(FLUX_TRUE_CFG.build())
    run = Denoising(pipe.transformer, 0, branches=NAMED)
    for _ in range(STEPS // 2):
        run.advance()
    assert torch.equal(FLUX_TRUE_CFG.call(pipe, 0, STEPS), pipeline_alone(FLUX_TRUE_CFG, 0))
    assert torch.equal(run.finish(), alone(0, branches=NAMED))


# --- one after the other ---


@each_pipeline
@pytest.mark.parametrize("after_the_decision", [True, False])
def test_exception_in_a_forward(tiny: TinyPipeline, after_the_decision: bool) -> None:
    pipe = cached(tiny.build())
    model = getattr(pipe, tiny.transformers[0])
    first_block = next(part[0] for part in model.children() if isinstance(part, nn.ModuleList))
    # The first block runs in every forward.
    break_once(model if after_the_decision else first_block, 3)
    with pytest.raises(Broken):
        tiny.call(pipe, 1, STEPS)
    assert torch.equal(tiny.call(pipe, 0, STEPS), pipeline_alone(tiny, 0))


@each_calling
@pytest.mark.parametrize("calls", [1, 2])
def test_exception_in_a_block_of_a_bare_transformer(
    branches: tuple[str | None, ...], separate: bool | None, calls: int
) -> None:
    model = cached(FLUX.build(), enable_separate_cfg=separate)
    break_once(model.single_transformer_blocks[2], calls)
    with pytest.raises(Broken):
        Denoising(model, 1, STEPS, branches).finish()
    assert torch.equal(
        Denoising(model, 0, STEPS, branches).finish(), alone(0, branches=branches, separate=separate)
    )


@pytest.mark.parametrize("through_pipeline", [True, False])
@pytest.mark.parametrize("at", [1, 4])
def test_exception_in_a_callback(through_pipeline: bool, at: int) -> None:
    pipe = cached(FLUX_TRUE_CFG.build())
    if not through_pipeline:
        pipe = second_pipeline(pipe)

    def break_at(_pipe: Any, step: int, _time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            raise Broken
        return kwargs

    with pytest.raises(Broken):
        FLUX_TRUE_CFG.call(functools.partial(pipe, callback_on_step_end=break_at), 1, STEPS)
    assert torch.equal(FLUX_TRUE_CFG.call(pipe, 0, STEPS), pipeline_alone(FLUX_TRUE_CFG, 0))


@each_calling
@pytest.mark.parametrize(("taken", "further_calls"), [(2, 0), (4, 1), (STEPS, 0)])
def test_dropped_bare_run(
    branches: tuple[str | None, ...], separate: bool | None, taken: int, further_calls: int
) -> None:
    model = cached(FLUX.build(), enable_separate_cfg=separate)
    dropped = Denoising(model, 1, STEPS, branches)
    for _ in range(taken):
        dropped.advance()
    for place in range(further_calls):
        dropped.forward(place)
    run = Denoising(model, 0, STEPS, branches)
    assert torch.equal(run.finish(), alone(0, branches=branches, separate=separate))


@each_pipeline
def test_number_of_steps_changes_between_runs(tiny: TinyPipeline) -> None:
    pipe = cached(tiny.build())
    for steps in (STEPS, STEPS + 2, STEPS - 1):
        assert torch.equal(tiny.call(pipe, 0, steps), pipeline_alone(tiny, 0, steps))


@pytest.mark.parametrize("known", [True, False])
def test_number_of_steps_of_a_bare_run_changes(known: bool) -> None:
    model = cached(FLUX.build())
    for steps in (STEPS, STEPS + 2, STEPS - 1):
        if known:
            cache_dit.refresh_context(model, num_inference_steps=steps)
        assert torch.equal(Denoising(model, 0, steps).finish(), alone(0, steps))
        assert attachments_of(model)[0].session.latest.total_steps == (steps if known else None)


def test_size_and_batch_change_between_runs_of_a_pipeline() -> None:
    tiny = FLUX_TRUE_CFG
    pipe = cached(tiny.build())
    tiny.call(pipe, 1, STEPS)
    for change in ({"height": 96}, {"num_images_per_prompt": 2}):
        fresh = cached(tiny.build())
        expected = tiny.call(changed_call(fresh, change), 0, STEPS)
        assert "S" in decisions(fresh)
        assert torch.equal(tiny.call(changed_call(pipe, change), 0, STEPS), expected)
        assert torch.equal(tiny.call(pipe, 0, STEPS), pipeline_alone(tiny, 0))


def changed_call(pipe: DiffusionPipeline, change: dict[str, Any]) -> Any:
    return lambda **options: pipe(**options | change)


def test_batch_changes_between_bare_runs() -> None:
    model = cached(FLUX.build())
    for batch in (2, 1, 2):
        assert torch.equal(Denoising(model, 0, batch=batch).finish(), alone(0, batch=batch))


def test_batch_changes_within_a_run() -> None:
    model = cached(FLUX.build(), residual_diff_threshold=1.0, max_continuous_cached_steps=-1)
    run = Denoising(model, 0, steps=8)
    for _ in range(4):
        run.advance()
    run.halve()
    run.finish()
    steps = attachments_of(model)[0].session.latest.of(0, "")
    assert decisions(model) == "CCSSCSSS"
    assert steps[4].verdict.reason is Reason.RESHAPED


@pytest.mark.parametrize("taken", [1, 3])
@each_calling
def test_refresh_context_drops_a_run(
    taken: int, branches: tuple[str | None, ...], separate: bool | None
) -> None:
    model = cached(FLUX.build(), enable_separate_cfg=separate)
    dropped = Denoising(model, 1, STEPS, branches)
    for _ in range(taken):
        dropped.advance()
    cache_dit.refresh_context(model)
    run = Denoising(model, 0, STEPS, branches)
    assert torch.equal(run.finish(), alone(0, branches=branches, separate=separate))


def test_refresh_context_between_runs_of_a_pipeline() -> None:
    tiny = FLUX_TRUE_CFG
    pipe = cached(tiny.build())
    assert torch.equal(tiny.call(pipe, 0, STEPS), pipeline_alone(tiny, 0))
    cache_dit.refresh_context(pipe, cache_config=DBCacheConfig().reset(residual_diff_threshold=0.0))
    assert torch.equal(tiny.call(pipe, 0, STEPS), tiny.call(tiny.build(), 0, STEPS))
    cache_dit.refresh_context(pipe, num_inference_steps=STEPS, cache_config=CONFIG)
    assert torch.equal(tiny.call(pipe, 0, STEPS), pipeline_alone(tiny, 0))


# --- branches ---


def test_branches_are_the_same_however_they_are_told_apart() -> None:
    named = alone(0, branches=NAMED)
    assert torch.equal(alone(0, branches=UNNAMED), named)
    assert torch.equal(alone(0, branches=UNNAMED, separate=True), named)


@pytest.mark.parametrize(("first", "labels"), [(False, ("cond", "uncond")), (True, ("uncond", "cond"))])
def test_cfg_compute_first_names_the_branches(first: bool, labels: tuple[str, str]) -> None:
    model = cached(FLUX.build(), enable_separate_cfg=True, cfg_compute_first=first)
    result = Denoising(model, 0, branches=UNNAMED).finish()
    assert attachments_of(model)[0].session.latest.branches == labels
    assert torch.equal(result, alone(0, branches=UNNAMED, separate=True))


def changes(target: Any, branch: int) -> list[float | None]:
    record = attachments_of(target)[0].session.latest
    return [step.verdict.change for step in record.of(0, record.branches[branch])]


@pytest.mark.parametrize("branches", [NAMED, UNNAMED], ids=["named", "unnamed"])
@pytest.mark.parametrize("total", [None, STEPS])
def test_second_branch_takes_over_the_change_of_the_first(
    branches: tuple[str | None, ...], total: int | None
) -> None:
    options: dict[str, Any] = {"num_inference_steps": total, "residual_diff_threshold": 0.7}
    model = cached(FLUX.build(), cfg_diff_compute_separate=False, **options)
    Denoising(model, 1, STEPS, branches).finish()
    assert {"C", "S"} <= set(decisions(model)[CONFIG.max_warmup_steps :])
    assert decisions(model, branch=1) == decisions(model, branch=0)
    assert changes(model, branch=1) == changes(model, branch=0)

    separate = cached(FLUX.build(), **options)
    Denoising(separate, 1, STEPS, branches).finish()
    assert changes(separate, branch=1) != changes(separate, branch=0)


# --- where steps are counted ---


@pytest.mark.parametrize(
    ("policy", "expected", "beginnings"),
    [("once", "CCSSCCSSSS", (0, 4)), ("repeat", "CCSSCCSSCC", (0, 4, 8))],
)
@pytest.mark.parametrize("branches", [SINGLE, NAMED], ids=["single", "named"])
def test_forced_refresh_is_a_new_run_at_that_step(
    policy: str, expected: str, beginnings: tuple[int, ...], branches: tuple[str | None, ...]
) -> None:
    options: dict[str, Any] = {"residual_diff_threshold": 1.0, "max_continuous_cached_steps": -1}
    model = cached(FLUX.build(), force_refresh_step_hint=4, force_refresh_step_policy=policy, **options)
    result = Denoising(model, 0, 10, branches).finish()
    assert decisions(model) == expected

    parts = Denoising(cached(FLUX.build(), **options), 0, 10, branches)
    for step in range(10):
        if step in beginnings:
            parts.request = Request()
        parts.advance()
    assert torch.equal(parts.latents, result)


def test_two_transformers_count_their_own_steps() -> None:
    tiny = WAN_TWO_TRANSFORMERS
    pipe = cached(tiny.build(), residual_diff_threshold=1.0, max_continuous_cached_steps=-1)
    duty: list[str] = []
    for name in tiny.transformers:
        getattr(pipe, name).register_forward_pre_hook(lambda *_, name=name: duty.append(name))
    results = [tiny.call(pipe, seed, 12) for seed in (0, 1, 0)]
    assert torch.equal(results[0], results[2])
    for which, name in enumerate(tiny.transformers):
        steps = duty.count(name) // 3 // 2
        assert decisions(pipe, which=which) == "CC" + "S" * (steps - 2)
        assert steps > 2


def test_image_to_image_runs_fewer_steps_than_scheduled() -> None:
    tiny = FLUX_IMAGE_TO_IMAGE
    pipe = cached(tiny.build(), steps_computation_mask=[1, 1, 0, 1, 0, 1])
    tiny.call(pipe, 0, STEPS)
    assert len(pipe.scheduler.timesteps) == 2 * STEPS
    assert attachments_of(pipe)[0].session.latest.total_steps == STEPS
    for branch in (0, 1):
        assert decisions(pipe, branch) in ("CCSCSC", "CCSCCC", "CCCCSC")


class Heun(diffusers.FlowMatchHeunDiscreteScheduler):
    """Two forwards at one timestep; takes the arguments that flow-matching pipelines pass."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: Any = None
    ) -> None:
        super().set_timesteps(num_inference_steps or len(sigmas), device)


@pytest.mark.parametrize("tiny", [FLUX_TRUE_CFG, CHROMA_PIPELINE, SD3_PIPELINE], ids=lambda tiny: tiny.id)
def test_heun_counts_both_forwards_of_a_timestep(tiny: TinyPipeline) -> None:
    pipe = tiny.build()
    pipe.scheduler = Heun()
    cached(pipe, residual_diff_threshold=1.0)
    result = tiny.call(pipe, 0, 6)
    assert len(set(pipe.scheduler.timesteps.tolist())) == 6
    for branch in range(tiny.calls_per_step):
        assert decisions(pipe, branch) == "CCSSCSSCSSC"
    tiny.call(pipe, 1, 6)
    assert torch.equal(tiny.call(pipe, 0, 6), result)


# --- which blocks run ---


def count_calls(blocks: nn.ModuleList) -> list[int]:
    counts = [0] * len(blocks)
    for index, block in enumerate(blocks):

        def count(*_: Any, index: int = index) -> None:
            counts[index] += 1

        block.register_forward_hook(count)
    return counts


def test_static_mask_runs_no_block_on_skipped_steps() -> None:
    mask = [1, 1, 0, 0, 1, 0, 0, 1]
    model = cached(FLUX.build(), steps_computation_mask=mask, steps_computation_policy="static")
    counts = [count_calls(model.get_submodule(path)) for path in FLUX.block_lists]
    run = Denoising(model, 0, len(mask))
    for step, computed in enumerate(mask):
        run.advance()
        assert set(counts[0] + counts[1]) == {sum(mask[: step + 1])}, f"step {step}, computed: {computed}"


@pytest.mark.parametrize(("first", "last"), [(1, 0), (2, 3), (5, 4)])
def test_dynamic_decision_runs_first_and_last_blocks_on_skipped_steps(first: int, last: int) -> None:
    model = cached(
        FLUX.build(), Fn_compute_blocks=first, Bn_compute_blocks=last, residual_diff_threshold=0.99
    )
    double, single = (count_calls(model.get_submodule(path)) for path in FLUX.block_lists)
    Denoising(model, 0).finish()
    computed = decisions(model).count("C")
    assert computed < STEPS
    assert double == [STEPS] * first + [computed] * (6 - first)
    assert single == [computed] * (5 - last) + [STEPS] * last


def test_a_run_dropped_after_one_call_leaves_nothing_to_forecast_from() -> None:
    model = FLUX.build()
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0)
    cache_dit.enable_cache(model, config)
    Denoising(model, 1).advance()
    successor = Denoising(model, 0)
    successor.advance()
    successor.advance()
    assert set(decisions(model)) == {"C"}


def test_forced_refreshes_are_stages_with_a_length_of_their_own() -> None:
    every = IntervalConfig(interval=3, last_step_computed=True, max_warmup_steps=1)
    for hint, policy, expected in (
        (None, "once", "CSSCSSCSSC"),
        (4, "once", "CSSCCSSCSC"),
        (4, "repeat", "CSSCCSSCCC"),
    ):
        options = {"force_refresh_step_hint": hint, "force_refresh_step_policy": policy}
        config = every.updated(IntervalConfig().reset(num_inference_steps=10, **options))
        model = cache_dit.enable_cache(FLUX.build(), config)
        Denoising(model, 0, 10).finish()
        assert decisions(model) == expected, (hint, policy)


class _Scheduled:
    """A pipeline that has nothing but a scheduler, and a number of steps."""

    def __init__(self, scheduler: Any, steps: int) -> None:
        self.scheduler, self._num_timesteps = scheduler, steps


def test_the_noise_of_an_inverted_schedule_falls() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    noise = PipelineTimeline(_Scheduled(scheduler, 4)).noise()
    assert noise is not None
    assert noise.levels == pytest.approx((1.0, 0.75, 0.5, 0.25))
    assert noise.strides == pytest.approx((-0.25,) * 4)


def test_the_noise_of_a_run_over_a_part_of_the_schedule_is_that_of_the_part() -> None:
    noise = Noise((0.9, 0.7, 0.5, 0.3, 0.1), None)
    state = RunState(Clock(), 3, RunRecord(total_steps=3), noise)
    assert [state.sigma(step) for step in range(3)] == [0.5, 0.3, 0.1]
    state.total = 5
    assert [state.sigma(step) for step in range(5)] == list(noise.levels)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_a_skipped_step_has_the_type_of_a_computed_one() -> None:
    config = IntervalConfig(interval=2, place=Place.OUTPUT)
    model: Any = cache_dit.enable_cache(FLUX.build(), config)
    kinds = []
    for step in range(6):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            kinds.append(model(**FLUX.inputs(step), return_dict=False)[0].dtype)
    assert set(decisions(model)) == {"C", "S"}
    assert set(kinds) == {torch.bfloat16}
