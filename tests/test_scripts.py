"""The slow scripts at toy size: that they run to their end and write what they say, not what they measure."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cache_dit.bench import Purpose
from cache_dit.caching.maths.trajectory import Trajectory

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    path.stem for path in sorted((ROOT / "bench").glob("*.py")) if "ArgumentParser" in path.read_text()
]


@pytest.fixture
def research(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("research")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    script = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 0
    assert str(script.__doc__).split("\n")[0] in " ".join(capsys.readouterr().out.split())


def test_training_makes_a_pipeline_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import FluxPipeline

    monkeypatch.syspath_prepend(ROOT)
    weights = importlib.import_module("training.smoke").run_all(tmp_path)
    pipe = FluxPipeline.from_pretrained(weights, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe(
        "a red house on grass at day",
        height=64,
        width=64,
        max_sequence_length=10,
        num_inference_steps=2,
        output_type="pt",
    ).images
    assert picture.shape == (1, 3, 64, 64)
    assert picture.isfinite().all()
    assert (tmp_path / "results" / "contact_sheet.png").stat().st_size > 1000


def test_the_benchmark_of_the_engine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    engine = importlib.import_module("engine")
    monkeypatch.setattr(sys, "argv", ["engine.py", "--rounds", "2", "--steps", "3"])
    engine.main()
    text = capsys.readouterr().out
    assert "a skipped block" in text
    rows = [line.split("|") for line in text[text.index("# Cost") :].splitlines() if "fast mask |" in line]
    assert [row[1].strip() for row in rows] == ["1", "4"]
    assert all(0.3 < float(row[7]) < 1.0 for row in rows)


def test_calibration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    script = importlib.import_module("calibrate")
    monkeypatch.setattr(script, "_MANY", 2)
    monkeypatch.setattr(script, "calibrated_file", lambda method, _: tmp_path / f"{method}.json")
    methods = ("trajectory", "closed-loop", "magcache")
    monkeypatch.setattr(sys, "argv", ["calibrate.py", *methods, "--steps", "8", "--cfg", "1"])
    script.main()
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(methods)
    assert Trajectory.load(tmp_path / "trajectory.json").steps == 8
    found = json.loads((tmp_path / "closed-loop.json").read_text())
    assert {budget: len(steps) for budget, steps in found.items()} == {
        "0.5": 4,
        "0.4": 3,
        "0.333333": 3,
        "0.25": 2,
    }


def test_prompts_to_calibrate_with_are_taught_and_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    monkeypatch.syspath_prepend(ROOT)
    prompts = set(importlib.import_module("calibrate").many_prompts())
    assert len(prompts) == 48
    assert prompts <= set(map(str, importlib.import_module("training.landscapes").all_captions()))
    assert prompts.isdisjoint(picture.prompt for picture in Purpose.REPORT.pictures)


def test_the_table_of_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    models = importlib.import_module("models")
    monkeypatch.setattr(sys, "argv", ["models.py", "--only", "FluxTransformer2DModel"])
    models.main()
    text = capsys.readouterr().out
    assert "**1 of 1 classes right in every cell**; exact 1 of 1" in text
    (row,) = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| Flux")]
    assert [cell.strip() for cell in row[2:4]] == ["yes", "5"]
    assert all(0 < float(cell) < 1e-5 for cell in (row[4], row[5], row[6], row[10]))


def test_the_table_of_models_shows_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    models = importlib.import_module("models")
    flux = next(tiny for tiny in models.TINY_MODELS if tiny.id == "FluxTransformer2DModel")
    monkeypatch.setattr(models.cache_dit, "disable_cache", lambda model: model)
    line = models.measured(flux)
    assert not line.restored
    assert not line.right
    assert "**0 of 1 classes right in every cell**" in models.table([line])
    assert "| **no** |" in models.table([line])


def test_the_questions_of_research_are_distinct(research: Any) -> None:
    for settings in (make() for make in research.TOPICS.values()):
        assert len({name for name, _, _ in settings}) == len(settings) >= 10


def test_an_answer_of_research(research: Any) -> None:
    from cache_dit.bench.pictures import Purpose, draw
    from cache_dit.demo import load_pipeline

    pipe, cell, pictures = load_pipeline(), research.Cell(6, 1.0), Purpose.TRAINING.pictures[:1]
    setting = research.crossed({"chosen": research.BestOrderConfig()}, (research.Place.OUTPUT,))[0]
    flops, (nearness,) = research.measured(pipe, cell, pictures, draw(pipe, pictures, cell), setting)
    assert flops == 0.5
    assert 15 < nearness < 80


def test_the_order_that_was_nearest_is_taken(research: Any) -> None:
    forecaster = research.BestOrder(0.0)
    state = forecaster.init()
    for step in range(4):
        at = research.Moment(step, float(step), total=8)
        state = forecaster.observe(state, at, torch.tensor([float(step**2)]))
    assert forecaster.predict(state, research.Moment(4, 4.0, total=8)) == 16.0
