"""The demo: the model that ships, the comparison it makes, and the command `cache-dit demo`."""

import math
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import cache_dit.demo
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig, disable_cache, enable_cache
from cache_dit.cli import app
from cache_dit.demo import (
    PROMPTS,
    Comparison,
    Spread,
    compare,
    draw_pictures,
    draw_steps,
    generate,
    load_pipeline,
    weights_path,
)
from cache_dit.demo.model import check_prompt
from cache_dit.errors import ConfigError
from cache_dit.metrics.image import psnr, ssim
from cache_dit.stats.flops import SDPA_MAPPING

HOUSE, TREE = "a red house on grass at day with mountains", "a pink tree on sand at night"
CACHE = DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.9, max_warmup_steps=2)
TAYLOR = TaylorSeerCalibratorConfig(taylorseer_order=1)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


@pytest.fixture(scope="module")
def result(pipe: Any) -> Comparison:
    return compare(pipe, CACHE, TAYLOR, prompts=[HOUSE, TREE], seeds=[0, 1], steps=4, repeats=1)


@pytest.fixture
def quick(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command without loading the model each time."""
    monkeypatch.setattr(cache_dit.demo, "load_pipeline", lambda: pipe)
    yield
    assert "Cached" not in type(pipe).__name__


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["demo", *map(str, arguments)], env={"COLUMNS": "100", "TERM": "dumb"})


# The model


def test_the_pipeline_is_diffusers_own_and_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the demo model was looked for on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    pipe = load_pipeline()

    from diffusers import FluxPipeline  # only now: importing it is part of what must be quiet

    assert type(pipe) is FluxPipeline
    modules = [pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2]
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}
    generate(pipe, HOUSE, steps=1)
    assert capfd.readouterr() == ("", "")


def test_the_weights_are_small() -> None:
    size = sum(path.stat().st_size for path in weights_path().rglob("*") if path.is_file())
    assert 1e6 < size < 12e6


def test_every_weight_of_the_text_encoder_is_read(pipe: Any) -> None:
    """Also by transformers 4, which looks for the prefix and draws what it does not find."""
    kept = load_file(weights_path() / "text_encoder" / "model.safetensors")
    assert {name.split(".")[0] for name in kept} == {"text_model"}
    read = {name.removeprefix("text_model."): value for name, value in pipe.text_encoder.state_dict().items()}
    assert all(torch.equal(read[name.removeprefix("text_model.")], value) for name, value in kept.items())


def test_one_picture(pipe: Any) -> None:
    picture = generate(pipe, HOUSE, seed=3, steps=2)
    assert picture.shape == (3, 64, 64)
    assert picture.dtype == torch.float32
    assert 0 <= picture.min() < picture.max() <= 1
    assert torch.equal(picture, generate(pipe, HOUSE, seed=3, steps=2))
    assert not torch.equal(picture, generate(pipe, HOUSE, seed=4, steps=2))


def test_prompts_are_in_the_vocabulary(pipe: Any) -> None:
    colours, things = "red|yellow|green|blue|purple|pink", "house|tree|balloon|mushroom"
    form = rf"a ({colours}) ({things}) on (grass|sand|snow) at (day|sunset|night)( with mountains)?"
    assert 4 <= len(set(PROMPTS)) == len(PROMPTS) <= 16
    for prompt in PROMPTS:
        assert re.fullmatch(form, prompt), prompt
        check_prompt(pipe, prompt)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a red hose on grass at day", "'hose', which the demo model was not taught. Did you mean 'house'?"),
        ("Zürich", "It knows: a, at, balloon,"),
        ("a red red house on grass at day with mountains", "has 10 words; give 9 at most"),
    ],
)
def test_prompts_that_the_model_was_not_taught(pipe: Any, prompt: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        compare(pipe, CACHE, prompts=[HOUSE, prompt], steps=1)


# The comparison


def test_the_flops_fraction_is_what_torch_counts_in_the_real_runs(pipe: Any) -> None:
    def count() -> tuple[int, int]:
        with FlopCounterMode(display=False, custom_mapping=SDPA_MAPPING) as counter:
            generate(pipe, HOUSE, steps=4)
        counts = counter.get_flop_counts()
        return counter.get_total_flops(), sum(counts["FluxTransformer2DModel"].values())

    whole, transformer = count()
    enable_cache(pipe, CACHE, TAYLOR)
    try:
        cached_whole, cached_transformer = count()
    finally:
        disable_cache(pipe)
    assert 0 < cached_transformer < transformer
    assert whole - cached_whole == transformer - cached_transformer
    (sample,) = compare(pipe, CACHE, TAYLOR, prompts=[HOUSE], steps=4, repeats=1).samples
    assert sample.flops == pytest.approx(cached_transformer / transformer, abs=1e-12)


def test_what_is_compared(pipe: Any, result: Comparison) -> None:
    assert [(sample.prompt, sample.seed) for sample in result.samples] == [
        (HOUSE, 0),
        (HOUSE, 1),
        (TREE, 0),
        (TREE, 1),
    ]
    for sample in result.samples:
        assert sample.branches == ("cond", "uncond")
        assert [len(steps) > 0 for steps in sample.cached_steps] == [True, True]
        for steps, changes in zip(sample.cached_steps, sample.changes, strict=True):
            assert set(steps) <= set(changes) <= {2, 3}
        assert 0.2 < sample.flops < 0.9
        assert sample.psnr == psnr(sample.cached, sample.uncached, data_range=1.0) < math.inf
        assert sample.ssim == ssim(sample.cached, sample.uncached, data_range=1.0) < 1.0
        assert torch.equal(sample.uncached, generate(pipe, sample.prompt, seed=sample.seed, steps=4))
    assert result.config == "DBCache_F1B0_W2I1M0MC0_R0.9_T1O1"
    assert result.fewer_steps.steps == round(4 * result.flops)
    assert len(result.fewer_steps.psnr) == len(result.fewer_steps.ssim) == 4
    assert result.seconds_uncached.low > 0


def test_threshold_0_changes_nothing(pipe: Any) -> None:
    off = DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0, max_warmup_steps=2)
    result = compare(pipe, off, prompts=[TREE], steps=4, repeats=3)
    assert result.psnr == (math.inf,)
    assert result.ssim == (1.0,)
    assert result.flops == 1.0
    assert result.samples[0].cached_steps == ((), ())
    assert result.fewer_steps.steps == 4
    assert result.fewer_steps.psnr == (math.inf,)
    assert 0.5 < result.speedup.median < 2


def test_without_guidance_there_is_one_branch(pipe: Any) -> None:
    result = compare(pipe, CACHE, prompts=[TREE], steps=4, cfg=1.0, repeats=1)
    assert len(result.samples[0].branches) == len(result.samples[0].cached_steps) == 1


def test_progress_counts_every_picture(pipe: Any) -> None:
    seen: list[tuple[int, int]] = []
    compare(pipe, CACHE, prompts=[TREE], steps=2, cfg=1.0, repeats=2, progress=lambda *now: seen.append(now))
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]


def test_nothing_stays_behind(pipe: Any) -> None:
    kinds, threads = [type(module) for module in pipe.transformer.modules()], torch.get_num_threads()
    with pytest.raises(ConfigError, match="Fn_compute_blocks is 40"):
        compare(pipe, DBCacheConfig(Fn_compute_blocks=40), prompts=[TREE], steps=2)
    compare(pipe, CACHE, prompts=[TREE], steps=2, cfg=1.0, repeats=1)
    assert [type(module) for module in pipe.transformer.modules()] == kinds
    assert torch.get_num_threads() == threads


def test_at_least_one_of_each(pipe: Any) -> None:
    for nothing in ({"prompts": []}, {"seeds": []}, {"repeats": 0}):
        with pytest.raises(ConfigError, match="give one of each at least"):
            compare(pipe, CACHE, **nothing)


def test_spread() -> None:
    assert Spread.of([3.0]) == Spread(median=3.0, low=3.0, high=3.0)
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(median=3.0, low=2.0, high=4.0)


# The figures


def test_the_figures(result: Comparison, tmp_path: Path) -> None:
    pictures, steps = tmp_path / "a.png", tmp_path / "b.png"
    assert draw_pictures(result, pictures) == pictures
    assert draw_steps(result, steps) == steps
    assert sorted(tmp_path.iterdir()) == [pictures, steps]
    for path, size in ((pictures, (1092, 924)), (steps, (1320, 672))):
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert image.size == size


def test_no_half_figure_is_left(result: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def fail(_: Figure, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_pictures(result, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


# The command


def test_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    options = ("--seeds", 2, "--steps", 5, "--warmup", 2, "--threshold", 0.9, "--repeats", 1)
    done = run("--prompt", TREE, *options, "--output", folder)
    assert done.exit_code == 0, done.output
    assert "2 pictures, 5 steps, guidance 2" in done.stdout
    assert "DBCache_F1B0_W2I1M0" in done.stdout
    for row in ("of them cached", "transformer FLOPs", "seconds a picture", "speed", "PSNR, dB", "SSIM"):
        assert row in done.stdout
    written = [folder / "pictures.png", folder / "steps.png"]
    assert done.stdout.splitlines()[-2:] == [str(path) for path in written]
    assert sorted(folder.iterdir()) == written
    for path in written:
        with Image.open(path) as image:
            image.verify()


@pytest.mark.usefixtures("quick")
def test_every_option_arrives(tmp_path: Path) -> None:
    options = ("--fn", 2, "--bn", 1, "--threshold", 0.5, "--warmup", 3, "--max-continuous", 2, "--order", 0)
    common = ("--prompt", TREE, "--repeats", 1, "--cfg", 1, "--output", tmp_path)
    done = run(*options, *common, "--steps", 4)
    assert "1 picture, 4 steps\n" in re.sub(r" +\n", "\n", done.stdout)
    assert "DBCache_F2B1_W3I1M0MC2_R0.5_T0O0" in done.stdout
    done = run(*common, "--mask", "fast", "--order", 2, "--steps", 6)
    assert "_SCM" in done.stdout
    assert "T1O2" in done.stdout


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--threshold", "-1"], "residual_diff_threshold is -1.0; give a number of at least 0"),
        (["--order", "5"], "taylorseer_order is 5; give 1 to 4"),
        (["--order", "-1"], "taylorseer_order is -1"),
        (["--fn", "99"], "Fn_compute_blocks is 99 but transformer_blocks of FluxTransformer2DModel has"),
        (["--bn", "99"], "Bn_compute_blocks is 99 but single_transformer_blocks"),
        (["--mask", "quick"], "mask_policy is 'quick'; allowed are 'slow', 'medium', 'fast', 'ultra'"),
        (["--prompt", "a red cat"], "the word 'cat', which the demo model was not taught"),
    ],
)
def test_an_error_is_one_line(options: list[str], says: str, tmp_path: Path) -> None:
    done = run(*options, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.png"))


def test_an_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("--output", tmp_path / "file")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "File exists" in done.stderr
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    "options", [["--steps", "0"], ["--cfg", "0.5"], ["--sted", "3"], ["--seeds", "many"]]
)
def test_wrong_usage(options: list[str]) -> None:
    done = run(*options)
    assert done.exit_code == 2
    assert options[0] in done.stderr


def test_help_lists_every_option() -> None:
    shown = run("--help").stdout
    names = "prompt seeds steps cfg fn bn threshold warmup max-continuous order mask repeats output"
    for option in names.split():
        assert f"--{option} " in shown
    assert "demo" in CliRunner().invoke(app, ["--help"]).stdout
    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == cache_dit.__version__
