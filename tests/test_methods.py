"""docs/methods.md: its table says what the code does, it lists every method, and its examples run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.runs import Denoising, decisions, small_flux
from torch import Tensor

import cache_dit
from cache_dit import (
    CacheConfig,
    CalibratorConfig,
    Place,
    Preset,
    Schedule,
    TrajectoryCalibratorConfig,
    presets,
)
from cache_dit.caching import catalogue
from cache_dit.caching.maths.gate import Signal
from cache_dit.demo import PROMPTS, generate, load_pipeline
from cache_dit.errors import ConfigError
from cache_dit.tune import calibrate

ROOT = Path(__file__).parents[1]
README, TEXT = (ROOT / "README.md").read_text(), (ROOT / "docs" / "methods.md").read_text()
BLOCKS = [part.split("```")[0] for part in TEXT.split("```python\n")[1:]]
FUNCTIONS = presets.NAMED
REQUIRED: dict[str, Any] = {"ratios": (1.0, 0.9, 0.9), "schedule": Schedule(total=4, computed=(0, 1))}
DEMO = {"height": 64, "width": 64, "max_sequence_length": 10}


def table(header: str) -> list[list[str]]:
    """The rows of the table whose first cell is `header`, without it."""
    lines = TEXT.split(f"\n| {header} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


METHODS = {preset.strip("`"): [method, *rest] for method, preset, *rest in table("method")}


def made(name: str) -> Preset:
    """What the second cell of a row stands for: a preset, or an option class that has none."""
    if name not in FUNCTIONS:
        return Preset(getattr(cache_dit, name)())
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    return FUNCTIONS[name](**{key: value for key, value in REQUIRED.items() if key in parameters})


def test_every_preset_has_a_row() -> None:
    assert set(FUNCTIONS) == {name for name in METHODS if name in FUNCTIONS}


def test_every_method_is_named() -> None:
    named = set(re.findall(r"`(\w+Config)`", TEXT))
    kinds = {name for name, kind in vars(catalogue).items() if isinstance(kind, type)}
    assert named <= kinds
    assert kinds - named == {"BasicCacheConfig"}, "the same as DBCacheConfig"
    calibrators = {name for name in kinds if issubclass(getattr(catalogue, name), CalibratorConfig)}
    assert {row[0].strip("`") for row in table("calibrator")} == calibrators
    places = {word for row in table("place") for word in re.findall(r"`(\w+)`", row[0])}
    assert places == {place.name for place in Place}


@pytest.mark.parametrize("name", METHODS)
def test_a_row_of_the_table_is_what_the_code_does(name: str) -> None:
    _, _, filled, place, looks, keeps, source = METHODS[name]
    preset = made(name)
    cache, forecaster = preset.cache_config, preset.calibrator_config.method()
    assert cache.place.name == place
    gate = cache.policy().gate
    assert (gate.signal is Signal.NONE) == looks.startswith("nothing")
    assert ("check" in looks) == gate.verifies
    assert ("learns" in looks) == gate.learns
    if filled != "any":
        assert int(keeps.split()[0]) == forecaster.memory
    assert (type(forecaster).__name__ == "Reuse") == (filled == "last value" or filled == "any")
    if found := re.search(r"\d{4}\.\d{5}|10\.\d+/\d+", source):
        documented = (FUNCTIONS[name].__doc__, type(cache).__doc__, type(preset.calibrator_config).__doc__)
        assert any(found[0] in (text or "") for text in documented)


# --- the examples ---


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_examples_run_and_skip_something(
    pipe: Any, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Fewer steps than the text says, since every one is computed there.
    code = BLOCKS[number].replace("num_inference_steps=28", "num_inference_steps=8")
    code = code.replace("(14)", "(4)").replace("=7)", "=4)").replace("(7)", "(4)")
    names = {"cache_dit": cache_dit, "pipe": pipe, "prompts": PROMPTS[:1], "arguments": DEMO}
    try:
        exec(compile(code, "methods.md", "exec"), names)
        picture = generate(pipe, PROMPTS[0], steps=8)
        (stats,) = cache_dit.summary(pipe, logging=False)
    finally:
        cache_dit.disable_cache(pipe)
    assert picture.isfinite().all()
    assert stats.flops_saved is not None
    assert 0.05 < stats.flops_saved < 0.95


def test_the_error_that_is_shown_is_the_one_that_is_raised(pipe: Any) -> None:
    (shown,) = re.findall(r"```text\n(place is .*?)```", TEXT, flags=re.DOTALL)
    config: CacheConfig = cache_dit.DBCacheConfig(Fn_compute_blocks=1, place=Place.OUTPUT)
    with pytest.raises(ConfigError) as caught:
        cache_dit.enable_cache(pipe, config)
    assert str(caught.value) == " ".join(shown.split())


def test_the_examples_of_the_readme(pipe: Any) -> None:
    (code,) = re.findall(r"## Choosing a method\n.*?```python\n(.*?)```", README, flags=re.DOTALL)
    for line in code.splitlines():
        exec(compile(line, "README.md", "exec"), {"cache_dit": cache_dit, "pipe": pipe})
        cache_dit.disable_cache(pipe)


# --- what is said of the estimate ---

HALF = presets.trajectory(compute=0.5)
LINE = Preset(HALF.cache_config, cache_dit.TaylorSeerCalibratorConfig())


@pytest.fixture
def picture(pipe: Any) -> Iterator[Callable[[Preset | None], Tensor]]:
    """A picture of 8 steps, with a preset or without the cache."""

    def drawn(preset: Preset | None) -> Tensor:
        cache_dit.disable_cache(pipe)
        if preset is not None:
            cache_dit.enable_cache(pipe, preset)
        # Some samplers draw noise on the way.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return generate(pipe, PROMPTS[0], steps=8, cfg=1.0)

    scheduler = pipe.scheduler
    yield drawn
    pipe.scheduler = scheduler
    cache_dit.disable_cache(pipe)


def test_nothing_is_changed_while_every_step_is_computed(
    picture: Callable[[Preset | None], Tensor],
) -> None:
    assert torch.equal(picture(presets.trajectory(compute=1.0)), picture(None))


def test_with_another_sampler_there_is_the_line_alone(
    pipe: Any, picture: Callable[[Preset | None], Tensor]
) -> None:
    assert not torch.equal(picture(HALF), picture(LINE))
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)
    assert torch.equal(picture(HALF), picture(LINE))
    cache_dit.disable_cache(pipe)
    with pytest.raises(ConfigError, match="does not move the latent by multiples of the transformer's out"):
        calibrate(pipe, PROMPTS[:1], num_inference_steps=8, **DEMO)


def test_elsewhere_skipped_steps_are_forecast_and_computed_ones_correct() -> None:
    sigmas, latents = [1.0 - step / 8 for step in range(9)], []
    for calibrator in (TrajectoryCalibratorConfig(), cache_dit.TaylorSeerCalibratorConfig()):
        cache = cache_dit.IntervalConfig(interval=3, max_warmup_steps=2)
        model = cache_dit.enable_cache(small_flux(), cache, calibrator)
        run = Denoising(model, 0, 8, request=cache_dit.Request(8, sigmas=sigmas))
        seen = []
        for _ in range(8):
            run.advance()
            seen.append(run.latents)
        assert decisions(model) == "CCSSCSSC"
        latents.append(seen)
    same = [torch.equal(ours, line) for ours, line in zip(*latents, strict=True)]
    assert same == [True] * 4 + [False] * 4


def test_a_loop_of_its_own_is_estimated_by_the_noise_levels_of_its_request() -> None:
    sigmas = [1.0 - step / 6 for step in range(7)]
    made = {}
    for name, preset, given in (("line", LINE, sigmas), ("untold", HALF, None), ("told", HALF, sigmas)):
        model = cache_dit.enable_cache(small_flux(), preset)
        made[name] = Denoising(model, 0, 6, request=cache_dit.Request(6, sigmas=given)).finish()
    assert torch.equal(made["untold"], made["line"])
    assert not torch.equal(made["told"], made["line"])
