"""Batches: with `per_sample`, or under a fixed schedule, a picture is what it would be alone."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny.image_models import FLUX, QWEN_IMAGE, SD3
from tiny.runs import small_flux
from torch import Tensor

import cache_dit
from cache_dit import CalibratorConfig, Request, TaylorSeerCalibratorConfig
from cache_dit.api import attachments_of
from cache_dit.caching.catalogue import (
    EasyCacheConfig,
    IntervalConfig,
    SeaCacheConfig,
    TrajectoryCalibratorConfig,
)
from cache_dit.caching.config import CacheConfig, Place
from cache_dit.caching.engine.samples import joined, split
from cache_dit.errors import ConfigError, EngineError

STEPS = 12
SIGMAS = [1.0 - step / STEPS for step in range(STEPS + 1)]
SHARED = ("img_ids", "txt_ids")
# One picture moves much faster than another.
SPEEDS = (0.3, 1.0, 3.0, 0.6)
EASY = EasyCacheConfig(threshold=0.5, max_warmup_steps=2, per_sample=True)
SEA = SeaCacheConfig(threshold=0.3, max_warmup_steps=1, place=Place.OUTPUT, per_sample=True)
FIXED = IntervalConfig(place=Place.OUTPUT, max_warmup_steps=2, interval=3)


def pictures() -> dict[str, Tensor]:
    """The inputs of four pictures."""
    first, second = FLUX.inputs(0), FLUX.inputs(1)
    return {
        name: value if name in SHARED else torch.cat([value, second[name]]) for name, value in first.items()
    }


@torch.no_grad()
def denoised(
    model: Any, chosen: Sequence[int], branches: Sequence[str | None] = (None,), steps: int = STEPS
) -> Tensor:
    """Euler steps over some of the four pictures, each at its own speed; with two branches, guided."""
    inputs = {name: value if name in SHARED else value[list(chosen)] for name, value in pictures().items()}
    speed = torch.tensor([SPEEDS[place] for place in chosen], dtype=inputs["hidden_states"].dtype)[
        :, None, None
    ]
    latents, text = inputs["hidden_states"], inputs["encoder_hidden_states"]
    with Request(STEPS, sigmas=SIGMAS):
        for step in range(steps):
            made = []
            for place, name in enumerate(branches):
                time = torch.full((len(chosen),), SIGMAS[step], dtype=latents.dtype)
                changing = {"hidden_states": latents, "timestep": time, "encoder_hidden_states": text + place}
                with model.cache_context(name) if name else contextlib.nullcontext():
                    made.append(model(**inputs | changing, return_dict=False)[0])
            guided = made[0] + (made[0] - made[-1])
            latents = latents + speed * guided * (SIGMAS[step + 1] - SIGMAS[step])
    return latents


def strings(model: Any) -> dict[str, str]:
    """The steps of the last run by branch: C computed, S skipped."""
    record = attachments_of(model)[0].session.latest
    assert record is not None
    return {name: "".join("CS"[step.verdict.skip] for step in record.of(0, name)) for name in record.branches}


def error(batch: Tensor, alone: Sequence[Tensor]) -> float:
    return max(float((one - other[0]).norm() / other.norm()) for one, other in zip(batch, alone, strict=True))


@pytest.mark.parametrize("branches", [(None,), ("cond", "uncond")], ids=["single", "guided"])
@pytest.mark.parametrize(
    "calibrator",
    [CalibratorConfig(), TaylorSeerCalibratorConfig(), TrajectoryCalibratorConfig()],
    ids=["reuse", "taylor", "estimate"],
)
@pytest.mark.parametrize("config", [EASY, SEA], ids=["easycache", "seacache"])
def test_a_picture_is_as_if_alone(
    config: CacheConfig, calibrator: CalibratorConfig, branches: Sequence[str | None]
) -> None:
    model = cache_dit.enable_cache(small_flux(), config, calibrator)
    alone, decided = [], []
    for place in range(4):
        alone.append(denoised(model, [place], branches))
        decided.append(list(strings(model).values()))
    batch = denoised(model, range(4), branches)
    together = list(strings(model).values())
    assert [together[place::4] for place in range(4)] == decided
    assert len(set(map(tuple, decided))) > 1, "the pictures were to differ"
    assert any("S" in steps for steps in together)
    assert error(batch, alone) < 1e-5


def test_without_it_pictures_depend_on_their_neighbours() -> None:
    model = cache_dit.enable_cache(small_flux(), EasyCacheConfig(threshold=0.5, max_warmup_steps=2))
    alone = [denoised(model, [place]) for place in range(4)]
    assert error(denoised(model, range(4)), alone) > 1e-3


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("branches", [(None,), ("cond", "uncond")], ids=["single", "guided"])
def test_a_fixed_schedule_keeps_pictures_apart(branches: Sequence[str | None], per_sample: bool) -> None:
    config = FIXED.updated(IntervalConfig().reset(per_sample=per_sample))
    model = cache_dit.enable_cache(small_flux(), config, TrajectoryCalibratorConfig())
    alone = [denoised(model, [place], branches) for place in range(4)]
    batch = denoised(model, range(4), branches)
    assert set(strings(model).values()) == {"CCSSCSSCSSCS"}
    assert error(batch, alone) < 1e-5


def test_only_rows_that_are_needed_go_through() -> None:
    model = small_flux()
    rows: list[int] = []
    model.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    cache_dit.enable_cache(model, EASY)
    denoised(model, range(4))
    computed = list(zip(*strings(model).values(), strict=True))
    assert rows == [step.count("C") for step in computed if "C" in step]
    assert any(0 < count < 4 for count in rows)


def test_flops_count_the_samples_that_waited() -> None:
    model = cache_dit.enable_cache(small_flux(), EASY)
    denoised(model, range(4))
    (stats,) = cache_dit.summary(model, logging=False)
    decided = "".join(strings(model).values())
    assert stats.flops_saved == pytest.approx(decided.count("S") / len(decided))
    assert stats.branches == tuple(f"sample {place}" for place in range(4))


def test_a_batch_that_shrinks_begins_anew() -> None:
    model = cache_dit.enable_cache(small_flux(), FIXED.updated(FIXED.reset(per_sample=True)))
    inputs = pictures()
    with Request(STEPS), torch.no_grad():
        for step, count in enumerate((4, 4, 4, 2, 2)):
            part = {name: value if name in SHARED else value[:count] for name, value in inputs.items()}
            part["timestep"] = torch.full((count,), SIGMAS[step])
            assert len(model(**part, return_dict=False)[0]) == count
    assert list(strings(model).values()) == ["CCSCS"] * 2 + ["CCS"] * 2


@pytest.mark.parametrize("tiny", [FLUX, QWEN_IMAGE, SD3], ids=lambda tiny: tiny.id)
def test_models_take_a_part_of_a_batch(tiny: Any) -> None:
    """The second picture is exchanged, and computed alone; the first one goes on."""
    model = tiny.build()
    first, second = tiny.inputs(0), tiny.inputs(1)
    config = SEA.updated(SEA.reset(threshold=1e-3, enable_separate_cfg=False))
    mixed = {
        name: torch.cat([value[:1], second[name][1:]])
        if isinstance(value, Tensor) and value.ndim and len(value) == 2
        else value
        for name, value in first.items()
    }
    with torch.no_grad():
        expected = model(**first, return_dict=False)[0][:1], model(**mixed, return_dict=False)[0][1:]
        cache_dit.enable_cache(model, config)
        with Request(4):
            for inputs in (first, first, mixed):
                (output,) = model(**inputs, return_dict=False)
    assert list(strings(model).values()) == ["CSS", "CSC"]
    torch.testing.assert_close(output, torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_what_is_returned_is_taken_apart_and_put_together() -> None:
    output = {"sample": torch.arange(6.0).reshape(3, 2), "note": "kept"}
    parts = split(output, 3)
    assert [part["sample"].tolist() for part in parts] == [[[0.0, 1.0]], [[2.0, 3.0]], [[4.0, 5.0]]]
    whole = joined(parts)
    assert torch.equal(whole["sample"], output["sample"])
    assert whole["note"] == "kept"
    with pytest.raises(EngineError, match=r"forward of 2 samples returned \[\(3,\)\] rows"):
        split(output, 2)


def test_only_the_whole_transformer_is_decided_over_by_sample() -> None:
    with pytest.raises(ConfigError, match=r"per_sample is True but place is Place\.MIDDLE"):
        cache_dit.enable_cache(small_flux(), IntervalConfig(per_sample=True))


def test_a_branch_cannot_be_skipped_by_sample() -> None:
    with pytest.raises(ConfigError, match="uncond_interval is 2, which skips a branch"):
        IntervalConfig(place=Place.OUTPUT, per_sample=True, uncond_interval=2)


def test_the_short_form_names_it() -> None:
    assert EASY.strify().endswith("_PS")
