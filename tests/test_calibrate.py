"""Calibration: paths against brute force, searches on made-up runs, and the demo model from end to end."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import cache_dit
from cache_dit.caching.attach.override import attachment_of
from cache_dit.caching.gates.scheduled import ScheduleConfig
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.demo import PROMPTS, load_pipeline
from cache_dit.errors import ConfigError, ConfigTypeError
from cache_dit.tune import ClosedLoop, DPCache, LeMiCa, Search, calibrate, magcache_ratios, observe
from cache_dit.tune.closed_loop import candidates
from cache_dit.tune.paths import bottleneck_path, cheapest_path
from cache_dit.tune.recording import Call, Recording, record

DEMO = {"height": 64, "width": 64, "max_sequence_length": 10}
TOTAL = 6


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


def paths(total: int, count: int) -> Iterator[tuple[int, ...]]:
    """Every choice of `count` steps with step 0."""
    for rest in itertools.combinations(range(1, total), count - 1):
        yield (0, *rest)


def edges(path: tuple[int, ...], total: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise((*path, total)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 4, 7, 8])
def test_the_bottleneck_path_is_the_best_of_all(seed: int, count: int) -> None:
    rng, total = random.Random(seed), 8
    # Few different weights, so that ties have to be broken by the next worst edge.
    weights = {(i, j): float(rng.randrange(4)) for i in range(total) for j in range(i + 1, total + 1)}

    def rank(path: tuple[int, ...]) -> list[float]:
        return sorted((weights[edge] for edge in edges(path, total)), reverse=True)

    found = bottleneck_path(weights, total, count)
    assert found is not None
    assert len(found) == count
    assert rank(found) == min(map(rank, paths(total, count)))


def test_the_bottleneck_path_prefers_two_bad_gaps_to_one_worse() -> None:
    weights = {(i, j): 0.0 for i in range(6) for j in range(i + 1, 7)}
    weights |= {(0, 2): 3.0, (2, 4): 3.0, (4, 6): 3.0, (0, 1): 0.0, (1, 5): 4.0, (5, 6): 0.0}
    only = {edge: weights[edge] for edge in ((0, 2), (2, 4), (4, 6), (0, 1), (1, 5), (5, 6))}
    assert bottleneck_path(only, 6, 3) == (0, 2, 4), "a sum would take 0, 1, 5"


def test_without_an_allowed_path_there_is_none() -> None:
    assert bottleneck_path({(0, 2): 1.0, (2, 4): 1.0}, 4, 3) is None
    assert cheapest_path(lambda i, j, k: 0.0, (0, 1), 8, 3, longest=3) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "longest"), [(3, 8), (5, 4), (8, 2), (3, 4)])
def test_the_cheapest_path_is_the_best_of_all(seed: int, count: int, longest: int) -> None:
    rng, total = random.Random(seed), 8
    costs = {triple: rng.random() for triple in itertools.combinations(range(total + 1), 3)}

    def cost(path: tuple[int, ...]) -> float:
        steps = (*path, total)
        return sum(costs[triple] for triple in zip(steps, steps[1:], steps[2:], strict=False))

    found = cheapest_path(lambda *triple: costs[triple], (0, 1), total, count, longest)
    allowed = [
        path
        for path in paths(total, count)
        if path[1] == 1 and all(j - i <= longest for i, j in edges(path, total)[1:])
    ]
    assert found == min(allowed, key=cost)


def recording(values: list[float]) -> Recording:
    outputs = torch.tensor(values)[:, None].expand(-1, 3).contiguous()
    return Recording(torch.zeros(1), outputs, None)


def test_dpcache_computes_where_the_output_bends() -> None:
    # Straight, but for bends at the steps 5 and 9.
    values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 4.0, 3.0, 2.0, 1.0, 3.0, 5.0, 7.0, 9.0]
    assert chosen(DPCache(warmup=2), [values], 6) == (0, 1, 5, 6, 9, 10)


def test_dpcache_averages_over_runs() -> None:
    bent_at_3 = [0.0, 0.0, 0.0, 0.0, 9.0, 18.0, 27.0, 36.0]
    bent_at_5 = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]
    search = DPCache(warmup=2)
    assert chosen(search, [bent_at_3], 4) == (0, 1, 3, 4)
    assert chosen(search, [bent_at_5], 4) == (0, 1, 5, 6)
    assert chosen(search, [bent_at_3, bent_at_5], 4) == (0, 1, 3, 4), "the larger error counts"


def chosen(search: Search, runs: list[list[float]], count: int) -> tuple[int, ...]:
    choice = search.choose([search.look(recording(values), rerun) for values in runs], len(runs[0]), count)
    assert choice is not None
    return choice


def rerun(*configs: Any) -> Any:
    raise AssertionError("this search needs no second run")


def straight(steps: int) -> Trajectory:
    return Trajectory.expected(tuple(1.0 - step / steps for step in range(steps + 1)))


@pytest.mark.parametrize(("steps", "count"), [(28, 9), (28, 14), (6, 4), (6, 2), (6, 6)])
def test_candidates_are_schedules_with_different_beginnings(steps: int, count: int) -> None:
    found = candidates(straight(steps), count, 5)
    assert all(made[0] == 0 and len(made) == count and made[-1] < steps for made in found)
    assert all(list(made) == sorted(set(made)) for made in found)
    assert len({made[:4] for made in found}) == len(found) == (5 if count < steps else 1)
    assert found[0] == straight(steps).schedule(count)


def test_the_closed_loop_takes_what_ends_nearest_to_the_uncached_runs() -> None:
    search = ClosedLoop(trajectory=straight(12), computed_steps=5, tries=4)
    tried = candidates(search.trajectory, 5, 4)
    errors = {tried[0]: (1.0, 1.0), tried[1]: (0.1, 2.0), tried[2]: (0.9, 0.9), tried[3]: (3.0, 0.0)}

    def look(number: int) -> dict[tuple[int, ...], float]:
        made = recording([0.0] * 12)
        return search.look(
            made, lambda cache, calibrator: made.final + errors[cache.schedule.computed][number]
        )

    seen = [look(0), look(1)]
    assert seen[0][tried[3]] == pytest.approx(9.0), "squares"
    assert search.choose(seen, 12, 5) == tried[2], "the sum of squares decides, so the worst run mostly"
    assert search.choose(seen, 12, 6) is None, "another number of steps was not tried"


def test_one_run_in_ten_does_not_decide() -> None:
    """It ends in another picture, by chance, and with an error that drowns all others."""
    search = ClosedLoop(trajectory=straight(12), computed_steps=5, tries=2)
    safe, near = candidates(search.trajectory, 5, 2)
    seen = [{safe: 1.0, near: 0.5}] * 9
    assert search.choose([*seen, {safe: 1.0, near: 50.0}], 12, 5) == near
    assert search.choose([*seen, *[{safe: 1.0, near: 50.0}] * 2], 12, 5) == safe


def test_the_closed_loop_wants_a_trajectory_of_the_same_length() -> None:
    search = ClosedLoop(trajectory=straight(12), computed_steps=5)
    with pytest.raises(
        ConfigError, match="trajectory is one of 12 steps but the runs have 6; calibrate with"
    ):
        search.look(recording([0.0] * 6), rerun)


def test_the_closed_loop_on_the_demo_model(pipe: Any) -> None:
    trajectory = calibrate(pipe, PROMPTS[:2], num_inference_steps=TOTAL, **DEMO)
    search = ClosedLoop(trajectory=trajectory, computed_steps=3, tries=3)
    seen = observe(pipe, PROMPTS[:1], num_inference_steps=TOTAL, search=search, **DEMO)
    (errors,) = seen.seen
    assert len(errors) == 3
    assert min(errors.values()) > 0.0
    assert errors[seen.schedule(3).computed] == min(errors.values())


def test_a_recording_is_the_run(pipe: Any) -> None:
    guided = {**DEMO, "true_cfg_scale": 2.0, "negative_prompt": ""}
    entries: list[torch.Tensor] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: entries.append(kwargs["hidden_states"].flatten()), with_kwargs=True
    )
    with hook:
        made = record(pipe, Call(PROMPTS[0], TOTAL, 0, guided))
    assert made.noise is not None
    assert made.noise.strides is not None
    # FluxPipeline computes the conditional branch first.
    first, second = made.outputs.chunk(2, dim=1)
    moved = torch.tensor(made.noise.strides) @ (second + 2.0 * (first - second))
    torch.testing.assert_close(entries[0] + moved, made.final)


def test_calibration_leaves_the_pipeline_as_it_was(pipe: Any) -> None:
    before = dict(vars(pipe.transformer))
    trajectory = calibrate(pipe, PROMPTS[:2], num_inference_steps=TOTAL, **DEMO)
    schedule = observe(pipe, PROMPTS[:2], num_inference_steps=TOTAL, **DEMO).schedule(4)
    assert dict(vars(pipe.transformer)) == before
    assert not pipe.transformer._forward_hooks
    assert (trajectory.steps, trajectory.pictures) == (TOTAL, 2)
    assert trajectory.model == schedule.model == "FluxTransformer2DModel"
    assert (schedule.total, len(schedule.computed), schedule.method) == (TOTAL, 4, "DPCache")
    assert set(schedule.versions) == {"cache_dit", "diffusers", "torch"}


def test_calibration_keeps_the_products_of_the_outputs(pipe: Any) -> None:
    made = record(pipe, Call(PROMPTS[0], TOTAL, 5, DEMO))  # the seed of the call below
    trajectory = calibrate(pipe, PROMPTS[:1], num_inference_steps=TOTAL, seed=5, **DEMO)
    outputs = made.outputs.double()
    torch.testing.assert_close(trajectory.gram, outputs @ outputs.T / outputs.shape[1])
    assert trajectory.sigmas[0] == pytest.approx(1.0)
    assert trajectory.sigmas[-1] == 0.0


def test_without_eulers_method_there_is_nothing_to_calibrate(pipe: Any) -> None:
    usual = pipe.scheduler
    pipe.scheduler = type(usual).from_config(usual.config, stochastic_sampling=True)
    try:
        with pytest.raises(ConfigError, match="does not move the latent by multiples of the transformer's"):
            calibrate(pipe, PROMPTS[:1], num_inference_steps=2, **DEMO)
    finally:
        pipe.scheduler = usual


@pytest.mark.parametrize(
    "observed",
    [
        lambda *args, **kwargs: calibrate(*args, **kwargs),
        lambda *args, **kwargs: observe(*args, search=LeMiCa(longest_gap=2), **kwargs),
        lambda *args, **kwargs: magcache_ratios(*args, **kwargs),
    ],
    ids=["calibrate", "lemica", "magcache"],
)
def test_an_error_in_a_run_leaves_the_pipeline_as_it_was(pipe: Any, observed: Any) -> None:
    def fail(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > TOTAL + 2:
            raise RuntimeError("out of memory")

    calls = 0
    handle = pipe.transformer.x_embedder.register_forward_pre_hook(fail)
    with handle, pytest.raises(RuntimeError, match="out of memory"):
        observed(pipe, PROMPTS[:2], num_inference_steps=TOTAL, **DEMO)
    assert not pipe.transformer._forward_hooks
    assert attachment_of(pipe.transformer) is None


def test_magcache_ratios_are_those_of_the_residuals(pipe: Any) -> None:
    norms: list[Any] = []
    kept: list[Any] = []

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        kept.append(kwargs["hidden_states"])

    def leave(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        norms.append((output[1] - kept.pop()).norm(dim=-1))

    first, last = pipe.transformer.transformer_blocks[0], pipe.transformer.single_transformer_blocks[-1]
    with (
        first.register_forward_pre_hook(enter, with_kwargs=True),
        last.register_forward_hook(leave, with_kwargs=True),
    ):
        record(pipe, Call(PROMPTS[0], TOTAL, 0, DEMO))
    found = magcache_ratios(pipe, PROMPTS[:1], num_inference_steps=TOTAL, **DEMO)
    expected = [1.0] + [float((after / before).mean()) for before, after in itertools.pairwise(norms)]
    assert found[:-1] == pytest.approx(expected[:-1], rel=1e-4)
    assert found[-1] == found[-2], "nothing is kept of the last step"
    assert attachment_of(pipe.transformer) is None


def test_lemica_weighs_gaps_by_what_they_do_to_the_result(pipe: Any) -> None:
    search = LeMiCa(longest_gap=2)
    schedule = observe(pipe, PROMPTS[:1], num_inference_steps=TOTAL, search=search, **DEMO).schedule(4)
    made = record(pipe, Call(PROMPTS[0], TOTAL, 0, DEMO))
    weights = search.look(made, lambda cache, calibrator: made.final + len(cache.schedule.computed))
    assert weights[0, 1] == 0.0, "nothing is skipped"
    assert weights[3, 5] == pytest.approx(TOTAL - 1), "one step is skipped"
    assert weights[4, 6] == pytest.approx(TOTAL - 1), "up to the end"
    assert (0, 3) not in weights
    assert schedule.method == "LeMiCa"
    assert len(schedule.computed) == 4


def test_one_observation_gives_schedules_of_any_length(pipe: Any) -> None:
    seen = observe(pipe, PROMPTS[:1], num_inference_steps=TOTAL, **DEMO)
    for count in range(2, TOTAL + 1):
        assert len(seen.schedule(count).computed) == count


def test_a_schedule_decides_in_the_next_run(pipe: Any) -> None:
    config = ScheduleConfig(schedule=Schedule(total=TOTAL, computed=(0, 1, 3)))
    cache_dit.enable_cache(pipe, config)
    try:
        pipe(PROMPTS[0], num_inference_steps=TOTAL, output_type="latent", **DEMO)
        (stats,) = cache_dit.summary(pipe, logging=False)
    finally:
        cache_dit.disable_cache(pipe)
    assert stats.cached_steps == [2, 4, 5]


def test_a_cached_pipeline_is_refused(pipe: Any) -> None:
    cache_dit.enable_cache(pipe)
    try:
        for function in (calibrate, observe, magcache_ratios):
            with pytest.raises(ConfigError, match="is cached, but calibration needs to see it uncached"):
                function(pipe, PROMPTS[:1], num_inference_steps=TOTAL, **DEMO)
    finally:
        cache_dit.disable_cache(pipe)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompts": "a red house"}, ConfigError, "prompts is 'a red house'; give a list of one prompt"),
        ({"prompts": []}, ConfigError, "give a list of one prompt or more"),
        ({"num_inference_steps": 0}, ConfigError, "num_inference_steps is 0"),
        ({"search": "LeMiCa"}, ConfigTypeError, "search is of type str; give a Search"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    pipe: Any, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"prompts": PROMPTS[:1], "num_inference_steps": TOTAL, **DEMO, **change}
    with pytest.raises(error, match=message):
        observe(pipe, **given)


@pytest.mark.parametrize(
    ("search", "count", "message"),
    [
        (DPCache(), 0, "computed_steps is 0"),
        (DPCache(), 1, "computed_steps is 1 of a run of 6 steps"),
        (DPCache(), 7, "computed_steps is 7 of a run of 6 steps"),
        (DPCache(longest_gap=1), 3, "for which DPCache has no schedule; give another number"),
    ],
)
def test_schedules_that_cannot_be_are_refused(pipe: Any, search: Search, count: int, message: str) -> None:
    seen = observe(pipe, PROMPTS[:1], num_inference_steps=TOTAL, search=search, **DEMO)
    with pytest.raises(ConfigError, match=message):
        seen.schedule(count)


@pytest.mark.parametrize("gap", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("total", [2, 3, 6, 9])
def test_the_fewest_steps_of_a_search_are_those_it_finds(total: int, gap: int) -> None:
    costs = {(i, j): 0.0 for i in range(total) for j in range(i + 1, min(i + gap, total) + 1)}
    lemica = LeMiCa(longest_gap=gap)
    found = [count for count in range(1, total + 1) if lemica.choose([costs], total, count)]
    assert lemica.fewest(total) == min(found)
    for warmup in (2, 3, 4):
        dpcache, seen = DPCache(warmup=warmup, longest_gap=gap), [torch.zeros(total, total, total + 1)]
        found = [count for count in range(2, total + 1) if dpcache.choose(seen, total, count)]
        assert dpcache.fewest(total) == min(found)


def test_a_pipeline_without_a_callback_is_refused(pipe: Any) -> None:
    class Plain:
        components = pipe.components

        def __call__(self, prompt: str) -> None: ...

    with pytest.raises(ConfigError, match="Plain takes no callback_on_step_end"):
        calibrate(Plain(), PROMPTS[:1], num_inference_steps=TOTAL)


@pytest.mark.parametrize("bad", [{"warmup": 1}, {"longest_gap": 0}])
def test_bad_options_of_a_search_are_named(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(bad))} is"):
        DPCache(**bad)
