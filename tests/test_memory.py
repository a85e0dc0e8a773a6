"""What the cache costs: memory that is freed in time, and one wait for the device for each open decision."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.models import FLUX, output_of
from tiny.pipelines import CHROMA_PIPELINE, FLUX_TRUE_CFG, WAN_TWO_TRANSFORMERS, TinyPipeline
from tiny.runs import Denoising, decisions
from torch import Tensor
from torch.utils._pytree import tree_leaves

import cache_dit
from cache_dit import CalibratorConfig, DBCacheConfig, Request, TaylorSeerCalibratorConfig
from cache_dit.api import attachments_of
from cache_dit.caching.engine.state import SegmentState
from cache_dit.caching.maths.gate import Reason

CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=2
)
TAYLOR = TaylorSeerCalibratorConfig(taylorseer_order=2)
PACKAGE = str(Path(cache_dit.__file__).parent)

each_pipeline = pytest.mark.parametrize(
    "tiny", [FLUX_TRUE_CFG, CHROMA_PIPELINE, WAN_TWO_TRANSFORMERS], ids=lambda tiny: tiny.id
)


def cached(target: Any, calibrator: CalibratorConfig = TAYLOR, **options: Any) -> Any:
    return cache_dit.enable_cache(target, CONFIG.updated(DBCacheConfig().reset(**options)), calibrator)


def latest(target: Any, which: int = 0) -> Any:
    return attachments_of(target)[which].session.latest


# --- memory ---


class Kept:
    """The states that exist: each is seen when it is made and leaves when it dies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: weakref.WeakSet[Any] = weakref.WeakSet()
        self.made = 0
        make = SegmentState.__init__

        class Watched(SegmentState):
            # With room for weak references.
            def __init__(watched, *args: Any) -> None:
                make(watched, *args)
                self.states.add(watched)
                self.made += 1

        monkeypatch.setattr("cache_dit.caching.engine.session.SegmentState", Watched)

    def tensors(self) -> list[Tensor]:
        return [
            leaf for state in self.states for leaf in tree_leaves(state.tensors()) if isinstance(leaf, Tensor)
        ]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    # Nothing may depend on the garbage collector: on a GPU it comes too late.
    gc.collect()
    gc.disable()
    yield Kept(monkeypatch)
    gc.enable()


def live_tensors() -> Counter[tuple[int, ...]]:
    return Counter(tuple(thing.shape) for thing in gc.get_objects() if type(thing) is Tensor)


@each_pipeline
def test_nothing_is_kept_after_a_run_of_a_pipeline(tiny: TinyPipeline, kept: Kept) -> None:
    pipe = cached(tiny.build())
    seen = []

    def look(*_: Any) -> None:
        seen.append(len(kept.tensors()))

    for name in tiny.transformers:
        getattr(pipe, name).register_forward_hook(look)
    tiny.call(pipe, 0, 6)
    assert max(seen) > 0
    assert kept.made > 0
    assert not kept.states


def test_no_growth_over_many_runs(kept: Kept) -> None:
    tiny = FLUX_TRUE_CFG
    pipe = cached(tiny.build())
    tiny.call(pipe, 0, 4)
    before = live_tensors()
    for seed in range(20):
        tiny.call(pipe, seed, 4)
    assert not live_tensors() - before
    assert not kept.states
    assert len(latest(pipe).steps) == 2 * 4


def test_no_growth_over_many_bare_runs(kept: Kept) -> None:
    model = cached(FLUX.build())
    Denoising(model, 0, 4).finish()
    states, before = len(kept.states), live_tensors()
    for seed in range(20):
        Denoising(model, seed, 4).finish()
    assert len(kept.states) == states
    assert live_tensors() == before


def test_no_growth_over_forwards_at_one_timestep(kept: Kept) -> None:
    model = cached(FLUX.build())
    for _ in range(50):
        output_of(model, FLUX.inputs(0))
    assert len(kept.states) <= 2 * 8


@pytest.mark.parametrize(("steps", "computed"), [(6, 3), (3, 2)])
def test_a_request_takes_its_state_with_it(steps: int, computed: int, kept: Kept) -> None:
    model = cached(FLUX.build())
    request = Request()
    run = Denoising(model, 0, 6, ("cond", "uncond"), request)
    for _ in range(steps):
        run.advance()
    tensors = [weakref.ref(tensor) for tensor in kept.tensors()]
    # For each branch a reference signal with its norm, and for both streams one value a computed step.
    assert len(tensors) == 2 * (2 + 2 * computed)
    del request, run
    assert not kept.states
    assert not any(tensor() is not None for tensor in tensors)


def test_state_ends_with_the_last_step_of_a_request_of_known_length(kept: Kept) -> None:
    model = cached(FLUX.build())
    request = Request(num_inference_steps=6)
    run = Denoising(model, 0, 6, ("cond", "uncond"), request)
    for _ in range(5):
        run.advance()
    assert kept.tensors()
    run.finish()
    assert not kept.states


@pytest.mark.parametrize("end", ["disable", "refresh", "another configuration", "exception"])
def test_dropped_bare_run_is_freed(end: str, kept: Kept) -> None:
    model = cached(FLUX.build())
    run = Denoising(model, 0)
    for _ in range(3):
        run.advance()
    tensors = [weakref.ref(tensor) for tensor in kept.tensors()]
    assert tensors
    if end == "disable":
        cache_dit.disable_cache(model)
    elif end == "refresh":
        cache_dit.refresh_context(model)
    elif end == "another configuration":
        cached(model, Fn_compute_blocks=2)
    else:
        with pytest.raises(TypeError):
            model(hidden_states="nonsense")
    assert not kept.states
    assert not any(tensor() is not None for tensor in tensors)


def test_disable_cache_frees_session_and_plan() -> None:
    model = cached(FLUX.build())
    Denoising(model, 0).finish()
    session = weakref.ref(attachments_of(model)[0].session)
    plan = weakref.ref(session().plan)
    cache_dit.disable_cache(model)
    gc.collect()
    assert session() is None
    assert plan() is None


@pytest.mark.parametrize(
    "options",
    [
        {"residual_diff_threshold": 0.0},
        {"max_warmup_steps": 6},
        {"steps_computation_mask": [1] * 6},
        {"steps_computation_mask": [1] * 6, "steps_computation_policy": "static"},
    ],
)
def test_a_run_that_skips_nothing_keeps_nothing(options: dict[str, Any], kept: Kept) -> None:
    model = cached(FLUX.build(), num_inference_steps=6, **options)
    largest = most_tensors(model, kept)
    assert decisions(model) == "C" * 6
    assert largest == 0
    assert latest(model).state_bytes == 0


def test_computed_steps_keep_nothing_that_no_skipped_step_needs(kept: Kept) -> None:
    mask = [1, 1, 1, 1, 1, 0, 1, 1]
    model = cached(FLUX.build(), steps_computation_mask=mask, steps_computation_policy="static")
    request = Request(num_inference_steps=len(mask))
    run = Denoising(model, 0, len(mask), request=request)
    counts = []
    for _ in mask:
        run.advance()
        counts.append(len(kept.tensors()))
    assert decisions(model) == "CCCCCSCC"
    # Order 2 needs the three steps before the skipped one: one value after the other, for two streams. The
    # state ends with the run.
    assert counts == [0, 0, 2, 4, 6, 6, 6, 0]


def most_tensors(model: Any, kept: Kept) -> int:
    run = Denoising(model, 0)
    largest = 0
    for _ in range(run.steps):
        run.advance()
        largest = max(largest, len(kept.tensors()))
    return largest


@pytest.mark.parametrize(
    ("calibrator", "values"),
    [(CalibratorConfig(), 1), (TaylorSeerCalibratorConfig(taylorseer_order=1), 2), (TAYLOR, 3)],
    ids=["reuse", "order 1", "order 2"],
)
def test_state_bytes_of_a_run(calibrator: CalibratorConfig, values: int) -> None:
    model = cached(FLUX.build(), calibrator, max_warmup_steps=4, steps_computation_mask=[1, 1, 1, 1, 0, 0])
    Denoising(model, 0).finish()
    batch, image, text, width, size = 2, 16, 5, 32, 4
    streams = batch * (image + text) * width * size
    signal = batch * image * width * size
    norm = size
    assert latest(model).state_bytes == values * streams + signal + norm


@pytest.mark.parametrize("cache_type", ["residual", "hidden_states"])
def test_state_is_updated_in_place(cache_type: str, kept: Kept) -> None:
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=2, calibrator_cache_type=cache_type)
    model = cached(FLUX.build(), calibrator, steps_computation_mask=[1, 1, 1, 1, 1, 0, 1, 0])
    run = Denoising(model, 0, 8)

    def places() -> set[int]:
        (state,) = kept.states
        return {leaf.data_ptr() for leaf in tree_leaves(state.forecasts) if isinstance(leaf, Tensor)}

    for _ in range(5):
        run.advance()
    before = places()
    # Three values for each of two streams.
    assert len(before) == 6
    for _ in range(3):
        run.advance()
        assert places() == before


# --- waiting for the device ---

READS = "tolist item numpy cpu to cuda nonzero equal allclose"
READS += " __bool__ __float__ __int__ __index__ __contains__ __array__ __format__ __repr__"


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call from our own code that reads a tensor's values, as a GPU would have to finish for it."""
    seen: list[str] = []

    def watch(owner: Any, name: str) -> None:
        method = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_code
            # On a GPU that number was copied to the host on an earlier step.
            asked_before = caller.co_filename.endswith("finite.py") and caller.co_name == "answer"
            if caller.co_filename.startswith(PACKAGE) and not asked_before:
                seen.append(f"{name} in {caller.co_name}")
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for name in READS.split():
        watch(Tensor, name)
    for name in ("equal", "allclose", "nonzero"):
        watch(torch, name)
    return seen


@each_pipeline
@pytest.mark.parametrize(
    "options",
    [
        {"max_warmup_steps": 12},
        {"residual_diff_threshold": 0.0},
        {"residual_diff_threshold": 1.0},
        {"residual_diff_threshold": 0.9, "max_warmup_steps": 0, "steps_computation_mask": [1] * 6},
        {"steps_computation_mask": [1, 0, 0, 1, 0, 1], "steps_computation_policy": "static"},
    ],
    ids=["warm-up", "never", "always", "mask", "static mask"],
)
def test_known_steps_never_wait(tiny: TinyPipeline, options: dict[str, Any], syncs: list[str]) -> None:
    pipe = cached(tiny.build(), **options)
    tiny.call(pipe, 0, 6)
    assert len(latest(pipe).steps) > 0
    assert syncs == []


@each_pipeline
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_cached_steps": 2, "max_continuous_cached_steps": 1},
        {"max_accumulated_residual_diff_threshold": 1.2},
        {"residual_diff_threshold": 0.3},
        {"cfg_diff_compute_separate": False},
    ],
    ids=["threshold", "limits", "accumulated", "low threshold", "shared change"],
)
def test_one_wait_for_each_measured_change(
    tiny: TinyPipeline, options: dict[str, Any], syncs: list[str]
) -> None:
    pipe = cached(tiny.build(), **options)
    tiny.call(pipe, 0, 8)
    steps = [step for which in range(len(tiny.transformers)) for step in latest(pipe, which).steps]
    first = latest(pipe).branches[0]
    if "cfg_diff_compute_separate" in options:
        steps = [step for step in steps if step.branch == first]
    measured = [step for step in steps if step.verdict.change is not None]
    assert measured
    assert len(syncs) == len(measured)
    assert set(syncs) == {"item in relative_l1"}
    known = {Reason.WARMUP, Reason.CACHED_LIMIT, Reason.CONTINUOUS_LIMIT, Reason.FOLLOWS, Reason.NO_HISTORY}
    assert not any(step.verdict.reason in known for step in measured)


def test_a_named_request_never_waits_for_the_timestep(syncs: list[str]) -> None:
    model = cached(FLUX.build(), residual_diff_threshold=1.0)
    Denoising(model, 0, branches=("cond", "uncond"), request=Request()).finish()
    assert "S" in decisions(model)
    assert syncs == []


def test_an_unannounced_run_reads_the_timestep_once_a_forward(syncs: list[str]) -> None:
    model = cached(FLUX.build(), residual_diff_threshold=1.0)
    Denoising(model, 0).finish()
    assert syncs == ["__float__ in _marker"] * 6
