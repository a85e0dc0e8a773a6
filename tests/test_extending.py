"""docs/extending.md is run as it stands, and every method of the catalogue is crossed with all others."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny.image_models import FLUX
from tiny.runs import Denoising, decisions, small_flux

import cache_dit
from cache_dit import CacheConfig, CalibratorConfig, Place, Request, Schedule
from cache_dit.caching import catalogue, forecasters, gates
from cache_dit.caching.attach.override import attachment_of
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.gate import Gate, Signal
from cache_dit.caching.maths.moment import Moment
from cache_dit.errors import ConfigError, ConfigTypeError

MOST_LINES = 80
BLOCKS = [
    part.split("```")[0]
    for part in (Path(__file__).parents[1] / "docs" / "extending.md").read_text().split("```python\n")[1:]
]
FILES = {found[1]: code for code in BLOCKS if (found := re.match(r"# my_methods/(\w+)\.py\n", code))}
SNIPPETS = "\n".join(code for code in BLOCKS if not code.startswith("# my_methods/"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """The files of the document, as the modules of a package of their own."""
    root = tmp_path_factory.mktemp("extending")
    home = root / "my_methods"
    home.mkdir()
    (home / "__init__.py").touch()
    for name, code in FILES.items():
        (home / f"{name}.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield {name: importlib.import_module(f"my_methods.{name}") for name in FILES}
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_methods"]:
        del sys.modules[name]


@pytest.fixture
def used(package: dict[str, ModuleType]) -> Any:
    """A tiny Flux, cached as the rest of the document says; what that asserts is asserted on the way."""
    transformer = small_flux()
    exec(compile(SNIPPETS, "extending.md", "exec"), {"transformer": transformer})
    return transformer


# --- the document ---


def test_each_file_of_the_document_is_short() -> None:
    assert set(FILES) == {"levels", "smoothing", "bend"}
    assert all(len(code.splitlines()) <= MOST_LINES for code in FILES.values())


@pytest.mark.parametrize(("steps", "expected"), [(5, "CCCCS"), (10, "CCSCSSCSSS"), (15, "CCSSCSSSSCSSSSS")])
def test_the_gate_follows_the_noise_level(used: Any, steps: int, expected: str) -> None:
    assert Denoising(used, 0, steps).finish().isfinite().all()
    assert decisions(used) == expected


def test_the_short_form_and_the_summary_name_both(used: Any) -> None:
    Denoising(used, 0, 10).finish()
    (stats,) = cache_dit.summary(used, logging=False)
    assert stats.config == "Levels_F0B0_W0I1M0MC0_L0.95-0.75-0.45_Holt0.6"
    assert stats.forecaster == "exponential smoothing (0.6) on residual"


@pytest.mark.parametrize("name", ["smoothing", "bend"])
def test_a_computed_run_is_bit_identical_and_a_still_one_forecast_exactly(
    package: dict[str, ModuleType], name: str
) -> None:
    made = {"smoothing": "SmoothingCalibratorConfig", "bend": "HalfBendCalibratorConfig"}[name]
    calibrator = getattr(package[name], made)()
    levels, plain, cached = package["levels"].LevelsConfig, small_flux(), small_flux()
    everywhere = [step / 20 for step in range(20)]
    cache_dit.enable_cache(cached, levels(levels=everywhere), calibrator)
    assert torch.equal(Denoising(cached, 0, 10).finish(), Denoising(plain, 0, 10).finish())
    assert decisions(cached) == "C" * 10

    # The same input in every step: what is forecast is what would have been computed.
    cache_dit.enable_cache(cached, levels(enable_separate_cfg=False), calibrator)
    request = Request(10, sigmas=[1.0 - step / 10 for step in range(10)])
    with torch.no_grad(), request:
        outputs = [cached(**FLUX.inputs(0), return_dict=False)[0] for _ in range(10)]
        expected = plain(**FLUX.inputs(0), return_dict=False)[0]
    assert decisions(cached) == "CCSCSSCSSS"
    for output in outputs:
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("name", ["smoothing", "bend"])
def test_the_forecasters_are_exact_on_lines_at_uneven_gaps(package: dict[str, ModuleType], name: str) -> None:
    made: Forecaster = {
        "smoothing": lambda: package["smoothing"].Holt(0.3),
        "bend": lambda: package["bend"].HalfBend(),
    }[name]()
    start, slope = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = made.init()
    for step in (0, 2, 3, 7):
        state = made.observe(state, Moment(step, float(step)), start + step * slope)
        if step:
            torch.testing.assert_close(made.predict(state, Moment(9, 9.0)), start + 9 * slope)


def test_smoothing_takes_the_share_that_it_is_given(package: dict[str, ModuleType]) -> None:
    made = package["smoothing"].Holt(0.5)
    state = made.init()
    for step, value in enumerate((0.0, 0.0, 4.0)):
        state = made.observe(state, Moment(step, float(step)), torch.tensor([value]))
    # Level 0 and slope 0 were expected: half of 4, and half of the slope that this makes.
    assert made.predict(state, Moment(3, 3.0)).item() == 2.0 + 1.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"levels": (0.5, 1.2)}, ConfigError, r"levels\[1\] is 1.2; give a number from 0.0 to 1.0"),
        ({"levels": 0.5}, ConfigTypeError, "levels is 0.5, a float; give a list"),
        ({"level": (0.5,)}, ConfigTypeError, "LevelsConfig has no option 'level'. Did you mean 'levels'"),
    ],
)
def test_bad_options_are_named(
    package: dict[str, ModuleType], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        package["levels"].LevelsConfig(**options)


# --- the catalogue ---

KINDS = [kind for name, kind in vars(catalogue).items() if isinstance(kind, type)]
CACHES = [kind for kind in KINDS if issubclass(kind, CacheConfig)]
CALIBRATORS = [kind for kind in KINDS if issubclass(kind, CalibratorConfig)]
REQUIRED: dict[str, dict[str, Any]] = {
    "MagCacheConfig": {"ratios": (1.0, 0.9, 0.9)},
    "ScheduleConfig": {"schedule": Schedule(total=4, computed=(0, 1))},
}
NAMED = {kind.__name__: kind for kind in KINDS}


def made(kind: type[CacheConfig], **changed: Any) -> CacheConfig:
    """With what has no default, and as few first blocks as the method can do with."""
    config = kind(**REQUIRED.get(kind.__name__, {}))
    return dataclasses.replace(config, Fn_compute_blocks=min(1, config.Fn_compute_blocks), **changed)


@pytest.fixture(scope="module")
def model() -> Any:
    return small_flux()


def refusal(
    model: Any, cache: type[CacheConfig], calibrator: type[CalibratorConfig], **changed: Any
) -> str | None:
    """Why the two cannot be put on the model together; None where they can."""
    try:
        cache_dit.enable_cache(model, made(cache, **changed), calibrator())
    except ConfigError as error:
        assert attachment_of(model) is None, "a refusal leaves the model alone"
        return str(error)
    attached = attachment_of(model)
    assert attached is not None
    assert attached.session.plan.segments
    cache_dit.disable_cache(model)
    return None


def test_the_catalogue_holds_option_classes_and_nothing_else() -> None:
    assert set(KINDS) == {value for name, value in vars(catalogue).items() if not name.startswith("__")}
    assert set(KINDS) == {*CACHES, *CALIBRATORS}
    assert {NAMED[kind.__name__] for kind in KINDS} == set(KINDS)


@pytest.mark.parametrize("folder", [gates, forecasters], ids=["gates", "forecasters"])
def test_every_method_is_one_short_file(folder: ModuleType) -> None:
    (home,) = folder.__path__
    lines = {path.name: len(path.read_text().splitlines()) for path in Path(home).glob("*.py")}
    assert len(lines) > 10
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_every_file_of_a_method_is_in_the_catalogue() -> None:
    """A file that defines an option class and is forgotten would not be crossed with the others."""
    found = set()
    for folder in (gates, forecasters):
        (home,) = folder.__path__
        for path in Path(home).glob("*.py"):
            module = importlib.import_module(f"{folder.__name__}.{path.stem}")
            found |= {
                kind
                for kind in vars(module).values()
                if isinstance(kind, type)
                and issubclass(kind, (CacheConfig, CalibratorConfig))
                and kind.__module__ == module.__name__
            }
    assert found - set(KINDS) == set()


@pytest.mark.parametrize("kind", CACHES, ids=lambda kind: kind.__name__)
def test_every_cache_makes_a_gate_that_is_a_value(kind: type[CacheConfig]) -> None:
    config = made(kind)
    assert isinstance(config.gate(), Gate)
    assert config.gate() == made(kind).gate()
    assert hash(config.policy()) == hash(made(kind).policy())
    assert config.method
    assert config.label() in config.strify()


@pytest.mark.parametrize("kind", CALIBRATORS, ids=lambda kind: kind.__name__)
def test_every_calibrator_makes_a_forecaster_that_is_a_value(kind: type[CalibratorConfig]) -> None:
    forecaster = kind().method()
    assert isinstance(forecaster, Forecaster)
    assert forecaster == kind().method()
    assert forecaster.memory >= 1
    smaller = forecaster.within(1)
    assert smaller is None or smaller.memory == 1
    assert kind().strify()
    assert kind().describe()


@pytest.mark.parametrize("calibrator", CALIBRATORS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("cache", CACHES, ids=lambda kind: kind.__name__)
def test_every_gate_goes_with_every_forecaster(
    model: Any, cache: type[CacheConfig], calibrator: type[CalibratorConfig]
) -> None:
    """Refused is a forecaster that needs what the gate does not look at, and nothing else."""
    config, needs = made(cache), calibrator().method().needs
    sentence = refusal(model, cache, calibrator)
    if not needs or (config.gate().signal in needs and config.place in (Place.MIDDLE, Place.BLOCKS)):
        assert sentence is None
    else:
        assert re.fullmatch(r".*CalibratorConfig (needs|looks) .*; give .*\.", sentence or "")


@pytest.mark.parametrize("place", Place, ids=lambda place: place.name)
@pytest.mark.parametrize("cache", CACHES, ids=lambda kind: kind.__name__)
def test_every_gate_goes_with_every_place(model: Any, cache: type[CacheConfig], place: Place) -> None:
    """Refused is what looks at blocks, modules or the output where there are none; nothing else."""
    gate = made(cache).gate()
    looks = gate.verifies or gate.signal in (Signal.RESIDUAL, Signal.PROBE, Signal.MODULATED)
    outside = place in (Place.MIDDLE, Place.BLOCKS, Place.OUTPUT)
    sentence = refusal(model, cache, CalibratorConfig, place=place)
    if made(cache).tokens() is not None and outside:
        assert re.fullmatch(r"place is Place\.\w+, but \w+ computes tokens .*; give .*\.", sentence or "")
    elif (looks and place not in (Place.MIDDLE, Place.BLOCKS)) or (
        gate.looks_at_output and place is not Place.OUTPUT
    ):
        assert re.fullmatch(r"place is Place\.\w+ but .*; give .*\.", sentence or "")
    else:
        assert sentence is None
