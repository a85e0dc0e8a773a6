"""The metrics on the command line, and the examples of the documents."""

import json
import math
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from cache_dit.cli.app import app
from cache_dit.cli.metrics import Metric
from cache_dit.metrics import compute_psnr, compute_ssim
from cache_dit.metrics.lpips import ALEXNET, shapes

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """true.png and test.png, true_dir and test_dir with three numbered pictures, a prompt for each."""
    for number, name in enumerate(("true", "test")):
        (tmp_path / f"{name}_dir").mkdir()
        for place in (f"{name}.png", *(f"{name}_dir/{k}.png" for k in range(3))):
            values = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / place)
    (tmp_path / "DrawBench200.txt").write_text("a cat\na dog\na long house\n")
    for name in ("LPIPS_MODEL_DIR", "FID_MODEL_PATH", "CLIP_MODEL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


class Tiny(nn.Module):
    """Features of a picture: one row of each plane, much smaller than the picture."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures[:, :, 0, :4].flatten(1).float()


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["metrics", *arguments])
    return result.exit_code, result.stdout, result.stderr


def as_json(*arguments: str) -> dict[str, Any]:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(out, parse_constant=refuse)


def lpips_weights(path: Path) -> Path:
    torch.manual_seed(0)
    state: dict[str, Tensor] = {name: torch.rand(shape) - 0.3 for name, shape in shapes(ALEXNET).items()}
    save_file(state, path)
    return path


@pytest.mark.parametrize("kind", [".png", "_dir"])
def test_all(here: Path, kind: str) -> None:
    """The line of the published documents: what needs no weights, and why the rest is left out."""
    true, test = f"true{kind}", f"test{kind}"
    found = as_json("all", "-i1", true, "-i2", test)
    assert list(found["metrics"]) == ["psnr", "ssim", "mse"]
    psnr, n = compute_psnr(true, test)
    assert found["metrics"]["psnr"]["value"] == psnr
    assert found["metrics"]["psnr"]["n"] == n == (1 if kind == ".png" else 3)
    assert found["metrics"]["mse"]["value"] == pytest.approx(255**2 / 10 ** (psnr / 10))
    assert list(found["left_out"]) == ["lpips", "fid", "clip_score", "image_reward"]
    assert "LPIPS_MODEL_DIR" in found["left_out"]["lpips"]
    assert ("is a file" if kind == ".png" else "FID_MODEL_PATH") in found["left_out"]["fid"]
    code, out, _ = run("all", "-i1", true, "-i2", test)
    assert code == 0
    assert re.search(rf"psnr +{psnr:.4f}", out)
    assert "left out: clip_score: clip_score needs prompts" in out


def test_all_with_what_it_needs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "taste.py").write_text("def score(prompt, picture):\n    return len(prompt)\n")
    monkeypatch.setenv("LPIPS_MODEL_DIR", str(lpips_weights(here / "w.safetensors")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Tiny()).save("tiny.pt")
    common = ("-i1", "true_dir", "-i2", "test_dir", "-p", "DrawBench200.txt", "--reward", "taste:score")
    found = as_json("all", *common, "--fid-features", "tiny.pt", "--csv", "items.csv", "--batch-size", "2")
    assert list(found["metrics"]) == ["psnr", "ssim", "mse", "lpips", "fid", "image_reward"]
    assert found["metrics"]["fid"]["low"] is None
    assert found["metrics"]["image_reward"] == {
        "value": pytest.approx(22 / 3),
        "n": 3,
        "low": 5,
        "high": 12,
    }
    assert found["metrics"]["lpips"]["value"] > 0
    lines = (here / "items.csv").read_text().splitlines()
    assert lines[0] == "item,psnr,ssim,mse,lpips,image_reward"
    assert [line.split(",")[0] for line in lines[1:]] == ["0.png", "1.png", "2.png"]
    assert lines[3].endswith(",12.0")


def test_several_metrics_in_short(here: Path) -> None:
    code, out, _ = run("ssim", "psnr", "--img-true", "true.png", "--img-test", "test.png", "-s")
    assert code == 0
    ssim, psnr = compute_ssim("true.png", "test.png").value, compute_psnr("true.png", "test.png").value
    assert out == f"ssim {ssim:.6g} 1\npsnr {psnr:.6g} 1\n"


def test_equal_pictures_are_valid_json(here: Path) -> None:
    found = as_json("psnr", "-i1", "true_dir", "-i2", "true_dir")
    assert found["metrics"]["psnr"] == {"value": "Infinity", "n": 3, "low": None, "high": None}
    assert float(found["metrics"]["psnr"]["value"]) == math.inf


def test_videos(here: Path) -> None:
    code, out, _ = run("video_psnr", "video_ssim", "-v1", "true_dir", "-v2", "true_dir", "-s")
    assert (code, out) == (0, "video_psnr inf 1\nvideo_ssim 1 1\n")
    (here / "a.mp4").write_text("no video")
    code, _, err = run("all", "-i1", "a.mp4", "-i2", "a.mp4")
    assert code == 2
    assert "cannot be read as a video" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("psnr -i2 test.png", "psnr needs a reference; give -i1"),
        ("clip_score -i2 test_dir", "clip_score needs prompts; give -p"),
        ("clip_score -i2 test_dir -p DrawBench200.txt", "CLIP_MODEL_DIR"),
        ("image_reward -i2 test_dir -p DrawBench200.txt", "score of compute_image_reward"),
        ("image_reward -i2 test_dir -p DrawBench200.txt --reward nothing:here", "cannot be imported"),
        ("image_reward -i2 test_dir -p DrawBench200.txt --reward math", "cannot be imported"),
        ("image_reward -i2 test_dir -p DrawBench200.txt --reward math:pi", "is no function"),
        ("lpips -i1 true.png -i2 test.png", "LPIPS_MODEL_DIR"),
        ("fid -i1 true_dir -i2 test_dir", "FID_MODEL_PATH"),
        ("fid -i1 true.png -i2 test.png", "is a file"),
        (
            "psnr -i1 true.png -i2 test.png -p DrawBench200.txt",
            "--prompts is for clip_score and image_reward",
        ),
        ("psnr -i1 true.png -i2 test.png --lpips-weights .", "--lpips-weights is for lpips only"),
        ("psnr -i1 true.png -i2 nowhere.png", "nowhere.png does not exist"),
        ("psnr -i1 true.png -i2 test_dir", "a file and a folder"),
        ("psnr -i1 true.png -i2 test.png --device gpu", "device is 'gpu'"),
        ("psnr -i1 true.png -i2 test.png --csv true.png", "true.png exists"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(here: Path, arguments: str, says: str) -> None:
    code, _, err = run(*arguments.split())
    assert code == 2
    assert says in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_metric(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(flag)
    assert code == 0
    assert [metric.value for metric in Metric if metric.value not in out] == []
    assert all(option in out for option in ("-i1", "-i2", "-s", "--json", "--csv", "LPIPS_MODEL_DIR"))


def test_the_script_of_its_own(here: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, function = scripts["cache-dit-metrics-cli"].split(":")
    code = f"from {module} import {function}; {function}()"
    pictures = ["-i1", str(here / "true.png"), "-i2", str(here / "test.png")]
    command = [sys.executable, "-c", code, "all", *pictures, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stderr == ""
    assert list(json.loads(result.stdout)["metrics"]) == ["psnr", "ssim", "mse"]


def test_the_page_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of docs/metrics.md, with random weights in place of those it names."""
    lpips_weights(here / "lpips.safetensors")
    monkeypatch.setenv("LPIPS_MODEL_DIR", str(here / "lpips.safetensors"))
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/metrics.md", "exec"), names)
    assert names["n"] == 3
