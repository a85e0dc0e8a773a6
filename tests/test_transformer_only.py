"""A transformer without a pipeline: its runs are told apart without help, and every one repeats the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny.models import TINY_MODELS, Inputs, TinyModel, output_of
from tiny.runs import Denoising, decisions, small_flux
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import cache_dit
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.api import attachments_of
from cache_dit.caching.attach.declared import parameters_of
from cache_dit.caching.models.rows import row_of

STEPS = 6
# The decisions do not depend on the changes, which are measured and compared all the same.
CONFIG = DBCacheConfig(
    Fn_compute_blocks=1,
    num_inference_steps=STEPS,
    max_warmup_steps=2,
    residual_diff_threshold=1.0,
    max_accumulated_residual_diff_threshold=1e9,
    max_continuous_cached_steps=2,
)
GATED = DBCacheConfig().reset(residual_diff_threshold=0.8, max_accumulated_residual_diff_threshold=None)
TAYLOR = TaylorSeerCalibratorConfig(taylorseer_order=1)
SINGLE, NAMED, UNNAMED = (None,), ("cond", "uncond"), (None, None)


def inputs_at(tiny: TinyModel, step: int, branch: int) -> Inputs:
    """Inputs that glide from one draw to another, as those of a run do; time falls with them."""
    start = 20 * branch

    def glide(first: Any, last: Any, own: Any) -> Any:
        floating = isinstance(own, Tensor) and own.is_floating_point()
        return torch.lerp(first, last, step / 9) if floating else own

    glided: Inputs = tree_map(glide, tiny.inputs(start), tiny.inputs(start + 9), tiny.inputs(start + step))
    return glided


def run(model: nn.Module, tiny: TinyModel, branches: int = 1, steps: int = STEPS) -> list[Tensor]:
    return [
        output
        for step in range(steps)
        for branch in range(branches)
        for output in output_of(model, inputs_at(tiny, step, branch))
    ]


def record(model: nn.Module) -> Any:
    """What is the same in equal runs."""
    latest = attachments_of(model)[0].session.latest
    return latest.total_steps, latest.state_bytes, latest.steps


def has_time(model: nn.Module) -> bool:
    row = row_of(type(model))
    return row is not None and row.timestep in parameters_of(model)


def reset(**fields: Any) -> Any:
    return DBCacheConfig().reset(**fields)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.id)
def test_every_run_repeats_the_first(tiny: TinyModel, branches: int) -> None:
    model = tiny.build()
    if branches > 1 and not has_time(model):
        pytest.skip("nothing tells two unnamed branches from two steps")
    cache_dit.enable_cache(model, CONFIG, TAYLOR)
    first, noted = run(model, tiny, branches), record(model)
    for place in range(branches):
        assert decisions(model, branch=place) == "CCSSCS"
    second = run(model, tiny, branches)
    assert record(model) == noted
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("branches", "options"),
    [
        (SINGLE, {}),
        (NAMED, {}),
        (UNNAMED, {}),
        (SINGLE, {"enable_separate_cfg": False}),
        (UNNAMED, {"enable_separate_cfg": True}),
        (UNNAMED, {"enable_separate_cfg": True, "cfg_diff_compute_separate": False}),
    ],
)
def test_48_requests(branches: tuple[str | None, ...], options: dict[str, Any]) -> None:
    model = cache_dit.enable_cache(small_flux(), CONFIG.updated(GATED).updated(reset(**options)), TAYLOR)
    first = Denoising(model, 0, STEPS, branches, batch=1).finish()
    noted = record(model)
    assert set(decisions(model)) == {"C", "S"}
    for _ in range(47):
        assert torch.equal(Denoising(model, 0, STEPS, branches, batch=1).finish(), first)
        assert record(model) == noted


@pytest.mark.parametrize(
    ("branches", "options", "late"),
    [
        (SINGLE, {}, 2),
        (UNNAMED, {}, 2),
        (UNNAMED, {"enable_separate_cfg": True}, 1),
        (SINGLE, {"enable_separate_cfg": False}, 0),
        (NAMED[:1], {}, 0),
        (NAMED, {}, 0),
    ],
)
def test_a_run_after_one_that_was_dropped_after_one_forward(
    branches: tuple[str | None, ...], options: dict[str, Any], late: int
) -> None:
    fields = {"max_continuous_cached_steps": -1, "num_inference_steps": 8, **options}
    model = cache_dit.enable_cache(small_flux(), CONFIG.updated(reset(**fields)), TAYLOR)
    Denoising(model, 1, 8, branches, batch=1).forward(0)
    Denoising(model, 0, 8, branches, batch=1).finish()
    assert decisions(model) == "CC" + "S" * (6 - late)
    alone = Denoising(model, 0, 8, branches, batch=1).finish()
    assert decisions(model) == "CCSSSSSS"
    assert torch.equal(alone, Denoising(model, 0, 8, branches, batch=1).finish())


# --- refresh_context ---


def fresh(steps: int, **options: Any) -> tuple[Tensor, Any]:
    """A run of another model that has the options from the beginning."""
    options = {"num_inference_steps": steps, **options}
    model = cache_dit.enable_cache(small_flux(), CONFIG.updated(reset(**options)), TAYLOR)
    return Denoising(model, 0, steps, NAMED, batch=1).finish(), record(model)


def test_refresh_context_takes_steps_and_single_fields() -> None:
    model = cache_dit.enable_cache(small_flux(), CONFIG, TAYLOR)
    for steps, fields in ((8, {}), (5, {"max_warmup_steps": 3}), (7, {"residual_diff_threshold": 0.7})):
        cache_dit.refresh_context(model, num_inference_steps=steps, cache_config=reset(**fields))
        kept = {"max_warmup_steps": 3} if steps == 7 else {}
        expected, noted = fresh(steps, **kept, **fields)
        for _ in range(2):
            assert torch.equal(Denoising(model, 0, steps, NAMED, batch=1).finish(), expected)
            assert record(model) == noted


def test_steps_in_a_partial_configuration() -> None:
    model = cache_dit.enable_cache(small_flux(), CONFIG, TAYLOR)
    cache_dit.refresh_context(model, cache_config=reset(num_inference_steps=8))
    assert torch.equal(Denoising(model, 0, 8, NAMED, batch=1).finish(), fresh(8)[0])


@pytest.mark.parametrize("taken", [1, 3])
@pytest.mark.parametrize("further_calls", [0, 1])
@pytest.mark.parametrize("branches", [NAMED, UNNAMED], ids=["named", "unnamed"])
def test_refresh_context_in_the_middle_of_a_run(
    taken: int, further_calls: int, branches: tuple[str | None, ...]
) -> None:
    model = cache_dit.enable_cache(small_flux(), CONFIG, TAYLOR)
    dropped = Denoising(model, 1, STEPS, branches, batch=1)
    for _ in range(taken):
        dropped.advance()
    for place in range(further_calls):
        dropped.forward(place)
    cache_dit.refresh_context(model, num_inference_steps=8, cache_config=reset(max_warmup_steps=3))
    expected, _ = fresh(8, max_warmup_steps=3)
    assert torch.equal(Denoising(model, 0, 8, branches, batch=1).finish(), expected)
    assert decisions(model) == "CCCSSCSS"
