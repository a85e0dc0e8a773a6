"""A NaN or an infinite value in one step reaches no later one through the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_extending import CACHES, CALIBRATORS, made
from tiny.image_models import FLUX
from tiny.runs import small_flux
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import cache_dit
from cache_dit import CacheConfig, CalibratorConfig, DBCacheConfig, DBPruneConfig, Request
from cache_dit.api import attachments_of
from cache_dit.caching.catalogue import (
    DiCacheConfig,
    EasyCacheConfig,
    IntervalConfig,
    SeaCacheConfig,
    TaylorSeerCalibratorConfig,
    TeaCacheConfig,
    TrajectoryCalibratorConfig,
)
from cache_dit.caching.engine.finite import all_finite
from cache_dit.caching.engine.state import SegmentState
from cache_dit.caching.maths.gate import Reason
from cache_dit.caching.maths.moment import Moment
from cache_dit.stats.findings import Problem, diagnose

NAN, INF = float("nan"), float("inf")
STEPS = 9
SIGMAS = [1.0 - step / STEPS for step in range(STEPS + 1)]


@pytest.fixture(scope="module")
def model() -> Any:
    return small_flux()


@pytest.fixture(scope="module")
def inputs() -> list[dict[str, Tensor]]:
    """Of every step: they do not depend on outputs, so nothing but the cache joins the steps."""
    first, second = FLUX.inputs(0), FLUX.inputs(1)["hidden_states"]
    mixed = [
        first["hidden_states"] * sigma + second * (1.0 - sigma) * (1.0 + sigma**2) for sigma in SIGMAS[:-1]
    ]
    count = len(second)
    times = [torch.full((count,), sigma) for sigma in SIGMAS]
    return [first | {"hidden_states": mixed[step], "timestep": times[step]} for step in range(STEPS)]


@contextmanager
def spoilt(block: nn.Module, value: float) -> Iterator[None]:
    """One entry of all that a block returns is another value."""

    def spoil(_module: nn.Module, _args: Any, output: Any) -> Any:
        for leaf in tree_leaves(output):
            leaf.view(-1)[3] = value
        return output

    handle = block.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def holds_odd(tree: Any) -> bool:
    """Whether any number in it is NaN or infinite."""
    leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, (Tensor, float))]
    return not all(bool(torch.as_tensor(leaf).isfinite().all()) for leaf in leaves)


def restart_what_is_odd(states: list[SegmentState]) -> None:
    """What the engine has to come to, done by hand and from the values themselves."""
    for state in states:
        if holds_odd(state.forecasts):
            state.forget()
            if state.segment.policy is not None:
                state.gate = state.gate._replace(gate=state.segment.policy.gate.init())


def run(
    model: Any,
    inputs: list[dict[str, Tensor]],
    *,
    at: int | None = None,
    spoil: Callable[[], Any] | None = None,
    by_hand: bool = False,
) -> tuple[list[Tensor], list[Any]]:
    """Outputs and records of a run whose step `at` is spoilt; `by_hand`: and restarted behind it."""
    (attached,) = attachments_of(model)
    request, outputs = Request(STEPS, sigmas=SIGMAS), []
    with torch.no_grad(), request:
        for step, given in enumerate(inputs):
            if by_hand and at is not None and step == at + 1:
                kept = request.states[attached.session]
                (branch,) = kept.branches.values()
                restart_what_is_odd(branch.segments)
                branch.estimations.clear()
            if step == at and spoil is not None:
                with spoil():
                    model(**given, return_dict=False)
                outputs.append(torch.zeros(()))
            else:
                outputs.append(model(**given, return_dict=False)[0].clone())
    assert attached.session.latest is not None
    return outputs, attached.session.latest.steps


def computed_step(steps: list[Any], segment: int = 0) -> int:
    """The last computed step with a skipped one behind it."""
    skips = {step.step: step.verdict.skip for step in steps if step.segment == segment}
    return max((step for step in skips if not skips[step] and skips.get(step + 1)), default=4)


def check(model: Any, inputs: list[dict[str, Tensor]], value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later steps are those of a run that was restarted by hand, and the restart is in the record."""
    _, steps = run(model, inputs)
    at = computed_step(steps)
    block = model.transformer_blocks[1]
    outputs, noted = run(model, inputs, at=at, spoil=lambda: spoilt(block, value))
    assert all(bool(output.isfinite().all()) for output in outputs)
    skips = [step.verdict.skip for step in noted]
    if any(step.verdict.skip for step in steps):
        assert Reason.NOT_FINITE in {step.verdict.reason for step in noted if step.step == at + 1}
    with monkeypatch.context() as patch:
        patch.setattr(SegmentState, "recover", lambda self: False)
        expected, by_hand = run(model, inputs, at=at, spoil=lambda: spoilt(block, value), by_hand=True)
    assert skips == [step.verdict.skip for step in by_hand]
    for output, wanted in zip(outputs[at + 1 :], expected[at + 1 :], strict=True):
        assert torch.equal(output, wanted)


@pytest.mark.parametrize(("place", "kind"), [*enumerate(CACHES)], ids=[kind.__name__ for kind in CACHES])
def test_every_gate_begins_anew(
    model: Any, inputs: Any, place: int, kind: type[CacheConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dit.enable_cache(model, made(kind, max_warmup_steps=2))
    try:
        check(model, inputs, (NAN, INF, -INF)[place % 3], monkeypatch)
    finally:
        cache_dit.disable_cache(model)


@pytest.mark.parametrize("kind", CALIBRATORS, ids=lambda kind: kind.__name__)
def test_every_forecaster_begins_anew(
    model: Any, inputs: Any, kind: type[CalibratorConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    interval: CacheConfig = IntervalConfig(interval=2, max_warmup_steps=2)
    if kind().method().needs:
        interval = DiCacheConfig(threshold=10.0)
    cache_dit.enable_cache(model, interval, kind())
    try:
        check(model, inputs, NAN, monkeypatch)
    finally:
        cache_dit.disable_cache(model)


# --- what gates look at ---


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9), id="residual"
        ),
        pytest.param(DiCacheConfig(threshold=0.9), id="probe"),
        pytest.param(
            TeaCacheConfig(rel_l1_thresh=0.9, coefficients=(0.0, 0.0, 0.0, 1.0, 0.0)), id="modulated"
        ),
        pytest.param(SeaCacheConfig(threshold=0.9), id="latent"),
        pytest.param(EasyCacheConfig(threshold=0.9, max_warmup_steps=2), id="latent and output"),
        pytest.param(
            DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9), id="entry"
        ),
    ],
)
def test_an_odd_input_is_forgotten(model: Any, inputs: Any, config: CacheConfig, value: float) -> None:
    """All that is seen in a step is odd; two steps later at the latest steps are skipped again."""
    cache_dit.enable_cache(model, config)
    spoilt_inputs = [dict(given) for given in inputs]
    at = 3
    spoilt_inputs[at]["hidden_states"] = inputs[at]["hidden_states"] * value
    try:
        outputs, steps = run(model, spoilt_inputs)
        skips = [step.verdict.skip for step in steps if step.segment == 0]
        assert not any(skips[at : at + 2])
        assert any(skips[at + 2 :])
        assert all(bool(output.isfinite().all()) for output in outputs[at + 1 :])
        assert Reason.NOT_FINITE in {step.verdict.reason for step in steps if step.step in (at, at + 1)}
        assert not any(holds_odd(step.verdict.change) for step in steps if step.verdict.change != INF)
    finally:
        cache_dit.disable_cache(model)


# --- the estimate, the report, the range of float16, and the question itself ---


def test_the_estimate_of_the_latent_begins_anew(model: Any, inputs: Any) -> None:
    cache_dit.enable_cache(
        model, IntervalConfig(interval=2, max_warmup_steps=2), TrajectoryCalibratorConfig()
    )
    block = model.transformer_blocks[1]
    try:
        _, steps = run(model, inputs)
        at = computed_step(steps)
        outputs, _ = run(model, inputs, at=at, spoil=lambda: spoilt(block, NAN))
        assert all(bool(output.isfinite().all()) for output in outputs)
    finally:
        cache_dit.disable_cache(model)


def test_the_doctor_tells(model: Any, inputs: Any) -> None:
    cache_dit.enable_cache(model, IntervalConfig(interval=2, max_warmup_steps=2))
    block = model.transformer_blocks[1]
    try:
        run(model, inputs)
        assert Problem.NOT_FINITE not in {found.problem for found in diagnose(model, logging=False)}
        run(model, inputs, at=3, spoil=lambda: spoilt(block, NAN))
        (text,) = [one.text for one in diagnose(model, logging=False) if one.problem is Problem.NOT_FINITE]
        assert text.startswith("step 4 of ")
    finally:
        cache_dit.disable_cache(model)


def test_a_forecast_stays_in_the_range_of_float16() -> None:
    model = small_flux().half()
    cache_dit.enable_cache(
        model, IntervalConfig(interval=2, max_warmup_steps=3), TaylorSeerCalibratorConfig()
    )
    (attached,) = attachments_of(model)
    state = SegmentState(attached.session.plan.segments[0])
    entry = tuple(torch.zeros(1, 4, 2, dtype=torch.float16) for _ in range(2))
    for step, value in enumerate((-30_000.0, 30_000.0)):
        state.observe(Moment(step, float(step)), entry, tuple(one + value for one in entry))
    for forecast in state.forecast(Moment(2, 2.0), entry):
        assert forecast.unique().tolist() == [65_504.0]
    assert not state.recover()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_finite_values_of_any_size_are_told_from_others(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max / 1e6 if dtype.is_floating_point else 10**9
    plain = torch.full((3, 50), largest, dtype=dtype)
    assert all_finite([plain, -plain])()
    assert all_finite([])()
    if dtype.is_floating_point:
        for value in (NAN, INF, -INF):
            odd = plain.clone()
            odd[1, 7] = value
            assert not all_finite([plain, odd])()
            assert not all_finite([odd])()
    both = torch.tensor([INF, -INF])
    assert not all_finite([both])()


def test_ranks_get_one_answer() -> None:
    asked: list[Tensor] = []

    def with_an_odd_one(total: Tensor) -> Tensor:
        asked.append(total)
        return total + NAN

    assert not all_finite([torch.ones(3)], with_an_odd_one)()
    assert [one.item() for one in asked] == [3.0]
