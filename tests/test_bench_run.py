"""`cache-dit bench run`: pictures and tables, what survives a kill, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from cache_dit.bench.config_sets import ConfigSet
from cache_dit.bench.drawbench import UNCACHED, draw_all, variants_of
from cache_dit.bench.drawbench_table import Row, markdown
from cache_dit.bench.drawing import Job, load, read_prompts
from cache_dit.bench.manifest import MANIFEST, Drawn, claim, keep, read_drawn
from cache_dit.bench.quality import Quality
from cache_dit.cli import app
from cache_dit.errors import ConfigError
from cache_dit.shorthand import parse_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("F1B0_W2M0MC3_T0O1_R0.5", "F1B0_W2M0MC2_T1O1_R0.5")
STEPS = 6


def _run(out: Path, *more: str, configs: tuple[str, ...] = CONFIGS, steps: int = STEPS) -> Any:
    options = [word for config in configs for word in ("--config", config)]
    words = ["bench", "run", "--limit", "3", "--steps", str(steps), "--out", str(out), *options, *more]
    return CliRunner().invoke(app, words)


def _without_times(table: str) -> list[list[str]]:
    """The cells of all lines, without latency and its ratio."""
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    return [row[:3] + row[5:] if len(row) > 3 else row for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("bench") / "run"
    result = _run(out)
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_the_tables(undisturbed: tuple[Path, str]) -> None:
    out, table = undisturbed
    assert (out / "table.md").read_text(encoding="utf-8") == table
    lines = table.splitlines()
    sections = [line for line in lines if line.startswith(("#", "-"))]
    plain, taylor = "- DBCache w/ configurable FnBn compute blocks", "- w/ TaylorSeer (DBCache_TaylorSeer)"
    assert sections == ["### PSNR (↑)", plain, taylor, "### SSIM (↑)", plain, taylor]
    assert lines[4] == "| Config | PSNR | Latency(s) | SpeedUp(↑) | TFLOPs | SpeedUp(↑) |"
    base, cached = (line.strip("| ").split(" | ") for line in lines[6:8])
    assert base[:2] == [f"Base: demo, {STEPS} steps", "INF"]
    assert base[3] == base[5] == "1.00"
    assert cached[0] == CONFIGS[0]
    assert 15 < float(cached[1]) < 60
    # Three of six steps run one block of sixteen.
    assert 1.5 < float(cached[5]) < 2.0


def test_pictures_and_lines(undisturbed: tuple[Path, str]) -> None:
    out, _ = undisturbed
    assert sorted(path.name for path in (out / CONFIGS[0]).iterdir()) == [
        "0000.png",
        "0001.png",
        "0002.png",
        MANIFEST,
    ]
    done = read_drawn(out / CONFIGS[0])
    assert [done[number].seed for number in range(3)] == [0, 1, 2]
    assert done[1].prompt == read_prompts(None, "demo")[1]
    assert (done[1].steps, done[1].cached) == ((STEPS,), (3,))
    assert read_drawn(out / "base")[0].cached == ()


def test_flops_are_those_that_torch_counts_while_drawing() -> None:
    from cache_dit.bench.drawing import cached_account
    from cache_dit.bench.measure import counting

    camera = load(Job(model="demo", prompts=("a red house on grass at day",), steps=STEPS))
    for variant in variants_of([CONFIGS[1], "taylorseer_lite(2, 1)", "dbprune(0.4)"]):
        with variant.applied(camera.pipe):
            if variant is UNCACHED:
                with camera.watching():
                    camera.picture(0)
                told = camera.uncached_flops()
            else:
                camera.picture(0)
                told, _, _ = cached_account(camera.pipe)
            with counting(camera.pipe.transformer) as count:
                camera.picture(0)
        assert told == pytest.approx(count.total, rel=0.01), variant.name


def test_a_killed_run_goes_on(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [word for config in CONFIGS for word in ("--config", config)]
    command = [sys.executable, "-c", "from cache_dit.cli import main; main()", "bench", "run", "--limit", "3"]
    command += ["--steps", str(STEPS), "--out", str(out), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    manifest = out / CONFIGS[0] / MANIFEST
    deadline = time.monotonic() + 300
    while not manifest.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {folder: read_drawn(out / folder) for folder in ("base", *CONFIGS)}
    assert len(before["base"]) == 3
    assert 1 <= len(before[CONFIGS[0]]) <= 3
    assert len(before[CONFIGS[1]]) < 3
    result = _run(out)
    assert result.exit_code == 0, result.output
    assert _without_times(result.stdout) == _without_times(undisturbed[1])
    for folder, done in before.items():
        now = read_drawn(out / folder)
        assert {number: now[number] for number in done} == done  # not drawn again: times are kept


def test_a_second_start_draws_nothing_and_says_the_same(
    undisturbed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = undisturbed
    monkeypatch.setattr("cache_dit.bench.drawbench.load", None)
    assert _run(out).stdout == table


def test_json(undisturbed: tuple[Path, str]) -> None:
    out, _ = undisturbed
    result = _run(out, "--json", "--metrics", "psnr")
    said = json.loads(result.stdout)
    assert [row["config"] for row in said["rows"]] == ["base", *CONFIGS]
    assert said["rows"][0]["psnr"] is None
    assert said["rows"][1]["cached_steps"] == 3
    assert said["rows"][1]["tflops"] < 0.7 * said["rows"][0]["tflops"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--steps", "7"), "its steps is 6, that of this one is 7"),
        (("--seed", "1"), "its seed is 0"),
        (("--limit", "2"), "its number of prompts is 3, that of this one is 2"),
        (("--cfg", "2"), "its cfg is None"),
        (("--metrics", "psnr,fid"), "--metrics is 'fid'"),
        (("--config", "F1B0_Q1"), "'Q1' at position 5"),
        (("--config", "F1B0_W2M0MC3_T0O1_R0.5 "), "are one setting"),
        (("--set", "middle"), "--set is 'middle'"),
        (("--prompts", "none.txt"), "none.txt is no file"),
        (("--dtype", "bfloat16"), "--dtype 'bfloat16', but the demo model runs on the CPU in float32"),
        (("--device", "cuda"), "--device is 'cuda'"),
        (("--model", "some/model", "--dtype", "float33"), "--dtype is 'float33'"),
        (("--model", "some/model", "--device", "tpu:9"), "--device is 'tpu:9', which cannot be used here"),
        (("--metrics", "image_reward"), "image_reward needs --reward module:function"),
        (("--metrics", "image_reward", "--reward", "none:f"), "give MODULE:FUNCTION"),
        (("--metrics", "lpips", "--lpips-weights", "none"), "the weights of lpips are 'none'"),
    ],
)
def test_what_does_not_fit_is_refused(
    undisturbed: tuple[Path, str], more: tuple[str, ...], said: str
) -> None:
    result = _run(undisturbed[0], *more)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_metrics_of_prompts(undisturbed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    more = ("--metrics", "image_reward", "--reward", "test_bench_run:redness")
    table = _run(undisturbed[0], *more).stdout
    assert table.startswith("### Image Reward (↑)")
    values = [float(line.split("|")[2]) for line in table.splitlines() if "Base" in line or "F1B0" in line]
    assert len(values) == 4
    assert all(0 < value < 255 for value in values)


def redness(prompt: str, picture: Any) -> float:
    assert prompt in read_prompts(None, "demo")
    return torch.tensor(list(picture.convert("RGB").get_flattened_data()))[:, 0].float().mean().item()


def test_a_setting_that_does_not_fit_the_model_shows_before_the_first_picture(tmp_path: Path) -> None:
    job = Job(model="demo", prompts=("a red house",), steps=3)
    with pytest.raises(ConfigError, match="Fn_compute_blocks"):
        draw_all(job, variants_of(["F1B0", "F24B24"]), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_a_difference_is_told_in_one_line(tmp_path: Path) -> None:
    claim(tmp_path, {"prompts": ["a"] * 500})
    with pytest.raises(ConfigError) as caught:
        claim(tmp_path, {"prompts": ["b"] * 500})
    assert len(str(caught.value)) < 400


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = _run(tmp_path)
    assert (result.exit_code, "holds no benchmark" in result.stderr) == (2, True)
    (tmp_path / "run.json").write_text("{}")
    assert "was not written by this command" in _run(tmp_path).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "run.json"]


def _drawn(number: int, **changed: Any) -> Drawn:
    found: dict[str, Any] = {
        "number": number,
        "file": f"{number:04d}.png",
        # Of the bytes "x".
        "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
        "prompt": "ü",
        "seed": number,
        "seconds": 1.5,
        "flops": 2e9,
        "steps": (5,),
        "cached": (2,),
    }
    return Drawn(**found | changed)


def test_a_picture_that_changed_is_drawn_again(tmp_path: Path) -> None:
    done: dict[int, Drawn] = {}
    for number in (2, 0, 1):
        keep(tmp_path, done, _drawn(number), b"x")
    assert read_drawn(tmp_path) == {number: _drawn(number) for number in range(3)}
    (tmp_path / "0001.png").write_bytes(b"y")
    (tmp_path / "0002.png").unlink()
    assert list(read_drawn(tmp_path)) == [0]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"number": 1}'],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    keep(tmp_path, {}, _drawn(0), b"x")
    with (tmp_path / MANIFEST).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match=r"manifest.jsonl, line 2 is no picture"):
        read_drawn(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("file", "../0000.png"), ("seconds", -1.0), ("number", True), ("flops", float("inf"))]
)
def test_a_value_that_is_none_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    line = {
        "sha256": "",
        "prompt": "",
        "number": 0,
        "file": "a.png",
        "seed": 0,
        "seconds": 1.0,
        "flops": None,
    }
    good = json.dumps(line | {"steps": [1], "cached": [0]})
    assert Drawn.of(good).steps == (1,)
    with pytest.raises(ValueError, match="wrong type"):
        Drawn.of(json.dumps(line | {"steps": [1], "cached": [0], name: value}))


def test_a_start_that_was_killed_is_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / ".run.json.77.part").write_text("{")
    claim(tmp_path, {"steps": 3})
    claim(tmp_path, {"steps": 3})
    with pytest.raises(ConfigError, match=r"its steps is 3, that of this one is 4"):
        claim(tmp_path, {"steps": 4})


def test_rows_are_sorted_best_first_and_means_are_right() -> None:
    job = Job(model="m", prompts=("a",), steps=5)
    base, *others = variants_of(["F1B0_R0.1", "F2B0_R0.1", "F4B0_R0.1"])
    scores = (0.3, 0.1, 0.2)
    rows = [
        Row.of(base, [_drawn(0, seconds=4.0)], {Quality.LPIPS: None, Quality.CLIP_SCORE: 33.0}),
        *(
            Row.of(
                variant,
                [
                    _drawn(0, seconds=1.0, flops=1e9),
                    _drawn(1, seconds=3.0, flops=None if score == 0.3 else 3e9),
                ],
                {Quality.LPIPS: score, Quality.CLIP_SCORE: score},
            )
            for variant, score in zip(others, scores, strict=True)
        ),
    ]
    text = markdown(job, rows)
    lpips, clip = (
        [line.split(" | ")[0].strip("| ") for line in part.splitlines() if line.startswith(("| F", "| B"))]
        for part in text.split("###")[1:]
    )
    assert lpips == ["Base: m, 5 steps", "F2B0_R0.1", "F4B0_R0.1", "F1B0_R0.1"]
    assert clip == ["Base: m, 5 steps", "F1B0_R0.1", "F4B0_R0.1", "F2B0_R0.1"]
    assert "### LPIPS (↓)" in text
    assert "### CLIP Score (↑)" in text
    assert "| Base: m, 5 steps | INF | 4.00 | 1.00 | 0.002000 | 1.00 |" in text
    assert "| Base: m, 5 steps | 33.0000 |" in text
    assert "| F2B0_R0.1 | 0.1000 | 2.00 | 2.00 | 0.002000 | 1.00 |" in text
    assert "| F1B0_R0.1 | 0.3000 | 2.00 | 2.00 | - | - |" in text


def test_all_sets_are_read() -> None:
    counts = {}
    for entry in ConfigSet:
        presets = [parse_config(text) for text in entry.configs]
        assert len({str(preset) for preset in presets}) == len(presets), entry
        counts[entry.value] = len(presets)
    assert counts == {"low": 32, "high": 7, "distilled-8": 5, "distilled-4": 5}


def test_prompts_of_the_package(tmp_path: Path) -> None:
    general, demo = read_prompts(None, "some/model"), read_prompts(None, "demo")
    assert len(set(general)) == len(set(demo)) == 32
    load(Job(model="demo", prompts=demo, steps=1))  # refuses words that the model was not taught
    with pytest.raises(ConfigError, match="which the demo model was not taught"):
        load(Job(model="demo", prompts=("a red lighthouse",), steps=1))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(ConfigError, match="has no prompt"):
        read_prompts(empty, "demo")


def test_a_pipeline_from_a_folder(tmp_path: Path) -> None:
    from cache_dit.demo import weights_path

    job = Job(model=str(weights_path()), prompts=("a red house",), steps=3, height=32, width=32, cfg=2.0)
    lines = draw_all(job, variants_of(["F1B0_W1_R0.9"]), tmp_path / "out")
    assert lines["F1B0_W1_R0.9"][0].steps == (3, 3)
    assert lines["base"][0].flops > lines["F1B0_W1_R0.9"][0].flops > 0
    with pytest.raises(Exception, match="cannot be loaded as a pipeline"):
        load(Job(model=str(tmp_path), prompts=("a",), steps=1))


def _sweep(out: Path, *more: str) -> Any:
    words = ["bench", "sweep", "--steps", str(STEPS), "--out", str(out), "--config", "F1B0_W2M0MC0_T1O1"]
    return CliRunner().invoke(app, [*words, *more])


def test_a_sweep_of_two_thresholds(tmp_path: Path) -> None:
    grid = ("--double", "0.01,1", "--single", "0.01,1")
    result = _sweep(tmp_path / "a", *grid)
    assert result.exit_code == 0, result.stderr
    lines = [line.strip("| ").split(" | ") for line in result.stdout.splitlines()]
    assert lines[0] == [
        "Threshold (double)",
        "Single 0.01 Inference (s)",
        "Single 1 Inference (s)",
        "Single 0.01 Image",
        "Single 1 Image",
    ]
    assert [line[0] for line in lines[2:]] == ["0 (uncached)", "0.01", "1"]
    for line in lines[2:]:
        for cell in line[3:]:
            name = cell.split('src="./')[1].split('"')[0]
            assert (tmp_path / "a" / name).is_file()
    said = json.loads(_sweep(tmp_path / "a", *grid, "--json").stdout)["pairs"]
    cached = {(entry["double"], entry["single"]): entry["cached_steps"][0] for entry in said}
    # Each list by its own threshold.
    assert cached == {(0.01, 0.01): [0, 0], (0.01, 1): [0, 4], (1, 0.01): [4, 0], (1, 1): [4, 4]}
    tflops = {(entry["double"], entry["single"]): entry["tflops"][0] for entry in said}
    assert tflops[1, 1] < tflops[0.01, 1] < tflops[1, 0.01] < tflops[0.01, 0.01]
    # The same folder, and a list in place of a grid.
    table = _sweep(tmp_path / "a", "--pair", "1,1", "--pair", "0.01,0.01").stdout.splitlines()
    assert table[0] == "| Threshold (double) | Threshold (single) | Inference (s) | Image |"
    assert [line.split("|")[1:3] for line in table[2:]] == [
        [" 0 ", " 0 (uncached) "],
        [" 1 ", " 1 "],
        [" 0.01 ", " 0.01 "],
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "there is no pair of thresholds"),
        (("--double", "0.1;0.2", "--single", "1"), "give numbers with commas"),
        (("--pair", "0.1"), "give two thresholds"),
        (("--pair", "-1,1"), "residual_diff_threshold is -1.0"),
        (("--config", "fora(3)", "--pair", "1,1"), "has no residual_diff_threshold"),
    ],
)
def test_a_sweep_that_is_refused(tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    result = _sweep(tmp_path / "out", *more)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


def _blocks(kind: str) -> list[str]:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    return [part.split("```")[0] for part in text.split(f"```{kind}\n")[1:]]


def test_the_program_of_the_documentation() -> None:
    (program,) = _blocks("python")
    exec(program, {})


def test_the_commands_of_the_documentation() -> None:
    lines = [line for block in _blocks("console") for line in block.splitlines()]
    assert len(lines) == 10
    bench = typer.main.get_command(app).commands["bench"]  # type: ignore[attr-defined]
    for line in lines:
        start, *words = shlex.split(line.removeprefix("$ "))
        assert [start, words[0]] == ["cache-dit", "bench"]
        bench.commands[words[1]].make_context(words[1], words[2:])  # reads the options, runs nothing


def test_metrics_that_need_weights(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from cache_dit.metrics.lpips import ALEXNET, shapes

    torch.manual_seed(0)
    save_file(
        {name: torch.rand(shape) for name, shape in shapes(ALEXNET).items()}, tmp_path / "w.safetensors"
    )
    more = ("--metrics", "lpips", "--lpips-weights", str(tmp_path / "w.safetensors"), "--json")
    base, *others = json.loads(_run(undisturbed[0], *more).stdout)["rows"]
    assert base["lpips"] is None
    assert all(row["lpips"] > 0 for row in others)
