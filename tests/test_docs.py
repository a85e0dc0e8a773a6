"""The documentation: every block of Python runs, the site builds strictly and asks nobody for anything."""

from __future__ import annotations

import csv
import functools
import inspect
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from browser import CHROMIUM, Browser
from diffusers import FluxPipeline
from tiny.image_models import FLUX
from tiny.runs import small_flux
from torch import nn

import cache_dit
from cache_dit import BlockAdapterRegister, presets
from cache_dit.demo import load_pipeline
from cache_dit.demo.model import SIZE, TOKENS
from cache_dit.stats import Problem

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
}
# Whose blocks are run, with more asserted of them, by the tests of what they are about.
ELSEWHERE = {
    "configs.md": "test_configs.py",
    "extending.md": "test_extending.py",
    "methods.md": "test_methods.py",
    "metrics.md": "test_metrics_cli.py",
    "report.md": "test_report.py",
    "requests.md": "test_requests.py",
    "tuning.md": "test_profile.py",
}
# The demo model has four blocks in its first list and no 1024 channels, and a test no GPU.
SMALLER = {
    '"cuda"': '"cpu"',
    "Fn_compute_blocks=8": "Fn_compute_blocks=2",
    "in_features >= 1024": "in_features >= 64",
}
# At a quarter of the FLOPs, 28 steps, guidance: the best own system, and the best of the others.
NEAREST = ("Trajectory, measured", "DPCache")
BLOCK = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n)?```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
HERE = [name for name, text in PAGES.items() if BLOCK.search(text) and name not in ELSEWHERE]


# --- blocks of Python ---


def test_pages_of_other_tests_are_run_there() -> None:
    assert set(ELSEWHERE) <= set(PAGES)
    for page, test in ELSEWHERE.items():
        text = (ROOT / "tests" / test).read_text(encoding="utf-8")
        assert page in text, page
        assert "exec(compile(" in text, test
        assert "<!-- not run" not in PAGES[page], page


def test_what_is_not_run_says_why_and_is_python() -> None:
    reasons = []
    for name, text in PAGES.items():
        marks = text.count("<!-- not run")
        found = [(reason, code) for reason, code in BLOCK.findall(text) if reason]
        assert len(found) == marks, f"{name}: a mark stands right above its block"
        for reason, code in found:
            compile(code, name, "exec")
            reasons.append(reason)
    assert set(reasons) == {
        "needs a CUDA GPU",
        "needs several processes",
        "needs several processes and GPUs",
        "needs Wan 2.2, two transformers of 14 billion parameters",
    }


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What blocks take as given: the demo model for every pipeline, a tiny Flux for every transformer."""
    pipe = load_pipeline()
    inputs = FLUX.inputs(0)
    latents = inputs.pop("hidden_states")
    del inputs["timestep"]
    compiled, called = nn.Module.compile, FluxPipeline.__call__

    @functools.wraps(called)
    def small(self: Any, *args: Any, **options: Any) -> Any:
        defaults = {"height": SIZE, "width": SIZE, "max_sequence_length": TOKENS, "num_inference_steps": 10}
        return called(self, *args, **defaults | options)

    monkeypatch.setattr(FluxPipeline, "__call__", small)
    monkeypatch.setattr(FluxPipeline, "from_pretrained", lambda *_, **__: pipe)
    # Real graphs, but no C++: what the compiler makes of them is the subject of other tests.
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled(self, backend="eager"))
    monkeypatch.setattr(BlockAdapterRegister, "_families", {})
    monkeypatch.chdir(tmp_path)
    dynamo = torch._dynamo.config
    limits = dynamo.cache_size_limit, dynamo.accumulated_cache_size_limit  # as torch 2.6 calls them
    yield {
        "torch": torch,
        "cache_dit": cache_dit,
        "pipe": pipe,
        "transformer": small_flux(),
        "latents": latents,
        "prompt": inputs,
        "negative": inputs,
    }
    dynamo.cache_size_limit, dynamo.accumulated_cache_size_limit = limits
    torch.compiler.reset()


@pytest.mark.parametrize("name", HERE)
def test_every_block_runs(name: str, names: dict[str, Any]) -> None:
    blocks = [code for reason, code in BLOCK.findall(PAGES[name]) if not reason]
    for code in blocks:
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        exec(compile(code, name, "exec"), names)


# --- what pages list ---


def directives(page: str) -> list[str]:
    return re.findall(r"^::: cache_dit\.(\S+)$", PAGES[page], flags=re.MULTILINE)


def test_every_preset_has_its_place() -> None:
    assert sorted(directives("presets.md")) == sorted(
        ["presets.preset.Preset", *(f"presets.{name}" for name in presets.NAMED)]
    )


def test_every_public_name_is_in_the_reference() -> None:
    told = {"NONE", "DBCache", "DBPrune", "Preset", "get_adapter", "presets", "__version__"}
    told |= {f"Pattern_{number}" for number in range(6)}
    # Modules of their own name hide two of the functions where they are looked up by `cache_dit.<name>`.
    named = [path.rpartition(".")[2] for path in directives("api.md")]
    assert sorted(named) == sorted(set(cache_dit.__all__) - told)


def test_what_pages_and_examples_import_is_in_the_reference() -> None:
    reference = ("api.md", "api-packages.md", "api-parts.md", "presets.md")
    told = {path.rpartition(".")[2] for page in reference for path in directives(page)} | {"demo", "presets"}
    texts = {name: "".join(code for _, code in BLOCK.findall(text)) for name, text in PAGES.items()}
    texts |= {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")}
    imported = re.compile(r"^from cache_dit[\w.]* import \(?([\w, \n]+?)\)?$", re.MULTILINE)
    missing = {
        name: sorted(set(re.findall(r"\w+", " ".join(imported.findall(text)))) - told)
        for name, text in texts.items()
    }
    assert {name: names for name, names in missing.items() if names} == {}


def test_every_finding_is_explained() -> None:
    assert re.findall(r"^### (\w+)$", PAGES["doctor.md"], flags=re.MULTILINE) != []
    assert set(re.findall(r"^### (\w+)$", PAGES["doctor.md"], flags=re.MULTILINE)) == {
        problem.name for problem in Problem
    }


def test_figures_of_the_text_are_those_of_the_table() -> None:
    """What docs/choose.md says in words about the tables; the first one is meant where none is named."""
    results = (ROOT / "bench" / "results" / "compare.md").read_text(encoding="utf-8")
    headings = (
        "28 steps, no guidance",
        "28 steps, guidance 2",
        "50 steps, no guidance",
        "50 steps, guidance 2",
    )
    tables = [means_of(results.split(f"### {heading}\n")[1].split("\n###")[0]) for heading in headings]
    assert 8 <= tables[0]["DBCache Taylor 1, warm-up 4"][0] - tables[0]["DBCache reuse, warm-up 4"][0] < 9
    margins: list[float] = []
    worse: list[float] = []
    gains: list[float] = []
    for means in tables:
        pairs = zip(means["Trajectory, closed loop"], means["Trajectory, measured"], strict=True)
        gains += [tried - measured for tried, measured in pairs if tried != measured]
        assert abs(means["TaylorSeer"][0] - means["TaylorSeer on the output"][0]) < 3
        margins += [margin_over_published(means, budget) for budget in range(4)]
        control = means.pop("fewer steps")
        for budget in (2, 3):  # a third and a quarter of the FLOPs
            reached = [values[budget] for values in means.values() if not math.isnan(values[budget])]
            worse.append(sum(value < control[budget] for value in reached) / len(reached))
    text = " ".join(PAGES["choose.md"].split())
    assert f"is {min(margins):.1f} to {max(margins):.1f} dB above the best published method" in text
    lows = [re.findall(rf"^\| {name} \|.*\(([\d.]+)\) \|$", results, re.MULTILINE)[1] for name in NEAREST]
    assert "(its worst has {} dB, that of DPCache {} dB)".format(*lows) in text
    research = " ".join(PAGES["research.md"].split())
    assert f"from {-min(gains):.1f} dB worse to {max(gains):.1f} better where it chose" in research
    assert f"{fmean(gains):.1f} dB better in the mean of these" in research
    assert f"{100 * min(worse):.0f} to {100 * max(worse):.0f} % are worse than an uncached run" in text


def margin_over_published(means: dict[str, list[float]], budget: int) -> float:
    """By how much the best of this project's own presets is above the best published method, in dB."""
    own = {"Trajectory", "Trajectory, measured", "Trajectory, closed loop", "Tolerance"}
    theirs = [name for name in means if name not in own and "estimate" not in name]

    def best(names: Iterable[str]) -> float:
        return max(means[name][budget] for name in names if not math.isnan(means[name][budget]))

    return best(own) - best(theirs)


def means_of(table: str) -> dict[str, list[float]]:
    """Mean PSNR of each system at the four budgets; NaN where it reaches none."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "(" in line]
    return {
        row[0]: [float(cell.split()[0]) if "(" in cell else math.nan for cell in row[2:]]
        for row in rows
        if len(row) == 6
    }


def test_the_picture_that_tips_is_as_the_text_says() -> None:
    with (ROOT / "bench" / "results" / "compare-pictures.csv").open(encoding="utf-8") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["set"], row["steps"], row["cfg"]) == ("report", "28", "1")
        ]

    def scores(system: str, strength: str) -> dict[str, float]:
        return {
            row["seed"]: float(row["psnr"])
            for row in rows
            if (row["system"], row["strength"]) == (system, strength)
        }

    ours, fewer = scores("Trajectory", "0.5"), scores("fewer steps", "0.60")
    seed, *others = sorted(ours, key=ours.__getitem__)
    assert (f"{ours[seed]:.1f}", f"{ours[others[0]]:.1f}", f"{fewer[seed]:.1f}") == ("29.7", "45.6", "26.0")
    assert len(ours) == 48
    text = " ".join(PAGES["choose.md"].split())
    assert (
        "has 29.7 dB there and at least 45.6 dB on all others; an uncached run of 0.6 of the steps has 26.0"
        in text
    )


def test_the_table_of_the_readme_is_that_of_the_results() -> None:
    results = (ROOT / "bench" / "results" / "compare.md").read_text(encoding="utf-8")
    table = results.split("### 28 steps, no guidance\n")[1].split("\n###")[0]
    rows = {
        name: (by, cells[0], *cells[2:])
        for name, by, *cells in re.findall(r"^\| (.+?) \| (\S+) \|" + r" (.+?) \|" * 4, table, re.MULTILINE)
    }
    told = (
        PAGES["README.md"].split("\n| | 1/2 | 1/3 | 1/4 |\n| --- | --- | --- | --- |\n")[1].split("\n\n")[0]
    )
    found = {line.split(" | ")[0]: tuple(line.strip("| ").split(" | ")[1:]) for line in told.splitlines()}
    theirs = [cells for by, *cells in rows.values() if by == "diffusers"]
    best = tuple(
        max(
            (cells[share] for cells in theirs if cells[share] != "-"), key=lambda cell: float(cell.split()[0])
        )
        for share in range(3)
    )
    names = (
        "Trajectory, measured",
        "Trajectory",
        "DBCache estimate, warm-up 4",
        None,
        "fewer steps",
        "DBCache reuse, warm-up 4",
    )
    assert list(found.values()) == [best if name is None else rows[name][1:] for name in names]


# --- the site ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    # A process of its own, as in a release: warnings of the builder are not those of the package.
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


class Loaded(HTMLParser):
    """What a page would load by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source") or (
            tag == "link" and given.get("rel") != "canonical"
        ):
            self.addresses += [address for name in ("src", "href") if (address := given.get(name))]


def test_the_site_is_whole_and_loads_nothing_from_outside(site: Path) -> None:
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    expected = {f"{name.removesuffix('.md')}.html" for name in PAGES if name != "README.md"}
    assert {"index.html", "CHANGELOG.html", "bench/results/compare.html"} | expected <= set(pages)
    for page in pages:
        addresses = Loaded((site / page).read_text(encoding="utf-8")).addresses
        assert addresses
        assert [address for address in addresses if re.match(r"(?:\w+:)?//", address)] == [], page
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", styles) == []


def test_the_site_has_the_measured_table_and_the_diagrams(site: Path) -> None:
    choose = (site / "choose.html").read_text(encoding="utf-8")
    assert "Trajectory, measured" in choose
    assert "<!-- measured" not in choose
    how = (site / "how-it-works.html").read_text(encoding="utf-8")
    assert how.count('<figure class="diagram"><svg') == len(list((DOCS / "assets").glob("*.svg"))) - 1
    reference = (site / "api.html").read_text(encoding="utf-8")
    assert inspect.getdoc(cache_dit.enable_cache).splitlines()[0] in reference  # type: ignore[union-attr]
    assert "residual_diff_threshold" in reference


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_in_a_browser(site: Path, tmp_path: Path, dark: bool) -> None:
    """On a phone nothing is too wide, diagrams have the colour of the text, and nothing is asked for."""
    with Browser(tmp_path) as browser:
        for page in ("index.html", "how-it-works.html", "choose.html"):
            browser.open(site / page, width=390, height=800, dark=dark)
            asked = [
                event["params"]["request"]["url"]
                for event in browser.events
                if event["method"] == "Network.requestWillBeSent"
            ]
            assert asked
            assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
            assert browser.run("document.documentElement.scrollWidth") == 390
        browser.open(site / "how-it-works.html", width=1200, dark=dark)
        colour = "getComputedStyle(document.querySelector('{}')).color"
        assert browser.run(colour.format("figure.diagram svg")) == browser.run(colour.format("article p"))
        red = int(re.findall(r"\d+", browser.run(colour.format("article p")))[0])
        assert red > 200 if dark else red < 60
