"""docs/methods.md: its table says what the code does, it lists every method, and its examples run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cache_dit
from cache_dit import CacheConfig, CalibratorConfig, Place, Preset, Schedule, presets
from cache_dit.caching import catalogue
from cache_dit.caching.maths.gate import Signal
from cache_dit.demo import PROMPTS, generate, load_pipeline
from cache_dit.errors import ConfigError

TEXT = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
BLOCKS = [part.split("```")[0] for part in TEXT.split("```python\n")[1:]]
FUNCTIONS: dict[str, Callable[..., Preset]] = {
    name: function
    for name, function in inspect.getmembers(presets, inspect.isfunction)
    if function.__module__ == presets.__name__
}
REQUIRED: dict[str, Any] = {"ratios": (1.0, 0.9, 0.9), "schedule": Schedule(total=4, computed=(0, 1))}
DEMO = {"height": 64, "width": 64, "max_sequence_length": 10}


def table(header: str) -> list[list[str]]:
    """The rows of the table whose first cell is `header`, without it."""
    lines = TEXT.split(f"\n| {header} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


METHODS = {row[-1].strip("`"): row[:-1] for row in table("method")}


def made(name: str) -> Preset:
    """What the last cell of a row stands for: a preset, or an option class that has none."""
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
    code = BLOCKS[number].replace("num_inference_steps=28", "num_inference_steps=8").replace("(14)", "(4)")
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
