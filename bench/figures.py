"""How large the package is, how fast it starts, and how much of it the tests run.

python bench/figures.py                        # a minute; the wheel is built, which asks the package index
python bench/figures.py --write                # also writes bench/results/figures.md

Coverage comes from a file that `coverage` has made, of whatever tests it ran:

coverage run --source=src/cache_dit -m pytest && coverage json -o build/coverage.json
python bench/figures.py --coverage build/coverage.json --write
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from common import environment, write
from packaging.requirements import Requirement

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from test_layers import CATALOGUE, code_lines, home, module_name, package_sources

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "diffusers")
"""What is needed in any case: what it brings is not counted for others."""
ALIKE = 6
"""Lines of code in a row, imports aside, that make a duplicate when they stand somewhere else too."""
LONG = 60
STARTS = {
    "`python -c pass`, for comparison": "pass",
    '`python -W error -c "import cache_dit"`': "import cache_dit",
    "the same and the first name used, which imports torch": "import cache_dit; cache_dit.enable_cache",
    "`import torch`, for comparison": "import torch",
    "`cache-dit --help`": "import sys; sys.argv[1:] = ['--help']; from cache_dit.cli import main; main()",
    "`cache-dit models --help`": (
        "import sys; sys.argv[1:] = ['models', '--help']; from cache_dit.cli import main; main()"
    ),
}


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def starts(rounds: int) -> str:
    """Seconds that fresh processes take, in turn, by the clock and of processors."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, code in STARTS.items():
            # torch 2.13 itself warns of what it deprecates, on import.
            strict = ["-W", "error"] if "torch" not in name else []
            before = time.perf_counter(), _of_children()
            subprocess.run([sys.executable, *strict, "-c", code], check=True, capture_output=True)
            taken[name].append((time.perf_counter() - before[0], _of_children() - before[1]))
    rows = []
    for name, each in taken.items():
        clock, processor = zip(*each, strict=True)
        figures = min(clock), median(clock), min(processor), median(processor)
        rows.append((name, *(f"{seconds:.2f}" for seconds in figures)))
    head = "fastest, s", "median, s", "least processor time, s", "median processor time, s"
    return table(("fresh process", *head), rows)


def _of_children() -> float:
    """Processor seconds of all processes that were started and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def wheel() -> str:
    """The size of the wheel, and what in it is large."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(ROOT)]
        subprocess.run(command, check=True, capture_output=True)
        (path,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
        size = path.stat().st_size
    largest = sorted(members, key=lambda one: -one.compress_size)[:6]
    rows = [(f"`{one.filename}`", f"{one.compress_size / 1e3:,.0f}") for one in largest]
    rest = sum(one.compress_size for one in members) - sum(one.compress_size for one in largest)
    rows.append((f"{len(members) - len(largest)} others", f"{rest / 1e3:,.0f}"))
    return f"{size / 1e6:.2f} MB in {len(members)} files.\n\n{table(('in it', 'kB, compressed'), rows)}"


def dependencies() -> str:
    """What a plain install brings, as it is in this environment."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        asked = [Requirement(line) for line in tomllib.load(file)["project"]["dependencies"]]
    every: set[str] = set()
    rows = []
    # Those first that bring most of it in any case.
    for one in sorted(
        asked, key=lambda one: ("torch", "diffusers").index(one.name) if one.name in HEAVY else 2
    ):
        new = brought(one, every)
        size = sum(map(installed, new))
        rows.append((f"`{one}`", len(new), f"{size / 1e6:,.1f}", ", ".join(sorted(new - {canonical(one)}))))
    total = sum(map(installed, every))
    rows.append(("all", len(every), f"{total / 1e6:,.1f}", ""))
    return table(("asked for", "packages that it adds", "MB installed", "of them brought along"), rows)


def canonical(one: Requirement) -> str:
    """The name that its distribution has, in one spelling."""
    return one.name.lower().replace("_", "-")


def brought(one: Requirement, every: set[str]) -> set[str]:
    """Names of all packages that a requirement needs and that are not yet among `every`, which grows."""
    name = canonical(one)
    if name in every or (one.marker is not None and not one.marker.evaluate({"extra": ""})):
        return set()
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        # Of the other builds of torch, which need it.
        return set()
    every.add(name)
    extras = [Requirement(line) for line in needs for extra in one.extras if f'extra == "{extra}"' in line]
    plain = [Requirement(line) for line in needs if "extra ==" not in line]
    found = {name}
    for need in plain + [_unmarked(need) for need in extras]:
        found |= brought(need, every)
    return found


def _unmarked(one: Requirement) -> Requirement:
    one.marker = None
    return one


def installed(name: str) -> int:
    """Bytes of an installed package."""
    files = importlib.metadata.files(name) or []
    return sum(path.stat().st_size for path in map(_located, files) if path.is_file())


def _located(file: importlib.metadata.PackagePath) -> Path:
    return Path(str(file.locate()))


class Source(NamedTuple):
    """One file of the package."""

    path: str
    text: str
    code: list[int]

    @property
    def layer(self) -> str:
        """Its layer, in words."""
        place = home(module_name(self.path))
        assert place is not None  # tests/test_layers.py holds it
        return "methods (layer 0)" if self.path.startswith(CATALOGUE) else f"{place[1]:g}"

    @property
    def room(self) -> str:
        """The prefix that its layer is given to."""
        place = home(module_name(self.path))
        assert place is not None
        return place[0].removeprefix("cache_dit.")


def functions(source: Source) -> Iterator[tuple[int, str]]:
    """Lines and name of every function, docstring included."""
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{source.path}: {node.name}"


def duplicates(sources: Iterable[Source]) -> list[tuple[int, str, int]]:
    """Length, path and first line of all that stands in the package more than once, word for word."""
    windows: defaultdict[str, list[tuple[Source, int]]] = defaultdict(list)
    kept: dict[str, list[tuple[int, str]]] = {}
    for source in sources:
        text = source.text.splitlines()
        lines = [(number, text[number - 1].strip()) for number in source.code]
        lines = [(number, line) for number, line in lines if not line.startswith(("import ", "from "))]
        kept[source.path] = lines
        for start in range(len(lines) - ALIKE + 1):
            joined = "\n".join(line for _, line in lines[start : start + ALIKE])
            # Closing brackets alone say nothing.
            if sum(map(str.isalnum, joined)) > 12 * ALIKE:
                windows[hashlib.sha256(joined.encode()).hexdigest()].append((source, start))
    covered: defaultdict[str, set[int]] = defaultdict(set)
    for places in windows.values():
        for source, start in places if len(places) > 1 else []:
            covered[source.path] |= set(range(start, start + ALIKE))
    found = []
    for path, marks in covered.items():
        for first in sorted(mark for mark in marks if mark - 1 not in marks):
            length = next(n for n in range(1, len(marks) + 1) if first + n not in marks)
            found.append((length, path, kept[path][first][0]))
    return sorted(found, reverse=True)


def sizes(sources: list[Source]) -> str:
    """Lines by layer and by room, the largest files and functions, and duplicates."""
    layers: defaultdict[str, list[Source]] = defaultdict(list)
    rooms: defaultdict[tuple[str, str], list[Source]] = defaultdict(list)
    for source in sources:
        layers[source.layer].append(source)
        rooms[source.layer, source.room].append(source)
    largest = sorted(((len(one.text.splitlines()), one.path) for one in sources), reverse=True)[:10]
    longest = sorted((found for one in sources for found in functions(one)), reverse=True)
    twice = duplicates(sources)
    below = [one for one in sources if one.layer in ("0", "1", "2", "3")]
    parts = [
        "## Lines",
        "Lines of code are those that are neither blank nor comment nor docstring. Layers 0 to 3 have "
        f"{sum(len(one.code) for one in below):,} of them in {len(below)} files; the limit of "
        "tests/test_layers.py is 5,000, without the methods.",
        table(("layer", "files", "lines", "of them code"), _counted(layers)),
        table(
            ("layer", "room", "files", "lines", "of them code"),
            [(layer, room, *counts) for (layer, room), counts in _sums(rooms)],
        ),
        "## Largest files",
        table(("lines", "file"), largest),
        "## Longest functions",
        f"{sum(length > LONG for length, _ in longest)} of {len(longest)} have more than {LONG} lines, "
        "docstrings included; the ten longest:",
        table(("lines", "function"), longest[:10]),
        "## Duplicates",
        f"Places where {ALIKE} and more lines of code in a row, imports aside, stand word for word somewhere "
        f"else in the package too: {len(twice)}.",
    ]
    rows = [(length, f"{path}:{line}") for length, path, line in twice]
    return "\n\n".join([*parts, *([table(("lines", "from"), rows)] if rows else [])])


def _counted(groups: Mapping[str, list[Source]]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [(name, *counts) for name, counts in _sums(groups)]
    return [*rows, ("all", *_sum([one for group in groups.values() for one in group]))]


def _sums(groups: Mapping[Any, list[Source]]) -> list[tuple[Any, tuple[object, ...]]]:
    return [(key, _sum(groups[key])) for key in sorted(groups, key=str)]


def _sum(group: list[Source]) -> tuple[object, ...]:
    lines = sum(len(one.text.splitlines()) for one in group)
    return len(group), f"{lines:,}", f"{sum(len(one.code) for one in group):,}"


def coverage(path: Path, sources: list[Source]) -> str:
    """Statements that tests ran, by layer, from what `coverage json` has written."""
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    found = {name.rpartition("cache_dit/")[2]: entry["summary"] for name, entry in files.items()}
    run: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    low = []
    for one in sources:
        # Stubs are never run.
        if (summary := found.get(one.path)) is None or not summary["num_statements"]:
            continue
        run[one.layer][0] += summary["covered_lines"]
        run[one.layer][1] += summary["num_statements"]
        if one.layer in ("0", "1", "2", "3") and summary["percent_covered"] < 95:
            low.append((one.path, summary["missing_lines"], f"{summary['percent_covered']:.1f} %"))
    rows = [
        (layer, f"{total:,}", f"{ran:,}", f"{ran / total:.1%}") for layer, (ran, total) in sorted(run.items())
    ]
    ran, total = (sum(run[layer][place] for layer in run if layer in "0123") for place in (0, 1))
    rows.append(("0 to 3", f"{total:,}", f"{ran:,}", f"{ran / total:.1%}"))
    text = table(("layer", "statements", "run by the tests", "share"), rows)
    if low:
        text += "\n\nFiles of layers 0 to 3 under 95 %:\n\n" + table(("file", "not run", "share"), low)
    return text


def main() -> None:
    """Measure all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="starts of each process")
    parser.add_argument("--coverage", type=Path, help="what `coverage json` has written")
    parser.add_argument("--tests", default="", help="which tests those figures are of, in words")
    parser.add_argument("--write", action="store_true", help="write bench/results/figures.md")
    given = parser.parse_args()
    found = package_sources()
    sources = [Source(path, text, code_lines(text)) for path, text in sorted(found.items())]
    parts = ["# Figures of the package", environment(), "## Starting", starts(given.rounds)]
    if os.getloadavg()[0] > (os.cpu_count() or 1):
        parts.append("Other work shared the processors in this run, so only processor times tell something.")
    parts += ["## Wheel", wheel(), "## Installed by default", dependencies(), sizes(sources)]
    if given.coverage is not None:
        parts += ["## Coverage", given.tests, coverage(given.coverage, sources)]
    text = "\n\n".join(filter(None, parts))
    print(text)
    if given.write:
        print(f"\nwritten: {write('figures.md', text)}")


if __name__ == "__main__":
    main()
