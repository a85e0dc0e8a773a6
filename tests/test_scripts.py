"""The slow scripts at toy size: that they run to their end and write what they say, not what they measure."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


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


def test_the_benchmark_of_fidelity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    quality = importlib.import_module("quality")
    monkeypatch.setattr(quality, "THRESHOLDS", (1.0,))
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["quality.py", "--steps", "6", "--prompts", "1", "--warmup", "2", "--write"]
    )
    quality.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 6 | 1.00 | Taylor 1")]
    compute, psnr_mean = (float(cell) for cell in rows[-1].split("|")[4:6])
    assert 0.3 < compute < 0.6
    assert 5 < psnr_mean < 100
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "quality-6steps-cfg1.csv",
        "quality-6steps-cfg1.md",
    ]


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
