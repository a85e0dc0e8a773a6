"""`cache-dit bench compare`: what it counts, what it keeps, and how it chooses."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from cache_dit.api import attachments_of
from cache_dit.bench import (
    Bench,
    Cell,
    Kind,
    Purpose,
    Row,
    Score,
    Setting,
    System,
    all_systems,
    best_at,
    contenders,
    curves,
    front,
    measure,
    read,
    rows_of,
)
from cache_dit.bench.measure import counting
from cache_dit.bench.pictures import draw
from cache_dit.bench.report import markdown
from cache_dit.bench.store import append
from cache_dit.cli.app import app
from cache_dit.demo import PROMPTS, load_pipeline
from cache_dit.demo.model import check_prompt
from cache_dit.errors import CacheDiTError
from cache_dit.stats.flops import SDPA_MAPPING

CELL = Cell(6, 1.0)
PICTURES = Purpose.TRAINING.pictures


@pytest.fixture(scope="module")
def pipe() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_pipeline()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bench(pipe: Any) -> Bench:
    """One for all tests: uncached pictures are drawn once."""
    return Bench(pipe, CELL)


def system(name: str, strength: str = "") -> System:
    return next(one for one in all_systems() if one.name == name and strength in one.strength)


def test_the_sets_share_no_prompt_and_no_seed_with_anything(pipe: Any) -> None:
    training, report = Purpose.TRAINING.pictures, Purpose.REPORT.pictures
    sets = [{picture.prompt for picture in training}, {picture.prompt for picture in report}, set(PROMPTS)]
    assert len(set.union(*sets)) == sum(map(len, sets)) == 12 + 24 + len(PROMPTS)
    assert len({picture.seed for picture in (*training, *report)}) == 12 + 2 * 24
    for prompt in sets[0] | sets[1]:
        check_prompt(pipe, prompt)


def test_flops_are_those_of_torchs_counter(pipe: Any) -> None:
    with counting(pipe.transformer) as count:
        draw(pipe, PICTURES[:1], Cell(2, 1.0))
    with FlopCounterMode(display=False, custom_mapping=SDPA_MAPPING) as whole:
        draw(pipe, PICTURES[:1], Cell(2, 1.0))
    assert count.total == sum(whole.get_flop_counts()["FluxTransformer2DModel"].values()) > 0


def test_controls(bench: Bench) -> None:
    floor = list(bench.scores(system("uncached again"), PICTURES[:2], timed=PICTURES[:1]))
    assert [score.flops for score in floor] == [1.0, 1.0]
    assert min(score.psnr for score in floor) > 90
    assert 0.5 < floor[0].time < 2
    assert math.isnan(floor[1].time)
    half = list(bench.scores(system("fewer steps", "0.50"), PICTURES[:2], timed=()))
    assert [score.flops for score in half] == [0.5, 0.5]
    assert 10 < min(score.psnr for score in half) < max(score.psnr for score in half) < 60


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("TaylorSeer lite", "interval 3, warm-up 2"),
        ("TaylorSeer modules", "interval 3, warm-up 2"),
        ("TaylorSeer attention", "interval 2, warm-up 2"),
        ("FirstBlockCache", "0.4"),
        ("MagCache", "0.5, retention 0.1"),
        ("SeaCache", "1.5, at most 2, retention 2"),
        ("PAB", "every 2"),
        ("FasterCache", "every 2"),
        ("DBCache Taylor 1, warm-up 2", "0.4"),
    ],
)
def test_a_system_saves_and_leaves_nothing_behind(bench: Bench, name: str, strength: str) -> None:
    (score,) = bench.scores(system(name, strength), PICTURES[:1], timed=())
    assert 0.2 < score.flops < 0.95
    assert 8 < score.psnr < 60
    (after,) = bench.scores(system("uncached again"), PICTURES[:1], timed=())
    assert after.psnr > 90


def test_pictures_of_a_batch_do_not_mix(bench: Bench) -> None:
    lite = system("TaylorSeer lite")
    together = list(bench.scores(lite, PICTURES[:2], timed=()))
    alone = list(bench.scores(replace(lite, fixed=False), PICTURES[:2], timed=()))
    assert [score.psnr for score in together] == pytest.approx([score.psnr for score in alone], abs=0.02)
    assert [score.flops for score in together] == pytest.approx([score.flops for score in alone])


def test_what_is_said_not_to_run_does_not(pipe: Any) -> None:
    from diffusers import FasterCacheConfig, TextKVCacheConfig

    def timestep() -> Any:
        return pipe.current_timestep

    unconditional = FasterCacheConfig(
        tensor_format="BCHW", attention_weight_callback=lambda _: 0.5, current_timestep_callback=timestep
    )
    pipe.transformer.enable_cache(unconditional)
    try:
        with pytest.raises(IndexError):
            draw(pipe, PICTURES[:1], Cell(2, 2.0))
    finally:
        pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(TextKVCacheConfig())
    try:
        modules = pipe.transformer.named_modules()
        assert [name for name, module in modules if getattr(module, "_diffusers_hook", _NO_HOOKS).hooks] == [
            ""
        ]
    finally:
        pipe.transformer.disable_cache()


_NO_HOOKS = SimpleNamespace(hooks={})


@pytest.mark.parametrize("name", ["MagCache of this package", "DPCache", "LeMiCa"])
def test_what_needs_calibration_runs_where_there_is_one(pipe: Any, name: str) -> None:
    systems = [system for system in all_systems() if system.name == name]
    here, elsewhere = Cell(28, 1.0), Cell(7, 1.0)
    for system in systems:
        assert not system.available(elsewhere)
        assert system.available(here)
        with system.applied(pipe, here):
            assert attachments_of(pipe)


def test_scores_are_kept_and_a_run_goes_on(pipe: Any, tmp_path: Path) -> None:
    path, other = tmp_path / "scores.csv", tmp_path / "more.csv"
    half = system("fewer steps", "0.50")
    measured: list[Setting] = []

    def go(*stores: Path, timed: int = 1) -> None:
        cells, purpose = [Cell(4, 1.0)], Purpose.REPORT
        measure(pipe, [half], cells, purpose, stores, prompts=2, timed=timed, told=measured.append)

    go(path)
    (found,) = read([path]).values()
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 4
    assert list(found) == [1000, 1001, 1002, 1003]
    assert [math.isnan(score.time) for score in found.values()] == [False, True, True, True]
    go(path)
    go(other, path)
    assert len(measured) == 1
    assert not other.exists()
    path.write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    go(path)
    assert sorted(path.read_text().splitlines()) == sorted(lines)
    go(path, timed=2)
    (found,) = read([path]).values()
    assert [math.isnan(found[seed].time) for seed in range(1000, 1004)] == [False, False, True, True]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    append(path, SETTING, Score(seed=500, flops=0.5, time=math.nan, psnr=40.0, ssim=0.9))
    path.write_text(path.read_text().replace("40", "forty"))
    with pytest.raises(CacheDiTError, match=r"line 2 is no score .*forty"):
        read([path])


SETTING = Setting(Purpose.TRAINING, Kind.OURS, "S", "a, b", CELL)


def row(purpose: Purpose, strength: str, flops: float, psnr: float, name: str = "S") -> Row:
    seeds = [picture.seed for picture in purpose.pictures[:4]]
    scores = [
        Score(seed=seed, flops=flops, time=flops, psnr=psnr + 2 * (seed % 2), ssim=0.9) for seed in seeds
    ]
    return Row.of(Setting(purpose, Kind.OURS, name, strength, CELL), scores)


def test_the_best_row_is_chosen_on_the_training_pictures() -> None:
    training = [
        row(Purpose.TRAINING, "dear", 0.6, 50),
        row(Purpose.TRAINING, "mild", 0.505, 45),
        row(Purpose.TRAINING, "wild", 0.3, 40),
        row(Purpose.TRAINING, "lucky", 0.3, 30),
    ]
    report = [
        row(Purpose.REPORT, "dear", 0.6, 49),
        row(Purpose.REPORT, "mild", 0.505, 44),
        row(Purpose.REPORT, "wild", 0.3, 41),
        row(Purpose.REPORT, "lucky", 0.3, 48),
        row(Purpose.REPORT, "untuned", 0.3, 60),
    ]
    assert [best.setting.strength for best in best_at(0.5, training, report)] == ["mild"]
    assert [best.psnr for best in best_at(1 / 3, training, report)] == [42]
    assert best_at(1 / 4, training, report) == []
    (points,) = map(front, curves(training).values())
    assert [point.setting.strength for point in points] == ["wild", "mild", "dear"]
    (kept,) = contenders([*training, row(Purpose.TRAINING, "useless", 0.55, 44)]).values()
    assert {one.setting.strength for one in kept} == {"dear", "mild", "wild"}
    (cheapest,) = contenders([row(Purpose.TRAINING, str(flops), flops, 50) for flops in (0.8, 0.7)]).values()
    assert [one.flops for one in cheapest] == [0.7]


def test_a_row_over_pictures() -> None:
    scores = [
        Score(seed=picture.seed, flops=flops, time=math.nan, psnr=psnr, ssim=0.9)
        for picture, psnr, flops in zip(PICTURES, range(30, 42), [0.4, 0.5, *[math.nan] * 10], strict=True)
    ]
    made = Row.of(SETTING, scores)
    assert (made.pictures, made.psnr, made.psnr_worst) == (12, 35.5, 30)
    assert made.psnr_p10 == pytest.approx(31.1)
    assert made.flops == pytest.approx(0.45)
    assert math.isnan(made.time)
    # The standard error of the mean of 12 evenly spread values is 1.0.
    assert made.psnr_low == pytest.approx(35.5 - 1.96, abs=0.25)
    assert made.psnr_high == pytest.approx(35.5 + 1.96, abs=0.25)


def test_pictures_of_one_prompt_count_as_one_in_the_interval() -> None:
    seeds = [picture.seed for picture in Purpose.REPORT.pictures]
    setting = replace(SETTING, purpose=Purpose.REPORT)
    scores = [Score(seed=seed, flops=0.5, time=0.5, psnr=30 + seed // 2 % 4, ssim=0.9) for seed in seeds]
    both = Row.of(setting, scores)
    one = Row.of(setting, scores[::2])
    assert (both.psnr_low, both.psnr_high) == pytest.approx((one.psnr_low, one.psnr_high))


def test_the_report_is_made_from_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    for purpose in Purpose:
        for name, kind in (("S", Kind.OURS), ("fewer steps", Kind.CONTROL)):
            for strength, flops in (("a, b", 0.5), ("c", 0.3)):
                for picture in purpose.pictures[:3]:
                    setting = Setting(purpose, kind, name, strength, CELL)
                    append(
                        path, setting, Score(seed=picture.seed, flops=flops, time=0.6, psnr=40.0, ssim=0.9)
                    )
    arguments = ["bench", "compare", "--report", "--store", str(path), "--write", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| S | cache-dit | 40.0 (40.0) | 40.0 (40.0) | 40.0 (40.0) | - |" in text
    assert "| S | a, b | 3 | 0.500 | 0.600 | 40.0 | 40.0 to 40.0 | 40.0 | 40.0 | 0.9000 |" in text
    table = (tmp_path / "out" / "compare.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * 2 * 2
    assert 'report,cache-dit,S,"a, b",6,1,3,0.5,0.6,40,40,40,40,40,0.9,0.9,0.9' in table
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_systems_of_published_tables_stand_in_one_table_by_cost() -> None:
    def row(system: str, strength: str, flops: float) -> Row:
        score = Score(seed=1000, flops=flops, time=0.5, psnr=40.0, ssim=0.9)
        return Row.of(Setting(Purpose.REPORT, Kind.OURS, system, strength, CELL), [score])

    rows = [row("fewer steps", "0.50", 0.5), row("FORA", "3", 0.25), row("Trajectory", "0.5", 0.5)]
    assert "published" not in markdown([], rows)
    text = markdown([], [*rows, row("Δ-DiT", "2", 0.8)])
    table = text[text.index("| uncached | 1.000 |") :].split("\n\n")[0].splitlines()
    assert [line.split("|")[1].strip() for line in table] == [
        "uncached",
        "Δ-DiT (2)",
        "fewer steps (0.50)",
        "FORA (3)",
    ]
    assert table[-1] == "| FORA (3) | 0.250 | 4.00x | 2.00x | 40.0 | 0.9000 |"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--report"], "no scores of the report set"),
        (["--only", "("], "no regular expression"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, options: list[str], complaint: str) -> None:
    result = CliRunner().invoke(app, ["bench", "compare", "--store", str(tmp_path / "none.csv"), *options])
    assert result.exit_code == 2
    assert complaint in result.output
    assert "Traceback" not in result.output


def test_the_command_measures_what_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    where = ["--store", str(path), "--write", str(tmp_path)]
    few = ["--steps", "4", "--cfg", "1", "--prompts", "1", "--timed", "0"]
    for options in (
        [*where, *few, "--only", "^fewer.*0.[53]0", "--training"],
        [*where, *few, "--only", "^fewer"],
    ):
        result = CliRunner().invoke(app, ["bench", "compare", *options])
        assert result.exit_code == 0, result.output
    strengths = {setting.strength for setting in read([path]) if setting.purpose is Purpose.REPORT}
    assert strengths == {"0.30", "0.50"}  # what was tuned, and no other
    assert rows_of(read([path]), Purpose.REPORT)[0].pictures == 2
