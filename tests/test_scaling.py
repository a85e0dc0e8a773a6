"""What the cache keeps follows from shapes, is linear in all that grows, and does not grow with the steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny.models import FLUX, TinyModel, output_of, tiny_model
from tiny.runs import Denoising

import cache_dit
from cache_dit import DBCacheConfig, Preset, Request, TaylorSeerCalibratorConfig, presets
from cache_dit.bench.memory import StateSize, as_dtype, state_size
from cache_dit.caching.maths.schedule import Schedule

STEPS = 12
TAYLOR = Preset(
    DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=4, residual_diff_threshold=0.9),
    TaylorSeerCalibratorConfig(taylorseer_order=2),
)
EVERY_OTHER = Schedule(total=STEPS, computed=tuple(range(0, STEPS, 2)))
CALIBRATED: dict[str, Any] = {
    "magcache": ([1.0] * STEPS,),
    "lemica": (EVERY_OTHER,),
    "dpcache": (EVERY_OTHER,),
    "scm": ("medium", STEPS),
}
# Their histories are longer than what they compute in so few steps.
LONG = {"spectrum", "dmd"}


def measured(model: Any, preset: Preset, steps: int = STEPS, branches: int = 1) -> tuple[int, int]:
    """Bytes that a run has kept, and its computed steps."""
    cache_dit.enable_cache(model, preset)
    request = Request(num_inference_steps=steps, sigmas=[1 - step / steps for step in range(steps + 1)])
    names = ("cond", "uncond") if branches == 2 else (None,)
    Denoising(model, 0, steps, names, request).finish()
    (stats, *_) = cache_dit.summary(model, logging=False)
    cache_dit.disable_cache(model)
    return stats.state_bytes, steps - len(stats.cached_steps)


def fitted(preset: Preset) -> Preset:
    """For the six blocks of the tiny model."""
    return preset.with_options(Fn_compute_blocks=min(preset.cache_config.Fn_compute_blocks, 2))


@pytest.mark.parametrize("name", presets.NAMED)
def test_every_preset_keeps_what_was_told(name: str) -> None:
    preset = fitted(presets.NAMED[name](*CALIBRATED.get(name, ())))
    model = FLUX.build()
    told = state_size(model, FLUX.inputs(0), preset)
    kept, computed = measured(model, preset)
    if name in LONG:
        assert 0 < kept < told.total()
    else:
        # Bytes are counted when a stream takes memory: EasyCache's rate, a number, comes later.
        assert 0 <= told.total(computed_steps=computed) - kept <= 4


@pytest.mark.parametrize(
    ("calibrator", "snapshots"),
    [(cache_dit.SpectrumCalibratorConfig(), 16), (cache_dit.DMDCalibratorConfig(), 6)],
)
def test_long_histories_are_full_in_the_end(calibrator: Any, snapshots: int) -> None:
    gate = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=snapshots, residual_diff_threshold=0.9)
    preset, model = Preset(gate, calibrator), FLUX.build()
    told = state_size(model, FLUX.inputs(0), preset).total()
    kept, _ = measured(model, preset, snapshots + 2)
    # What DMD has fitted, for two samples of two streams, is not told.
    assert kept == told or (snapshots == 6 and told < kept < told + 4 * 1024)


@pytest.mark.parametrize(
    "model_id",
    [
        "SD3Transformer2DModel",
        "LTXVideoTransformer3DModel",
        "WanVACETransformer3DModel",
        "LatteTransformer3DModel",
    ],
)
def test_other_models_keep_what_was_told(model_id: str) -> None:
    tiny: TinyModel = tiny_model(model_id)
    told = state_size(tiny.build(), tiny.inputs(0), TAYLOR)
    model = cache_dit.enable_cache(tiny.build(), TAYLOR)
    with Request(num_inference_steps=8):
        for step in range(8):
            output_of(model, tiny.inputs(step))
    assert cache_dit.summary(model, logging=False)[0].state_bytes == told.total()


def test_branches_and_requests_multiply() -> None:
    one, two = (state_size(FLUX.build(), FLUX.inputs(0), TAYLOR, branches=n) for n in (1, 2))
    assert two.steady == 2 * one.steady
    assert measured(FLUX.build(), TAYLOR, branches=2)[0] == two.total()
    assert two.total(requests=1000) == 1000 * two.steady
    assert StateSize(steady=10, for_each_step=3).total(computed_steps=4, requests=2) == 44


def test_linear_in_the_batch_and_in_tokens() -> None:
    def told(batch: int, tokens: int) -> int:
        inputs = {
            name: torch.empty(
                *(batch if length == 2 else tokens if length == 16 and place < 2 else length
                  for place, length in enumerate(value.shape)),
                device="meta",
            )
            for name, value in FLUX.inputs(0).items()
        }  # fmt: skip
        inputs["img_ids"] = torch.empty(tokens, 3, device="meta")
        inputs["txt_ids"] = torch.empty(5, 3, device="meta")
        return state_size(FLUX.build().to("meta"), inputs, TAYLOR).total()

    # Three values of two streams and the signal with its norm, float32, 32 wide, 5 tokens of text.
    for batch, tokens in ((1, 16), (4, 16), (2, 2**20)):
        assert told(batch, tokens) == batch * 32 * 4 * (3 * (tokens + 5) + tokens) + 4


def test_half_the_bytes_in_half_the_type() -> None:
    whole = state_size(FLUX.build(), FLUX.inputs(0), TAYLOR).total()
    inputs = as_dtype(FLUX.inputs(0), torch.bfloat16)
    half = state_size(FLUX.build().to(torch.bfloat16), inputs, TAYLOR).total()
    # The norm is a number in float32 in both, or less.
    assert abs(2 * half - whole) <= 4
    smaller = Preset(
        TAYLOR.cache_config, TaylorSeerCalibratorConfig(taylorseer_order=2, cache_dtype=torch.bfloat16)
    )
    assert half < state_size(FLUX.build(), FLUX.inputs(0), smaller).total() < whole


def test_nothing_is_left_on_the_model() -> None:
    model = FLUX.build()
    plain = output_of(model, FLUX.inputs(0))
    state_size(model, FLUX.inputs(0), TAYLOR)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(map(torch.equal, output_of(model, FLUX.inputs(0)), plain))
    assert type(model).__call__ is type(FLUX.build()).__call__


@pytest.mark.parametrize(
    "preset", [TAYLOR, presets.fora(), presets.taylorseer_lite()], ids=["DBCache", "FORA", "lite"]
)
def test_no_growth_with_the_steps(preset: Preset) -> None:
    assert measured(FLUX.build(), preset, 10)[0] == measured(FLUX.build(), preset, 40)[0] > 0


def test_the_estimate_grows_by_the_computed_steps_and_ends_with_the_run() -> None:
    preset = presets.trajectory(compute=0.5)
    told = state_size(FLUX.build(), FLUX.inputs(0), preset)
    assert told.for_each_step > 0
    for steps in (8, 24):
        kept, computed = measured(FLUX.build(), preset, steps)
        assert computed == steps / 2
        assert kept == told.total(computed_steps=computed)


@pytest.mark.parametrize(
    ("name", "streams", "signals"),
    [
        ("fbcache", 1, 1),
        ("dbcache_taylorseer", 2, 1),
        ("teacache", 1, 1),
        ("magcache", 1, 0),
        ("speca", 3, 3),
        ("freqca", 3, 0),
        ("spectrum", 16, 0),
        # Two for its gate; each of the two streams counts the same two.
        ("dicache", 2, 1 + 2 * 2),
    ],
)
def test_closed_formula(name: str, streams: int, signals: int) -> None:
    batch, image, text, width, size = 2, 16, 5, 32, 4
    told = state_size(FLUX.build(), FLUX.inputs(0), fitted(presets.NAMED[name](*CALIBRATED.get(name, ()))))
    norm = size if signals and name != "speca" else 0
    assert told.total() == batch * width * size * (streams * (image + text) + signals * image) + norm
