"""The report without a browser: its facts are those of the run, and nothing gets out of it or into it."""

from __future__ import annotations

import html.parser
import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.image_models import QWEN_IMAGE
from tiny.pipelines import FLUX_TRUE_CFG
from typer.testing import CliRunner

import cache_dit
import cache_dit.demo
from cache_dit import DBCacheConfig, DBPruneConfig, IntervalConfig, Place, ToleranceConfig
from cache_dit.api import attachments_of
from cache_dit.bench import drawing
from cache_dit.caching.gates.residual import ResidualGate
from cache_dit.cli import app
from cache_dit.demo import load_pipeline
from cache_dit.errors import ConfigError, ConfigTypeError
from cache_dit.pages import Point, charts, read_points, words
from cache_dit.pages import run as run_module
from cache_dit.pages.fronts import front, panels_of
from cache_dit.pages.pictures import as_tensor, pair_of
from cache_dit.pages.reproduce import code_of, expression
from cache_dit.pages.run import Run, run_of
from cache_dit.stats import stats as stats_module
from cache_dit.tune import Measure, Profile

ROOT = Path(__file__).resolve().parents[1]
COMPARISON = ROOT / "bench" / "results" / "compare.csv"
HOSTILE = "</style><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>{{ 7 * 7 }}'\""
RESULTS = ("run.html", "comparison.html")
VOID = {"meta", "link", "img", "input", "br"}


class Page(html.parser.HTMLParser):
    """A page read strictly: every element that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str, kind: str = "") -> int:
        return sum(
            name == tag and kind in ["", *(given.get("class") or "").split()] for name, given in self.tags
        )


@pytest.fixture
def no_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes a second, and some tests do not look at it."""
    for module in (stats_module, run_module):
        monkeypatch.setattr(module, "forward_flops", lambda *_: None)


@pytest.fixture(scope="module")
def pipe() -> Any:
    """A pipeline with two branches after a run of 6 steps; the first two are warm-up."""
    changes = iter([0.3, 0.02, 0.05, 0.11, 0.03, 0.5, 0.04, 0.09])
    made = cache_dit.enable_cache(
        FLUX_TRUE_CFG.build(),
        DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResidualGate, "measure", lambda *_: next(changes))
        FLUX_TRUE_CFG.call(made, 0, 6)
    return made


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_pipeline()


@pytest.fixture
def quick(demo: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The demo model without loading it each time."""
    for module in (cache_dit.demo, drawing):
        monkeypatch.setattr(module, "load_pipeline", lambda: demo)
    yield
    cache_dit.disable_cache(demo)


def the_run(target: Any, sigmas: list[float] | None = None) -> Run:
    (attached,) = attachments_of(target)
    run = run_of(attached, sigmas)
    assert run is not None
    return run


def page(target: Any, folder: Path, **options: Any) -> tuple[str, Page]:
    text = cache_dit.report(target, folder / "run.html", **options).read_text(encoding="utf-8")
    return text, Page(text)


# The facts


def test_facts_of_a_run_are_those_of_the_summary(pipe: Any) -> None:
    run = the_run(pipe)
    (stats,) = cache_dit.summary(pipe, logging=False)
    assert [track.branch for track in run.tracks] == list(stats.branches) == ["cond", "uncond"]
    assert [track.cached for track in run.tracks] == [stats.cached_steps, stats.cfg_cached_steps]
    changes = [{s.step: s.change for s in track.steps if s.change is not None} for track in run.tracks]
    assert changes == [stats.residual_diffs, stats.cfg_residual_diffs]
    assert run.forwards == 12
    assert stats.flops is not None
    assert stats.flops_saved is not None
    assert run.flops == 12 * stats.flops
    assert run.flops_fraction == 1 - stats.flops_saved
    assert {track.limit for track in run.tracks} == {("residual_diff_threshold", 0.1, False)}


def test_blocks_that_are_always_computed_are_never_skipped(pipe: Any) -> None:
    run = the_run(pipe)
    (stats,) = cache_dit.summary(pipe, logging=False)
    for place, grid in enumerate(run.grids):
        first, *rest = grid.blocks
        assert (first.path, first.number, sum(first.skipped)) == ("transformer_blocks", 0, 0.0)
        assert {one.path for one in rest} == {"transformer_blocks", "single_transformer_blocks"}
        for block in rest:
            assert [step for step, share in enumerate(block.skipped) if share] == stats.skipped(place)
            assert set(block.skipped) == {0.0, 1.0}


@pytest.mark.usefixtures("no_flops")
def test_pruned_blocks_are_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = iter([0.01, 0.9] * 40)
    model = cache_dit.enable_cache(
        QWEN_IMAGE.build(),
        DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.1),
    )
    monkeypatch.setattr(ResidualGate, "measure", lambda *_: next(changes))
    with cache_dit.Request(5):
        for seed in range(5):
            model(**QWEN_IMAGE.inputs(seed))
    run = the_run(model)
    (stats,) = cache_dit.summary(model, logging=False)
    assert stats.pruned is not None
    assert sum(sum(block.skipped) for grid in run.grids for block in grid.blocks) == stats.pruned[0] > 0
    assert words.lead(run).startswith(
        f"{stats.pruned[1] - stats.pruned[0]} of {stats.pruned[1]} blocks computed"
    )
    (track,) = run.tracks
    shares = [step.skipped for step in track.steps]
    assert sum(shares) * (track.blocks or 0) == pytest.approx(stats.pruned[0])


def test_attention_that_is_skipped_is_a_part_of_its_block() -> None:
    model = cache_dit.enable_cache(QWEN_IMAGE.build(), IntervalConfig(interval=2, place=Place.ATTENTION))
    with cache_dit.Request(4):
        for seed in range(4):
            model(**QWEN_IMAGE.inputs(seed))
    run = the_run(model)
    cells = {share for block in run.grids[0].blocks for share in block.skipped}
    assert 0.0 in cells
    (part,) = {round(share, 9) for share in cells if share}
    assert 0.0 < part < 1.0
    assert " of 4 steps computed in full; " in words.lead(run)
    skipped = sum(map(sum, (block.skipped for block in run.grids[0].blocks)))
    assert skipped == pytest.approx(part * len(run.grids[0].blocks) * len(run.tracks[0].cached))


@pytest.mark.usefixtures("no_flops")
def test_errors_of_forecasts_are_kept_where_the_gate_had_them_measured(pipe: Any) -> None:
    made = cache_dit.enable_cache(FLUX_TRUE_CFG.build(), ToleranceConfig(tolerance=0.05))
    FLUX_TRUE_CFG.call(made, 0, 6)
    errors = [step.error for step in the_run(made).tracks[0].steps]
    assert errors[0] is None  # there was nothing to forecast from
    assert all(error is None or 0.0 <= error < math.inf for error in errors)
    assert any(error is not None for error in errors[1:])
    assert not any(step.error is not None for track in the_run(pipe).tracks for step in track.steps)


def test_noise_levels_are_the_schedulers(pipe: Any, tmp_path: Path) -> None:
    text, _ = page(pipe, tmp_path)
    told = [float(level) for level in re.findall(r"noise level (\d\.\d+)", text)]
    sigmas = pipe.scheduler.sigmas[:6].tolist()
    assert told == [round(sigma, 3) for sigma in sigmas] * 2
    # A run over a part of the schedule is over its last part.
    part = the_run(pipe, [0.9, 0.8, *sigmas])
    assert [step.sigma for step in part.tracks[0].steps] == sigmas
    assert {step.sigma for step in the_run(pipe, [0.5]).tracks[0].steps} == {None}


def test_the_page_says_what_the_summary_says(pipe: Any, tmp_path: Path) -> None:
    text, read = page(pipe, tmp_path)
    (stats,) = cache_dit.summary(pipe, logging=False)
    assert stats.flops_saved is not None
    share = f"{100 * (1 - stats.flops_saved):.1f}\u202f%"
    computed = sorted({6 - len(stats.cached_steps), 6 - len(stats.cfg_cached_steps)})
    assert f"{computed[0]} to {computed[-1]} of 6 steps computed; {share} of the FLOPs." in text
    assert f"<h1>{attachments_of(pipe)[0].strify()}</h1>" in text
    assert text.count("residual_diff_threshold = 0.1</span>") == 2
    titles = re.findall(r"<title>(Step \d[^<]*)</title>", text)
    assert len(titles) == 12
    assert titles[0] == "Step 0, noise level 1.000, computed (warm-up)"
    for place in range(2):
        for step, change in stats.changes(place).items():
            state = "cached" if step in stats.skipped(place) else "computed"
            told = titles[6 * place + step]
            assert re.fullmatch(
                rf"Step {step}, noise level [\d.]+, {state}, change {change:.4f} \(.*\)", told
            )
    assert read.count("svg") == text.count("<svg") == text.count('role="img"') + 0
    assert all(re.search(r"<svg[^>]*>\s*<title>", svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S))


# Nothing gets in or out


def test_pages_are_whole_and_load_nothing(pipe: Any, tmp_path: Path) -> None:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    text, read = page(
        pipe,
        tmp_path,
        picture=picture,
        reference=picture.flip(0),
        prompt="a house",
        seconds=1.0,
        reference_seconds=2.5,
        comparison=COMPARISON,
    )
    for tag, given in read.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (given.get(name) or "data:").startswith("data:"), (tag, given)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", text)
    assert {"link", "script", "style"} <= {tag for tag, _ in read.tags}
    assert len(text.encode()) - sum(map(len, re.findall(r"data:image/png;base64,[^\"]*", text))) < 1_000_000
    assert "2.50 times as fast" in text
    (policy,) = [g["content"] for t, g in read.tags if g.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "script-src 'sha256-" in policy


def test_hostile_text_stays_text(pipe: Any, tmp_path: Path) -> None:
    points = [Point(HOSTILE, HOSTILE, 0.5, 40.0, HOSTILE), Point("b", "1", 0.4, 30.0, HOSTILE)]
    plain, _ = page(pipe, tmp_path, prompt="p", title="t", code="c", picture=np.zeros((8, 8, 3)))
    text, read = page(
        pipe,
        tmp_path,
        prompt=HOSTILE,
        title=HOSTILE,
        code=HOSTILE,
        comparison=points,
        picture=np.zeros((8, 8, 3)),
    )
    assert "<script>alert" not in text
    assert "onerror=alert" in text.replace("&#34;", "")  # it is there, as text
    assert "<img src=http" not in text
    assert "{{ 7 * 7 }}" in text
    assert read.count("script") == Page(plain).count("script") == 1
    assert read.count("img") == 1


def test_size_of_a_long_run_with_many_blocks(pipe: Any, tmp_path: Path) -> None:
    rows = [[float((row + step) % 2) for step in range(50)] for row in range(60)]
    assert sum(map(len, charts.cells(rows))) < 100_000


# The file


def test_an_older_report_is_replaced_and_no_other_file(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.html"
    assert cache_dit.report(pipe, path, title="first") == path
    cache_dit.report(pipe, str(path), title="second")
    assert "<h1>second</h1>" in path.read_text(encoding="utf-8")
    path.write_text("<!doctype html>mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run\.html exists and was not written by"):
        cache_dit.report(pipe, path)
    assert path.read_text(encoding="utf-8") == "<!doctype html>mine"
    assert [file.name for file in path.parent.iterdir()] == ["run.html"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reference": np.zeros((8, 8, 3))}, ConfigError, "reference is given without picture"),
        ({"picture": "missing.png"}, OSError, r"missing\.png"),
        (
            {"picture": [1, 2]},
            ConfigTypeError,
            r"picture is a list of 2; give one picture, such as picture\[0\]",
        ),
        ({"picture": object()}, ConfigTypeError, "picture is of type object; give a path"),
        ({"picture": torch.zeros(2, 3, 8, 8)}, ConfigError, r"picture has the shape \(2, 3, 8, 8\)"),
        ({"picture": torch.full((3, 8, 8), 7.0)}, ConfigError, "picture has values from 7 to 7"),
        ({"picture": torch.full((3, 8, 8), math.nan)}, ConfigError, "picture has values from nan"),
        (
            {"picture": torch.zeros(3, 8, 9), "reference": torch.zeros(3, 8, 8)},
            ConfigError,
            "picture has 9x8 pixels but reference 8x8",
        ),
        ({"seconds": 0.0}, ConfigError, r"seconds is 0\.0; give the seconds"),
        ({"reference_seconds": math.inf}, ConfigError, "reference_seconds is inf"),
        ({"comparison": []}, ConfigError, "comparison has no point"),
        ({"comparison": "missing.csv"}, OSError, r"missing\.csv"),
    ],
)
def test_what_does_not_fit_is_named(
    pipe: Any, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cache_dit.report(pipe, tmp_path / "run.html", **options)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is nothing to report"):
        cache_dit.report(None, tmp_path / "run.html")
    model = QWEN_IMAGE.build()
    with pytest.raises(ConfigError, match="is not cached"):
        cache_dit.report(model, tmp_path / "run.html")
    with pytest.raises(ConfigError, match="QwenImageTransformer2DModel has not run since enable_cache"):
        cache_dit.report(cache_dit.enable_cache(model), tmp_path / "run.html")


# Pictures


FORMS: dict[str, Callable[[torch.Tensor, Path], Any]] = {
    "tensor": lambda values, _: values,
    "array": lambda values, _: values.permute(1, 2, 0).numpy(),
    "bytes": lambda values, _: (values * 255).round().byte(),
    "image": lambda values, folder: Image.open(saved(values, folder / "a.png")),
    "path": lambda values, folder: saved(values, folder / "a.png"),
    "name": lambda values, folder: str(saved(values, folder / "a.png")),
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_in_every_form_are_one_picture(form: str, tmp_path: Path) -> None:
    values = torch.arange(3 * 12 * 16).view(3, 12, 16) % 256 / 255
    assert torch.allclose(as_tensor("picture", FORMS[form](values, tmp_path)), values, atol=1e-6)


def saved(values: torch.Tensor, path: Path) -> Path:
    Image.fromarray((values * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
    return path


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"picture is '.*a\.png', which cannot be read as a picture"):
        as_tensor("picture", tmp_path / "a.png")


def test_how_near_two_pictures_are() -> None:
    one, other = torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.1)
    assert pair_of(one, other).psnr == pytest.approx(20.0, abs=1e-3)
    assert words.picture(pair_of(one, one)) == "The cached picture equals the uncached one."
    assert words.picture(pair_of(one, None)) == ""
    assert pair_of(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)).ssim is None


# Charts


def test_bars_differ_in_height_and_parts_are_divided() -> None:
    assert charts.bars([0.0, 1.0]) == ("M0.07 0h0.86v100h-0.86z", "M1.07 68h0.86v32h-0.86z")
    assert charts.bars([1.0, 0.25], divided=True) == (
        "M1.07 25h0.86v75h-0.86z",
        "M0.07 0h0.86v100h-0.86zM1.07 0h0.86v25h-0.86z",
    )


def test_cells_of_one_kind_are_one_box() -> None:
    computed, part, skipped = charts.cells([[0.0, 0.0, 1.0, 1.0, 1.0, 0.5]])
    assert computed == "M0 0.06h2v0.88h-2z"
    assert skipped == "M2 0.06h3v0.88h-3z"
    assert part == "M5 0.06h1v0.88h-1z"


def test_values_above_the_chart_are_drawn_at_its_edge_and_counted() -> None:
    values = [None, 2.0, 0.05, float("nan"), 0.1]
    drawn = charts.dots(values, [False, False, True, False, False], 0.1, charts.highest(values, 0.1))
    assert drawn is not None
    assert drawn.top == 0.4
    assert drawn.clipped == 2  # what is no number is too high too
    assert drawn.above.count("M") == 2
    assert drawn.skipped == "M2.5 87.5h0"
    assert drawn.computed == "M4.5 75h0"
    assert drawn.limit == 75.0
    assert charts.highest([None, float("nan")], 0.1) is None
    assert charts.dots(values, [False] * 5, None, None) is None


@pytest.mark.parametrize(
    ("highest", "lowest", "expected"),
    [
        (0.17, 0.0, [0.0, 0.05, 0.1, 0.15, 0.2]),
        (1.0, 0.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (63.7, 26.4, [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]),
        (5.0, 5.0, [5.0, 5.1, 5.2, 5.3, 5.4, 5.5]),
        (0.0, 0.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_ticks_are_round(highest: float, lowest: float, expected: list[float]) -> None:
    assert charts.nice_ticks(highest, lowest) == expected


def test_the_first_and_the_last_step_have_their_number() -> None:
    for count in (1, 2, 28, 50, 1000):
        ticks = [int(tick.text) for tick in charts.step_ticks(count)]
        assert (ticks[0], ticks[-1]) == (0, count - 1)
        assert len(ticks) <= 10
        assert ticks == sorted(set(ticks))


def test_numbers_have_their_units() -> None:
    written = [words.flops(74.4e12), words.flops(12), words.size(1536), words.size(3 * 2**30)]
    assert [text.replace("\u202f", " ") for text in written] == ["74.4 TFLOP", "12 FLOP", "1.5 KiB", "3 GiB"]
    assert words.percent(0.487) == "48.7\u202f%"


# Comparisons


def test_points_of_the_committed_comparison() -> None:
    points = read_points(COMPARISON)
    assert len(points) > 100
    assert {point.panel for point in points} == {
        f"{steps} steps{guidance}" for steps in (28, 50) for guidance in (", no guidance", ", guidance 2")
    }
    assert {point.curve for point in points if point.control} >= {"fewer steps"}
    for panel in panels_of(points):
        costs, qualities = zip(*((point.cost, point.quality) for point in panel.front), strict=True)
        assert list(costs) == sorted(costs)
        assert list(qualities) == sorted(qualities)
        labels = sorted(curve.label for curve in panel.curves if curve.label is not None)
        assert all(b - a >= 5.0 for a, b in pairwise(labels))
        assert sum(curve.control for curve in panel.curves if curve.label is not None) == 1
        assert "At half of the FLOPs" in panel.text


def test_colours_mean_the_same_in_every_panel() -> None:
    colours: dict[str, set[int]] = {}
    for panel in panels_of(read_points(COMPARISON)):
        for curve in panel.curves:
            if curve.colour is not None:
                colours.setdefault(curve.name, set()).add(curve.colour)
    assert 2 <= len(colours) <= 4
    assert all(len(own) == 1 for own in colours.values())


def test_a_front_has_what_no_other_beats() -> None:
    a, b, c = Point("m", "a", 0.3, 30.0), Point("m", "b", 0.5, 40.0), Point("m", "c", 0.5, 35.0)
    d = Point("m", "d", 0.6, 39.0)
    assert front([d, c, b, a]) == [a, b]


def test_a_single_point_makes_a_chart() -> None:
    (panel,) = panels_of([Point("m", "a", 0.5, 40.0), Point("m", "uncached", 1.0, math.inf)])
    assert panel.text == "At half of the FLOPs, “m” at a has the highest PSNR, 40.0 dB."
    assert [len(curve.marks) for curve in panel.curves] == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "has no column 'system'"),
        ("", "has no column 'system'"),
        ("system,strength,flops,psnr\nx,1,much,40\n", "is no comparison .*much"),
        ('{"format": "cache_dit profile 1"}', "is no comparison"),
        ("{", "is no comparison"),
        (b"\xff\xfe\x00", "is no comparison"),
    ],
)
def test_files_that_are_no_comparison(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=message):
        read_points(path)


def test_a_profile_tells_what_was_tried(tmp_path: Path) -> None:
    tried = [
        {"method": "trajectory 0.46", "flops": 0.46, "psnr": 52.0, "time": 0.5},
        {"method": "DBCache estimate 0.1", "flops": 0.6, "psnr": 50.0},
        {"method": "timed only 1", "time": 0.5, "psnr": 50.0},
    ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"tried": tried, "target": "2x", "steps": 28}), encoding="utf-8")
    assert read_points(path) == [
        Point("trajectory", "0.46", 0.46, 52.0, "Tuning to 2x, 28 steps"),
        Point("DBCache estimate", "0.1", 0.6, 50.0, "Tuning to 2x, 28 steps"),
    ]


def test_a_comparison_alone(tmp_path: Path) -> None:
    text, read = page(None, tmp_path, comparison=COMPARISON)
    assert read.count("figure", "panel") == 4
    assert read.count("figure", "track") == 0
    assert "Trajectory, measured" in text


# How to do it again


def test_the_code_enables_the_same_configuration(pipe: Any) -> None:
    code = code_of(pipe, attachments_of(pipe), 6)
    call = code[code.index("cache_dit.enable_cache(") : code.index("image = ")]
    again = FLUX_TRUE_CFG.build()
    exec(call, {"cache_dit": cache_dit, "pipe": again})
    assert [one.strify() for one in attachments_of(again)] == [one.strify() for one in attachments_of(pipe)]
    compile(code, "code", "exec")
    assert "num_inference_steps=6" in code


def test_the_code_of_lists_that_decide_for_themselves() -> None:
    modifiers = [
        cache_dit.ParamsModifier(cache_config=DBCacheConfig().reset(residual_diff_threshold=threshold))
        for threshold in (0.1, 0.2)
    ]
    first = cache_dit.enable_cache(
        FLUX_TRUE_CFG.build(), DBCacheConfig(Fn_compute_blocks=1), params_modifiers=modifiers
    )
    code = code_of(first, attachments_of(first), 4)
    call = code[code.index("cache_dit.enable_cache(") : code.index("image = ")]
    again = FLUX_TRUE_CFG.build()
    exec(call, {"cache_dit": cache_dit, "pipe": again})
    assert attachments_of(again)[0].settings == attachments_of(first)[0].settings


def test_measured_data_is_left_out_of_the_code() -> None:
    calibrator = cache_dit.TrajectoryCalibratorConfig(
        trajectory=cache_dit.Trajectory(tuple(map(float, range(60))), torch.eye(59, dtype=torch.float64))
    )
    assert "..." in expression(calibrator)
    assert len(expression(calibrator)) < 1000
    assert (
        expression(IntervalConfig(place=Place.OUTPUT))
        == "cache_dit.IntervalConfig(place=cache_dit.Place.OUTPUT)"
    )


# The command


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.mark.usefixtures("quick")
def test_command_draws_and_reports(tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    done = command("--steps", 4, "--config", "F1B0_W2_R0.9_T1O1", "--prompt", "a red house", "--out", out)
    assert done.exit_code == 0, done.output
    assert f"{out}: {out.stat().st_size / 1000:,.0f} kB" in done.output.replace("\n", "")
    text = out.read_text(encoding="utf-8")
    assert "“a red house”" in text
    assert "2 of 4 steps computed" in text
    assert "times as fast." in text
    assert "PSNR" in text
    Page(text)


@pytest.mark.usefixtures("quick")
def test_command_shows_a_profile(tmp_path: Path) -> None:
    preset = cache_dit.presets.trajectory(0.5)
    Profile(
        cache_config=preset.cache_config,
        calibrator_config=preset.calibrator_config,
        model="FluxTransformer2DModel",
        steps=4,
        scheduler="FlowMatchEulerDiscreteScheduler",
        arguments={"true_cfg_scale": 2.0, "negative_prompt": ""},
        target="2x",
        met=True,
        method="trajectory 0.5",
        predicted={},
        measured={},
        tried=(("trajectory 0.5", {Measure.PSNR: 46.5, Measure.FLOPS: 0.5}),),
        versions={},
    ).save(tmp_path / "profile.json")
    out = tmp_path / "run.html"
    done = command("--profile", tmp_path / "profile.json", "--out", out)
    assert done.exit_code == 0, done.output
    text = out.read_text(encoding="utf-8")
    assert "2 of 4 steps computed; 50.0\u202f% of the FLOPs." in text
    assert Page(text).count("figure", "track") == 2  # with guidance, as it was tuned
    assert "<b>Tuning to 2x, 4 steps</b>" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "F1B0", "--profile", "p.json"), "give one of them"),
        (("--config", "Fx"), "Fx"),
        (("--prompt", "a rocket"), "rocket"),
        (("--comparison", "missing.csv"), "missing.csv"),
    ],
)
def test_command_names_what_is_wrong(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = command(*arguments, "--out", tmp_path / "run.html")
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "run.html").exists()


def test_command_shows_a_comparison(tmp_path: Path) -> None:
    done = command("--comparison", COMPARISON, "--out", tmp_path / "run.html")
    assert done.exit_code == 0, done.output
    assert Page((tmp_path / "run.html").read_text(encoding="utf-8")).count("figure", "panel") == 4


@pytest.mark.usefixtures("quick")
def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of docs/report.md, one after the other."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/report.md", "exec"), names)
    run, comparison = (Page((tmp_path / name).read_text(encoding="utf-8")) for name in RESULTS)
    assert run.count("figure", "track") == 2
    assert run.count("img") == 4
    assert comparison.count("figure", "panel") == 1
