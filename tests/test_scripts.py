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
