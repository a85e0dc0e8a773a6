"""Tuning: targets, the search on made-up methods, and the demo model from end to end."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cache_dit
from cache_dit.caching.attach.override import attachment_of
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.cli import app
from cache_dit.demo import PROMPTS, load_pipeline
from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.tune import (
    Bisection,
    Explorer,
    Family,
    Figure,
    Goal,
    Measure,
    OptunaSearch,
    Profile,
    Target,
    Trial,
    Tuned,
    default_space,
    tune,
)
from cache_dit.tune.conditions import digests
from cache_dit.tune.gallery import Gallery, Picture, _Drawn

DEMO = {"height": 64, "width": 64, "max_sequence_length": 10}
STEPS = 6


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


@pytest.mark.parametrize(
    ("text", "measure", "bound"),
    [
        ("2x", Measure.FLOPS, 0.5),
        (" 2.5 X", Measure.FLOPS, 0.4),
        ("psnr>=45", Measure.PSNR, 45.0),
        ("PSNR >= 34", Measure.PSNR, 34.0),
        ("ssim>=.98", Measure.SSIM, 0.98),
        ("tolerance 0.02", Measure.TOLERANCE, 0.02),
        ("tolerance<=2e-2", Measure.TOLERANCE, 0.02),
        ("flops<=0.4", Measure.FLOPS, 0.4),
        ("time <= 0.5", Measure.TIME, 0.5),
    ],
)
def test_targets_as_users_write_them(text: str, measure: Measure, bound: float) -> None:
    target = Target.parse(text)
    assert (target.measure, target.bound) == (measure, bound)
    assert Target.parse(str(target)) == target


def test_a_speed_is_measured_by_what_is_asked_for() -> None:
    assert Target.parse("4x", Measure.TIME) == Target(Measure.TIME, 0.25)
    assert Target.parse("psnr>=4", Measure.TIME).measure is Measure.PSNR


@pytest.mark.parametrize(
    ("text", "kept", "missed"),
    [("1.5x", 0.666667, 0.66668), ("psnr>=45", 45.0, 44.999), ("tolerance 0.02", 0.02, 0.0201)],
)
def test_a_bound_is_kept_but_for_rounding(text: str, kept: float, missed: float) -> None:
    assert Target.parse(text).met(kept)
    assert not Target.parse(text).met(missed)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fast", 'give "2x"'),
        ("lpips<=0.1", 'give "2x"'),
        ("psnr<=45", "more psnr is better"),
        ("flops>=0.4", "less flops is better"),
        ("0.5x", "at least 1x"),
        ("flops<=1.5", "up to 1"),
        ("ssim>=2", "up to 1"),
        ("psnr>=0", "above 0"),
        ("psnr>=", 'give "2x"'),
        ("-2x", 'give "2x"'),
    ],
)
def test_what_is_no_target(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Target.parse(text)


def test_the_worst_picture_is_on_the_bad_side() -> None:
    values = [1.0, 2.0, 6.0]
    assert (Figure.of(Measure.PSNR, values).worst, Figure.of(Measure.FLOPS, values).worst) == (1.0, 6.0)
    figure = Figure.of(Measure.PSNR, values)
    assert (figure.mean, figure.pictures) == (3.0, 3)
    assert 1.0 <= figure.low < 3.0 < figure.high <= 6.0


def test_strengths_go_from_mild_to_strong_by_ratios() -> None:
    family = Family(name="a", make=cache_dit.presets.fora, mild=0.8, strong=0.2)
    assert [family.strength(place) for place in (0.0, 0.5, 1.0)] == [0.8, 0.4, 0.2]
    assert family.place(0.4) == pytest.approx(0.5)
    counted = Family(name="a", make=cache_dit.presets.fora, mild=2, strong=8, whole=True)
    assert [counted.strength(place) for place in (0.0, 0.5, 1.0)] == [2, 4, 8]
    for mild, strong in ((0.0, 1.0), (2.0, 2.0)):
        with pytest.raises(ConfigError, match="two that differ, both above 0"):
            Family(name="a", make=cache_dit.presets.fora, mild=mild, strong=strong)


def trial(name: str, psnr: float, flops: float, spread: float = 0.0) -> Trial:
    scores = tuple(
        {Measure.PSNR: psnr + sign * spread, Measure.FLOPS: flops + sign * spread / 100} for sign in (-1, 1)
    )
    return Trial(family=name, strength=1.0, scores=scores)


def goal(text: str) -> Goal:
    return Goal(target=Target.parse(text), quality=Measure.PSNR, cost=Measure.FLOPS)


def test_the_cheapest_that_is_near_enough_is_the_best() -> None:
    tried = [
        trial("dear", 60, 0.9),
        trial("right", 46, 0.4),
        trial("far", 44, 0.2),
        trial("farther", 30, 0.1),
    ]
    names = [one.family for one in goal("psnr>=45").ranked(tried)]
    assert names == ["right", "dear", "far", "farther"]


def test_the_nearest_that_is_cheap_enough_is_the_best() -> None:
    tried = [trial("dear", 60, 0.9), trial("right", 46, 0.4), trial("cheap", 44, 0.2), trial("over", 50, 0.5)]
    names = [one.family for one in goal("flops<=0.4").ranked(tried)]
    assert names == ["right", "cheap", "over", "dear"]


def test_what_keeps_a_target_by_luck_comes_after_what_keeps_it_safely() -> None:
    tried = [trial("lucky", 45.5, 0.2, spread=3.0), trial("safe", 46.0, 0.5)]
    assert [one.family for one in goal("psnr>=45").ranked(tried)] == ["safe", "lucky"]


def test_the_front_has_what_nothing_beats() -> None:
    tried = [trial("a", 40, 0.2), trial("b", 39, 0.3), trial("c", 50, 0.5), trial("d", 50, 0.6)]
    assert [one.family for one in goal("2x").front(tried)] == ["a", "c"]


def test_a_measure_that_pictures_lack() -> None:
    alone = Trial(family="a", strength=1.0, scores=({Measure.PSNR: 40.0}, {Measure.PSNR: 41.0}))
    with pytest.raises(ConfigError, match=r"flops cannot be measured.*by=Measure\.TIME"):
        goal("flops<=0.4").ranked([alone])


# Made-up methods: from 80 dB at all FLOPs to 20 dB at none, and the second one is better.
SPACE = tuple(
    Family(name=name, make=cache_dit.presets.trajectory, mild=0.8, strong=0.1) for name in ("a", "b", "c")
)
BONUS = {"a": 0.0, "b": 10.0, "c": -5.0}


def evaluated(family: Family, strength: float) -> Trial:
    place = family.place(strength)
    scores = ({Measure.PSNR: 80 - 60 * place + BONUS[family.name], Measure.FLOPS: 1 - place},) * 2
    return Trial(family=family.name, strength=strength, scores=scores)


EXPLORERS = [Bisection(trials=18), OptunaSearch(trials=18)]


@pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda one: type(one).__name__)
def test_the_best_setting_is_found(explorer: Explorer) -> None:
    near = list(explorer.explore(SPACE, goal("psnr>=45"), evaluated, {}))
    best = goal("psnr>=45").ranked(near)[0]
    assert best.family == "b"
    assert 45.0 <= best.mean(Measure.PSNR) < 47.0
    cheap = list(explorer.explore(SPACE, goal("flops<=0.3"), evaluated, {}))
    best = goal("flops<=0.3").ranked(cheap)[0]
    assert best.family == "b"
    assert 0.27 < best.mean(Measure.FLOPS) <= 0.3
    assert len(near) <= 18


def test_the_bisection_tries_nothing_twice_and_ends_by_itself() -> None:
    counted = [Family(name="a", make=cache_dit.presets.fora, mild=2, strong=5, whole=True)]
    tried = list(Bisection(trials=50).explore(counted, goal("psnr>=45"), evaluated, {}))
    strengths = [one.strength for one in tried]
    assert len(set(strengths)) == len(strengths) <= 4


def test_a_target_that_nothing_meets_leads_to_the_mild_end() -> None:
    tried = list(Bisection(trials=12).explore(SPACE[:1], goal("psnr>=200"), evaluated, {}))
    best = goal("psnr>=200").ranked(tried)[0]
    assert best.strength > 0.79
    assert not goal("psnr>=200").met(best)


@pytest.mark.parametrize("name", ["trials.db", "trials.journal"])
def test_a_search_that_was_killed_goes_on(tmp_path: Path, name: str) -> None:
    storage, calls = tmp_path / "new" / name, []

    def counted(family: Family, strength: float) -> Trial:
        calls.append((family.name, strength))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return evaluated(family, strength)

    def search(trials: int, about: dict[str, Any]) -> Iterator[Trial]:
        return OptunaSearch(trials=trials, storage=storage).explore(SPACE, goal("2x"), counted, about)

    with pytest.raises(KeyboardInterrupt):
        list(search(14, {"steps": 8}))
    found = list(search(14, {"steps": 8}))
    assert [(one.family, one.strength) for one in found[:5]] == calls[:5]
    assert calls[6] == calls[5], "what was cut off is done again"
    assert len(calls) == 6 + len(found) - 5
    assert found[0].scores == evaluated(SPACE[0], found[0].strength).scores
    before = len(calls)
    assert list(search(14, {"steps": 8})) == found
    assert len(calls) == before
    assert len(list(search(16, {"steps": 8}))) > len(found)
    before = len(calls)
    list(search(4, {"steps": 9}))
    assert len(calls) == before + 4, "other conditions are another search"


@pytest.mark.parametrize("name", ["trials.db", "trials.journal"])
def test_a_storage_that_is_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("my notes\nof two lines\n")
    search = OptunaSearch(storage=tmp_path / name)
    with pytest.raises(ConfigError, match=f"{name}, which Optuna cannot read"):
        list(search.explore(SPACE, goal("2x"), evaluated, {}))
    assert (tmp_path / name).read_text() == "my notes\nof two lines\n"


def test_without_optuna_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(CacheDiTError, match=r"cache-dit\[tune\].*Bisection"):
        list(OptunaSearch().explore(SPACE, goal("2x"), evaluated, {}))


def test_every_family_of_the_default_space_fits_the_demo_model(pipe: Any) -> None:
    for family in default_space():
        for place in (0.0, 1.0):
            cache_dit.enable_cache(pipe, family.preset(family.strength(place)))
    cache_dit.disable_cache(pipe)


def test_uncached_pictures_are_drawn_once(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, picture, drawn = Gallery(pipe, 4, DEMO), Picture(PROMPTS[0], 3), []
    monkeypatch.setattr(Gallery, "_draw", counting(drawn))
    (score,) = gallery.scores(cache_dit.presets.trajectory(1.0), [picture])
    assert len(drawn) == 3, "a run to warm up, one without and one with the cache"
    assert score[Measure.PSNR] == 120.0, "everything was computed"
    assert (score[Measure.SSIM], score[Measure.TOLERANCE], score[Measure.FLOPS]) == (1.0, 0.0, 1.0)
    (score,) = gallery.scores(cache_dit.presets.trajectory(0.5), [picture])
    assert len(drawn) == 4
    assert score[Measure.FLOPS] == pytest.approx(0.5)
    assert score[Measure.TOLERANCE] == pytest.approx(10 ** (-score[Measure.PSNR] / 20)), "values from 0 to 1"
    gallery.scores(cache_dit.presets.trajectory(0.5), [picture], paired=True)
    assert len(drawn) == 6


@pytest.mark.parametrize(("seconds", "steady"), [((9.0, 1.0, 1.05, 1.09), True), ((1.0, 1.0, 1.2), False)])
def test_times_are_compared_where_uncached_runs_take_the_same(
    seconds: tuple[float, ...], steady: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(seconds)
    monkeypatch.setattr(Gallery, "_draw", lambda *_: _Drawn(torch.zeros(3), left.pop(0)))
    gallery = Gallery(None, 4, {})
    for seed in range(len(seconds) - 1):  # the first run of all is not timed
        gallery.uncached(Picture("a", seed))
    assert gallery.steady is steady


def counting(drawn: list[Any]) -> Any:
    plain = Gallery._draw

    def draw(gallery: Gallery, picture: Picture) -> Any:
        drawn.append(picture)
        return plain(gallery, picture)

    return draw


def tuned(pipe: Any, target: str, **options: Any) -> Tuned:
    options = {"space": default_space()[:1], "search": Bisection(trials=3), "by": Measure.FLOPS} | options
    return tune(pipe, list(PROMPTS[:4]), target, num_inference_steps=STEPS, **options, **DEMO)


def test_a_target_of_cost_on_the_demo_model(pipe: Any) -> None:
    lines: list[str] = []
    found = tuned(pipe, "1.5x", told=lines.append)
    profile = found.profile
    assert profile.met
    assert profile.target == "flops<=0.6667"
    assert profile.measured[Measure.FLOPS].mean <= 0.6667
    assert found.goal.ranked(found.trials)[0].name == profile.method
    assert profile.predicted[Measure.PSNR].pictures == profile.measured[Measure.PSNR].pictures == 2
    assert profile.measured[Measure.PSNR] != profile.predicted[Measure.PSNR]
    assert len(profile.tried) == len(found.trials) == 3
    assert (profile.model, profile.steps) == ("FluxTransformer2DModel", STEPS)
    assert profile.arguments == DEMO
    assert attachment_of(pipe.transformer) is None
    assert sum(line.startswith("uncached picture") for line in lines) == 4
    assert sum(line.startswith("trial") for line in lines) == 3


def test_time_can_be_the_cost(pipe: Any) -> None:
    found = tuned(pipe, "1x", by=Measure.TIME, search=Bisection(trials=1))
    assert found.goal.target == Target(Measure.TIME, 1.0)
    assert all(score[Measure.TIME] > 0 for score in found.trials[0].scores)


def test_methods_that_do_not_fit_are_left_out(pipe: Any) -> None:
    def broken(strength: float) -> cache_dit.Preset:
        return cache_dit.Preset(cache_dit.DBCacheConfig(Fn_compute_blocks=99))

    lines: list[str] = []
    unfit = Family(name="unfit", make=broken, mild=1.0, strong=2.0)
    search = Bisection(trials=1)
    found = tuned(pipe, "2x", space=[unfit, *default_space()[:1]], search=search, told=lines.append)
    assert found.trials[0].family == "trajectory"
    assert any(line.startswith("unfit is left out: Fn_compute_blocks is 99") for line in lines)
    with pytest.raises(ConfigError, match="no method of the space fits"):
        tuned(pipe, "2x", space=[unfit])


@pytest.mark.parametrize(
    ("prompts", "options", "complaint"),
    [
        ("a red house", {}, "4 prompts or more"),
        (["a red house"] * 3, {}, "4 prompts or more"),
        (["a red house"] * 4, {"by": Measure.PSNR}, "by is"),
        (["a red house"] * 4, {"quality": Measure.TIME}, "quality is"),
        (["a red house"] * 4, {"num_inference_steps": 0}, "num_inference_steps is 0"),
    ],
)
def test_what_cannot_be_tuned(pipe: Any, prompts: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        tune(pipe, prompts, "2x", **{"num_inference_steps": STEPS, **options})


def test_a_cached_pipeline_is_refused(pipe: Any) -> None:
    cache_dit.enable_cache(pipe)
    try:
        with pytest.raises(ConfigError, match="is cached"):
            tuned(pipe, "2x")
    finally:
        cache_dit.disable_cache(pipe)


def command(*arguments: str, monkeypatch: pytest.MonkeyPatch, pipe: Any) -> Any:
    monkeypatch.setattr("cache_dit.bench.drawing.load_pipeline", lambda: pipe)
    return CliRunner().invoke(app, list(arguments))


def test_the_command_writes_a_profile(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "profile.json"
    options = ("--steps", "6", "--limit", "4", "--trials", "1", "--out", str(out))
    result = command("tune", "--target", "flops<=0.7", "--json", *options, monkeypatch=monkeypatch, pipe=pipe)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert "trial 1: trajectory" in result.stderr
    assert data["written"] == str(out)
    profile = Profile.load(out)
    assert data["measured"]["flops"]["mean"] == profile.measured[Measure.FLOPS].mean <= 0.7
    assert profile.arguments == DEMO
    assert math.isclose(data["tried"][0]["flops"], 0.333333)


def test_the_command_says_no(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "profile.json"
    options = ("--steps", "4", "--limit", "4", "--trials", "1", "--out", str(out), "--search", "bisection")
    result = command("tune", "--target", "psnr>=90", *options, monkeypatch=monkeypatch, pipe=pipe)
    assert result.exit_code == 1
    assert "psnr>=90 (psnr>=90) is missed by trajectory" in result.stdout
    assert "--best-effort" in result.stdout
    assert not out.exists()
    more = ("--best-effort", *options)
    result = command("tune", "--target", "psnr>=90", *more, monkeypatch=monkeypatch, pipe=pipe)
    assert result.exit_code == 1
    assert not Profile.load(out).met


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--target", "soon"), "the target is 'soon'"),
        (("--target", "2x", "--by", "psnr"), "--by is 'psnr'"),
        (("--target", "2x", "--search", "guess"), "--search is 'guess'"),
        (("--target", "2x", "--search", "bisection", "--storage", "a.db"), "the bisection keeps nothing"),
        (("--target", "2x", "--prompts", "nowhere.txt"), "nowhere.txt"),
        (("--target", "2x", "--trajectory", "nowhere.json"), "nowhere.json"),
    ],
)
def test_bad_input_of_the_command(options: tuple[str, ...], complaint: str) -> None:
    result = CliRunner().invoke(app, ["tune", *options])
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.output


def test_the_command_replaces_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, ["tune", "--target", "2x", "--out", str(tmp_path / "notes.txt")])
    assert result.exit_code == 2
    assert "is no profile" in result.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("method", ["trajectory", "dpcache", "lemica", "magcache"])
def test_calibrate(method: str, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "found.json"
    options = ("--steps", "4", "--limit", "1", "--out", str(out), "--longest-gap", "3")
    result = command("calibrate", "--method", method, *options, monkeypatch=monkeypatch, pipe=pipe)
    assert result.exit_code == 0, result.output
    presets, path = cache_dit.presets, str(out)
    if method == "trajectory":
        configs = {"cache_config": presets.trajectory(0.5, cache_dit.Trajectory.load(path))}
    elif method == "magcache":
        configs = cache_dit.load_configs(path)
        assert len(configs["cache_config"].ratios) == 4
    else:
        schedule = cache_dit.Schedule.load(path)
        assert (schedule.total, len(schedule.computed)) == (4, 2)
        configs = {"cache_config": getattr(presets, method)(schedule)}
    cache_dit.enable_cache(pipe, **configs)
    cache_dit.disable_cache(pipe)


def test_calibrate_names_its_methods(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", "--method", "guess", "--out", str(tmp_path / "a.json")])
    assert result.exit_code == 2
    assert "--method is 'guess'; allowed are 'trajectory'" in result.stderr


def test_calibrate_by_a_closed_loop(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, out = str(tmp_path / "known.json"), str(tmp_path / "found.json")
    run = partial(command, "calibrate", "--limit", "1", monkeypatch=monkeypatch, pipe=pipe)
    assert run("--method", "trajectory", "--steps", "5", "--out", known).exit_code == 0
    options = ("--method", "closed_loop", "--compute", "0.6", "--trajectory", known, "--out", out)
    result = run(*options, "--steps", "6")
    assert result.exit_code == 2
    assert "is from 5 steps and --steps is 6" in result.stderr
    result = run(*options, "--steps", "5")
    assert result.exit_code == 0, result.output
    used = f"presets.trajectory(Schedule.load({out!r}), Trajectory.load({known!r}))"
    assert used in result.output
    schedule, trajectory = cache_dit.Schedule.load(out), cache_dit.Trajectory.load(known)
    assert (schedule.total, len(schedule.computed)) == (5, 3)
    cache_dit.enable_cache(pipe, cache_dit.presets.trajectory(schedule, trajectory))
    cache_dit.disable_cache(pipe)


def test_a_closed_loop_wants_a_trajectory(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["calibrate", "--method", "closed_loop", "--out", str(tmp_path / "a.json")]
    )
    assert result.exit_code == 2
    assert "give its file by --trajectory" in result.stderr


@pytest.mark.parametrize("method", ["trajectory", "closed_loop", "dpcache", "lemica", "magcache"])
def test_calibrate_says_what_is_wrong_before_it_draws(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_dit.bench.drawing.load_pipeline", pytest.fail)
    mine = tmp_path / "notes.json"
    mine.write_text("mine")
    result = CliRunner().invoke(app, ["calibrate", "--method", method, "--out", str(mine)])
    assert result.exit_code == 2
    assert "notes.json" in result.stderr
    assert mine.read_text() == "mine"


def test_calibrate_refuses_a_share_that_no_schedule_has(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_dit.tune.observe", pytest.fail)
    options = ("--steps", "50", "--compute", "0.1", "--out", str(tmp_path / "a.json"))
    result = command("calibrate", "--method", "lemica", *options, monkeypatch=monkeypatch, pipe=pipe)
    assert result.exit_code == 2
    assert "--compute is 0.1, which is 5 of 50 steps, and with 8 steps at most" in result.stderr


def test_scores_hold_for_these_weights_arguments_and_methods(pipe: Any) -> None:
    known = digests(pipe, {"height": 64}, SPACE)
    assert known == digests(pipe, {"height": 64}, SPACE)
    weight = next(pipe.transformer.parameters())
    with torch.no_grad():
        weight.view(-1)[0] += 1.0
    try:
        assert digests(pipe, {"height": 64}, SPACE)["weights"] != known["weights"]
    finally:
        with torch.no_grad():
            weight.view(-1)[0] -= 1.0
    for given in ({"height": 32}, {"height": 64, "image": torch.zeros(2)}):
        assert digests(pipe, given, SPACE)["given"] != known["given"]
    pictures = [{"image": torch.zeros(2)}, {"image": torch.ones(2)}, {"image": Image.new("L", (2, 2))}]
    assert len({digests(pipe, given, SPACE)["given"] for given in pictures}) == 3
    measured = Trajectory(sigmas=(1.0, 0.5, 0.0), gram=torch.eye(2, dtype=torch.float64))
    again = Trajectory(sigmas=(1.0, 0.5, 0.0), gram=torch.eye(2, dtype=torch.float64) * 2.0)
    found = [digests(pipe, {}, default_space(one))["methods"] for one in (measured, again, None)]
    assert len(set(found)) == 3
