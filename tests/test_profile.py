"""Profiles: files that are data, and what they hold for."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_dit
from cache_dit.demo import PROMPTS, generate, load_pipeline
from cache_dit.errors import ConfigError
from cache_dit.tune import Figure, Measure, Profile

FIGURE = Figure(mean=46.5, low=44.0, high=49.0, worst=41.25, pictures=4)


def profile(preset: cache_dit.Preset, **changed: Any) -> Profile:
    made = preset.with_options(tuned_steps=6)
    content: dict[str, Any] = {
        "cache_config": made.cache_config,
        "calibrator_config": made.calibrator_config,
        "model": "FluxTransformer2DModel",
        "steps": 6,
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "arguments": {"height": 64, "true_cfg_scale": 2.0, "negative_prompt": ""},
        "target": "psnr>=45",
        "met": True,
        "method": "trajectory 0.5",
        "predicted": {Measure.PSNR: FIGURE},
        "measured": {Measure.PSNR: FIGURE, Measure.FLOPS: dataclasses.replace(FIGURE, mean=0.5)},
        "tried": (("trajectory 0.5", {Measure.PSNR: 46.5, Measure.FLOPS: 0.5}),),
        "versions": {"cache_dit": "1.0.0"},
    }
    return Profile(**{**content, **changed})


PLAIN = profile(cache_dit.presets.trajectory(0.5))


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


@pytest.mark.parametrize(
    "preset",
    [
        cache_dit.presets.trajectory(0.4),
        cache_dit.presets.tolerance(0.02),
        cache_dit.presets.taylorseer(3, 1),
        cache_dit.presets.dbcache_taylorseer("M"),
        cache_dit.presets.magcache((1.0, 1.01, 0.9), threshold=0.1),
        cache_dit.presets.dpcache(cache_dit.Schedule(total=6, computed=(0, 1, 4))),
    ],
    ids=lambda preset: type(preset.cache_config).__name__,
)
def test_a_profile_comes_back_as_it_was(preset: cache_dit.Preset, tmp_path: Path) -> None:
    kept = profile(preset)
    kept.save(tmp_path / "new" / "profile.json")
    assert Profile.load(tmp_path / "new" / "profile.json") == kept


def test_a_measured_trajectory_is_in_the_profile(tmp_path: Path) -> None:
    sigmas = tuple(1 - step / 6 for step in range(7))
    measured = dataclasses.replace(cache_dit.Trajectory.expected(sigmas), pictures=8)
    profile(cache_dit.presets.trajectory(0.5, measured)).save(tmp_path / "profile.json")
    found = Profile.load(tmp_path / "profile.json").calibrator_config.known_trajectory
    assert found is not None
    assert (found.sigmas, found.pictures) == (measured.sigmas, 8)
    torch.testing.assert_close(found.gram, measured.gram, rtol=0, atol=0)


def changed(**fields: Any) -> str:
    return json.dumps({**PLAIN.as_data(), **fields})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no profile"),
        ("[1, 2]", "is no profile"),
        ("{}", "'format' is missing"),
        ("[" * 100_000, "is no profile"),
        (changed(format="cache_dit profile 9"), "its format is 'cache_dit profile 9'"),
        (changed(steps="28"), "steps is '28', which is no whole number"),
        (changed(steps=True), "steps is True"),
        (changed(model=None), "model is None, which is no text"),
        (changed(measured={"psnr": {"mean": "high"}}), "mean is 'high', which is no number"),
        (changed(measured={"lpips": {}}), "'lpips' is not a valid Measure"),
        (changed(config={"cache_config": {"cache_type": "Budget", "compute": 7}}), "compute is 7"),
        (changed(config={"cache_config": {"cache_type": "Budget", "computer": 1}}), "computer"),
        (changed(config={}), "'cache_config' is missing"),
        (changed(met=True).replace("46.5", "NaN"), "it has NaN"),
    ],
)
def test_what_is_no_profile(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(complaint)) as caught:
        Profile.load(path)
    assert str(caught.value).startswith(f"{path} is no profile (")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(" " * 1_000_001)
    with pytest.raises(ConfigError, match="it has more than 1000000 bytes"):
        Profile.load(path)


def test_no_other_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="was not written by this command"):
        PLAIN.save(path)
    assert path.read_text() == "mine"


def test_a_profile_can_be_enabled(pipe: Any) -> None:
    cache_dit.enable_cache(pipe, PLAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(pipe, PROMPTS[0], steps=6, cfg=1)
    (stats,) = cache_dit.summary(pipe, logging=False)
    assert len(stats.cached_steps) == 3
    cache_dit.disable_cache(pipe)


def test_another_number_of_steps_is_warned_about_and_stretched(pipe: Any) -> None:
    schedule = cache_dit.Schedule(total=6, computed=(0, 1, 3))
    cache_dit.enable_cache(pipe, profile(cache_dit.presets.dpcache(schedule)))
    with pytest.warns(UserWarning, match="tuned_steps is 6 but the run has 12 steps"):
        generate(pipe, PROMPTS[0], steps=12, cfg=1)
    (stats,) = cache_dit.summary(pipe, logging=False)
    assert stats.cached_steps == [step for step, one in enumerate(schedule.mask(12)) if not one]
    cache_dit.disable_cache(pipe)


def test_what_cannot_be_stretched_is_refused(pipe: Any) -> None:
    masked = cache_dit.Preset(cache_dit.DBCacheConfig(Fn_compute_blocks=1, steps_computation_mask=[1, 1, 0]))
    cache_dit.enable_cache(pipe, dataclasses.replace(PLAIN, cache_config=masked.cache_config))
    with pytest.raises(ConfigError, match="steps_computation_mask has 3 entries but the run has 4 steps"):
        generate(pipe, PROMPTS[0], steps=4, cfg=1)
    cache_dit.disable_cache(pipe)


def test_another_model_is_refused(pipe: Any) -> None:
    other = dataclasses.replace(PLAIN, model="QwenImageTransformer2DModel")
    with pytest.raises(ConfigError, match="made for QwenImageTransformer2DModel but this is FluxTrans"):
        cache_dit.enable_cache(pipe, other)
    with pytest.raises(ConfigError, match="is not cached"):
        cache_dit.summary(pipe)


def test_changed_options_are_no_profile_any_more() -> None:
    preset = PLAIN.with_options(compute=0.3)
    assert type(preset) is cache_dit.Preset
    assert (preset.model, preset.cache_config.tuned_steps) == ("FluxTransformer2DModel", 6)


DOCS = Path(__file__).parents[1] / "docs" / "tuning.md"


def test_the_examples_of_the_documentation(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As written, but that pictures are scored by a formula and not drawn, and that runs have 4 steps."""

    def scores(gallery: Any, preset: cache_dit.Preset, pictures: Any, paired: bool = False) -> Any:
        compute = getattr(preset.cache_config, "compute", 1.0)
        return tuple(
            {Measure.PSNR: 90 * compute + at, Measure.FLOPS: compute} for at, _ in enumerate(pictures)
        )

    monkeypatch.setattr("cache_dit.tune.gallery.Gallery.scores", scores)
    monkeypatch.setattr("cache_dit.tune.gallery.Gallery.uncached", lambda *_: None)
    monkeypatch.setattr("cache_dit.tune.gallery.Gallery.steady", False)
    monkeypatch.chdir(tmp_path)
    text = DOCS.read_text(encoding="utf-8").replace("num_inference_steps=28", "num_inference_steps=4")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 3
    names: dict[str, Any] = {"pipe": pipe, "prompts": list(PROMPTS)}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)
        cache_dit.disable_cache(pipe)
    assert names["profile"].met
    assert names["profile"].method.startswith("trajectory")
    assert 0.4 <= names["found"].profile.measured[Measure.FLOPS].mean <= 0.5
