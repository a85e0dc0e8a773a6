"""Every example runs as its README says: on the demo model, or on a tiny one where there is no demo."""

from __future__ import annotations

import contextlib
import copy
import functools
import multiprocessing
import os
import re
import runpy
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import diffusers.utils
import pytest
import torch
from PIL import Image
from tiny.base import Draw, builder
from tiny.pipelines import QWEN_IMAGE_PIPELINE, WAN_TWO_TRANSFORMERS, TinyPipeline
from torch import nn

import cache_dit
from cache_dit import demo
from cache_dit.pages import run as page_run
from cache_dit.stats import findings
from cache_dit.stats import stats as stats_module

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# Other tests run generate.py; flux_model.py is what the others share.
NOT_HERE = {"flux_model", "generate"}

Run = Callable[..., dict[str, Any]]


def modules_of(model: nn.Module, *_: Any) -> dict[nn.Module, int]:
    """In place of FLOPs, whose counting takes longer than a run: how many modules each module has."""
    return {module: sum(1 for _ in module.modules()) for module in model.modules()}


@pytest.fixture(scope="module")
def small_flux() -> Any:
    return demo.load_pipeline()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_flux: Any) -> Run:
    """Run a script by its name with a command line, in an empty folder; what is left are its variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(demo, "load_pipeline", lambda: copy.deepcopy(small_flux))

    def run(name: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        for counting in (stats_module, findings, page_run):
            monkeypatch.setattr(counting, "forward_flops", modules_of)
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return run


def drawn(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
    return picture


def test_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = run("one_line", "--demo", "--steps", "10")["pipe"]
    assert "| cond   | 10 " in capsys.readouterr().out
    assert drawn(tmp_path / "one_line.png").size == (64, 64)
    assert type(pipe.transformer) is diffusers.FluxTransformer2DModel


def test_flux_thresholds(run: Run) -> None:
    pipe = run("flux_thresholds", "--demo", "--steps", "10")["pipe"]
    double, single = cache_dit.summary(pipe, logging=False)
    assert (double.lists, single.lists) == (("transformer_blocks",), ("single_transformer_blocks",))
    assert "R0.08" in double.config
    assert "R0.16" in single.config
    assert single.cached_steps


PASSED = {"num_inference_steps", "generator", "true_cfg_scale", "guidance_scale", "guidance_scale_2"}


def stand_in(kind: TinyPipeline, layers: int) -> Any:
    """A pipeline of random weights that is called with a prompt, and gives a black picture or video."""
    pipe = kind.build()
    plain: Any = type(pipe)
    for name in kind.transformers:
        part = getattr(pipe, name)
        known = {key: value for key, value in part.config.items() if not key.startswith("_")}
        setattr(pipe, name, builder(type(part).__name__, 0, **known | {"num_layers": layers})())

    @functools.wraps(plain.__call__)
    def call(self: Any, prompt: str, **options: Any) -> Any:
        assert prompt
        small = {"height": 32, "width": 32, "output_type": "latent", "prompt_embeds": Draw(0)(1, 5, 24)}
        if "num_frames" in options:
            small |= {"num_frames": 5, "negative_prompt_embeds": Draw(1)(1, 5, 24)}
        plain.__call__(self, **{name: options[name] for name in PASSED & options.keys()}, **small)
        black = Image.new("RGB", (8, 8))
        return SimpleNamespace(images=[black], frames=[[black]])

    left_out = dict.fromkeys(("load_lora_weights", "enable_model_cpu_offload"), lambda *_, **__: None)
    # A class of its own, since what caching makes of a class is kept for the next pipeline of that class.
    pipe.__class__ = type(
        plain.__name__, (plain,), {"__call__": call, "to": lambda self, _: self, **left_out}
    )
    return pipe


def test_qwen_image_lightning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = stand_in(QWEN_IMAGE_PIPELINE, layers=34)
    monkeypatch.setattr(diffusers.QwenImagePipeline, "from_pretrained", lambda *_, **__: pipe)
    run("qwen_image_lightning")
    (stats,) = cache_dit.summary(pipe, logging=False)
    assert (stats.total_steps, stats.cached_steps) == (4, [2])
    assert pipe.scheduler.config.shift_terminal is None


def test_wan_two_experts(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = stand_in(WAN_TWO_TRANSFORMERS, layers=4)
    monkeypatch.setattr(diffusers.WanPipeline, "from_pretrained", lambda *_, **__: pipe)
    monkeypatch.setattr(diffusers.utils, "export_to_video", lambda *_, **__: None)
    run("wan_two_experts", "--steps", "16")
    said = capsys.readouterr().out
    high, low = cache_dit.summary(pipe, logging=False)
    assert high.total_steps + low.total_steps == 16
    assert said.startswith(f"high noise: {high.total_steps} steps")
    assert "W4I1M8" in high.config
    assert "W2I1M20" in low.config


def test_transformer_only(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("transformer_only", "--demo", "--steps", "8")
    assert re.findall(r"^\| (\d+) ", capsys.readouterr().out, re.M) == ["8", "16"]


def test_serving(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = run("serving", "--demo", "--steps", "8")
    assert capsys.readouterr().out.splitlines() == [
        f"request {number}: done after {steps} steps" for number, steps in ((1, 4), (0, 8), (2, 8))
    ]
    alone = space["Job"](0, "a red house on grass at day", cache_dit.Request(num_inference_steps=8))
    while not alone.advance():
        pass
    picture = space["picture_of"](space["pipe"], alone.latents, space["size"])
    assert picture.tobytes() == drawn(tmp_path / "serving_0.png").tobytes()


def test_error_tolerance(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("error_tolerance", "--demo", "--steps", "12")
    lines = capsys.readouterr().out.splitlines()
    skipped = [int(re.findall(r": (\d+) of 12", line)[0]) for line in lines]
    near = [float(re.findall(r"([\d.]+|inf) dB", line)[0]) for line in lines]
    assert skipped == sorted(skipped)
    assert skipped[-1] > skipped[0]
    assert near == sorted(near, reverse=True)
    assert near[-1] > 30


def test_calibrate_schedule(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("calibrate_schedule", "--demo", "--steps", "8")
    kept = cache_dit.Schedule.load(tmp_path / "schedule.json")
    assert len(kept.computed) == 4
    left = [step for step in range(8) if step not in kept.computed]
    assert capsys.readouterr().out == f"skipped {left} of 8 steps\n"


def test_tune_to_target(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    profile = run("tune_to_target", "--demo", "--steps", "5")["profile"]
    assert profile.target == "psnr>=35"
    assert len(profile.tried) == 6
    assert capsys.readouterr().out.endswith(f"target met: {profile.met}\n")


def test_custom_model(run: Run) -> None:
    (stats,) = cache_dit.summary(run("custom_model")["model"], logging=False)
    assert (stats.lists, stats.total_steps) == (("layers",), 20)
    assert len(stats.cached_steps) > 5


def test_custom_forecaster(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("custom_forecaster", "--demo", "--steps", "9")
    said = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    near = {name: float(value.removesuffix(" dB")) for name, value in said.items()}
    assert near["a line damped by 0.8 on residual"] > near["the last computed change"] + 1


def as_rank(run: Run, rank: int, port: int) -> None:
    """One of two processes, with what torchrun tells each."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    with Path(f"{rank}.txt").open("w") as said, contextlib.redirect_stdout(said):
        run("hybrid_parallel", "--demo", "--steps", "10")


def test_hybrid_parallel(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    # Forked, since two fresh processes spend far more on imports than on the picture.
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=as_rank, args=(run, rank, port)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert re.fullmatch(r"2 processes: [1-9] of 10 steps skipped\n", (tmp_path / "0.txt").read_text())
    assert (tmp_path / "1.txt").read_text() == ""
    assert drawn(tmp_path / "hybrid_parallel.png").size == (64, 64)


def test_quantize_compile_cache(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Traced as always; only that no machine code is made of it is different.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    kept: list[Any] = []
    monkeypatch.setattr(cache_dit, "set_compile_configs", lambda: kept.append(set_configs()))
    set_configs = cache_dit.compile.set_compile_configs
    try:
        pipe = run("quantize_compile_cache", "--demo", "--steps", "10")["pipe"]
    finally:
        for configs in kept:
            configs.__exit__(None, None, None)
        torch.compiler.reset()
    assert "int8_weight_only" in capsys.readouterr().out
    (stats,) = cache_dit.summary(pipe, logging=False)
    assert stats.total_steps == 10
    block = pipe.transformer.transformer_blocks[0]
    assert block._compiled_call_impl is not None
    assert type(block.attn.to_q.weight.data).__name__ != "Tensor"


def test_run_report(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("run_report", "--demo", "--steps", "9")
    assert capsys.readouterr().out == "open run.html in a browser\n"
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "a red house on grass at day with mountains" in text


def test_every_example_is_run_here_and_told_in_the_readme() -> None:
    found = {path.stem for path in EXAMPLES.glob("*.py")} - NOT_HERE
    assert len(found) == 14
    assert {name for name in found if f"test_{name}" not in globals()} == set()
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"examples/(\w+)\.py", text)
    assert sorted(set(told) - NOT_HERE) == sorted(found)
    for command in re.findall(r"`(python examples/[^`]*)`", text):
        assert (EXAMPLES.parent / command.split()[1]).is_file()
