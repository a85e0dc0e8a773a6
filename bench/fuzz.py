"""Damaged inputs for everything that reads text or files of users: nothing but our own errors may come out.

python bench/fuzz.py                                  # 100,000 inputs, some minutes
python bench/fuzz.py --inputs 100000 --write          # also writes bench/results/fuzz.md
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import re
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
import yaml

from cache_dit import DBCacheConfig, Schedule, TaylorSeerCalibratorConfig
from cache_dit.bench import manifest, store
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.cli.app import app
from cache_dit.configs.loading import load_sections, save_configs
from cache_dit.errors import CacheDiTError
from cache_dit.pages.fronts import panels_of, read_points
from cache_dit.shorthand import parse_config
from cache_dit.tune.profile import Profile

# typer brings a click of its own.
Usage = typer.BadParameter.__mro__[1]
RESULTS = Path(__file__).parent / "results"
STRINGS = (
    "F8B0_W8M0MC3_R0.12_T1O1",
    "DBPrune_F1B0_W4I1M0MC0_P0.06D_T0O1_S16_P31.2_T11.39s",
    "F1B0_W4M0MC0_R0.2_SCM1110010101_dynamic_CFG1_FoCa",
    "OUTPUT_U5_W4_HiCacheO2S0.5",
    "taylorseer(interval=5, order=2)",
    "dbcache",
    "fbcache(threshold=0.12)",
)
CONFIGS = (
    "cache_config: {residual_diff_threshold: 0.12, Fn_compute_blocks: 1}\n"
    "calibrator_config: {taylorseer_order: 2}\n",
    "cache_config:\n  cache_type: DBCache\n  max_warmup_steps: 8\n  steps_computation_mask: [1, 1, 0, 0]\n",
    "preset: taylorseer\nparallelism_config: {ulysses_size: 2}\n",
    "$comment: &base {max_warmup_steps: 2}\ncache_config: {<<: *base, Fn_compute_blocks: 2}\n",
    '{"cache_config": {"residual_diff_threshold": 0.1}, "quantize_config": {"quant_type": "float8_per_row"}}',
    "cache_config: {max_warmup_steps: 2}\nparams_modifiers: [{cache_config: {max_warmup_steps: 1}}]\n",
    "cache_config: {schedule: {total: 4, computed: [0, 2]}}\n"
    "calibrator_config: {trajectory: {sigmas: [1.0, 0.5, 0.0], gram: [[1.0, 0.5], [0.5, 1.0]]}}\n",
    "cache_config: {steps_computation_mask: {mask_policy: fast, total_steps: 28}, place: blocks}\n"
    "compile_config: {recompile_limit: 32}\nattention_backend: native\n",
    "preset: {name: taylorseer_lite, interval: 4}\ncalibrator_config: {cache_dtype: bfloat16}\n",
)
NAMING = "cache_config: {schedule: schedule.json}\n"
ARGUMENTS = (
    "demo --help",
    "doctor",
    "models",
    "metrics psnr --video-test a --video-true b",
    "report --out page.html",
    "tune --target 2x --out profile.json",
    "calibrate --method lemica --steps 28 --out a.json",
    "bench run --config F8B0_W8M0MC3_R0.12 --limit 2",
    "bench sweep",
    "generate flux --prompt house --steps 4",
)
WORDS = (
    *("0", "-1", "1e999", "-1e-999", "99999999999999999999", "nan", ".inf", "null", "true", "~", "1_0"),
    *('"', "'", "{", "}", "[", "]", ":", ": ", ",", "- ", "&a ", "*a", "<<: ", "!!python/object:os.system "),
    *(
        "#",
        "|",
        ">",
        "%",
        "@",
        "`",
        "\0",
        "\n",
        "\t",
        "  ",
        "\ufeff",
        "\u2028",
        "é",
        "\ud7ff",
        "💥",
        "_",
        "(",
    ),
    *(")", "T1O", "SCM", "F", "e", "--", "-", "=", "--out", "../../etc/passwd", "/dev/null", "$(ls)", "\\"),
)
NUMBERS = (
    "0",
    "-1",
    "-0.0",
    "1.5",
    "1e308",
    "1e-320",
    "1e999",
    "9" * 20,
    "9" * 400,
    "nan",
    "0x10",
    "1_0",
    "",
)
VALUES: tuple[Any, ...] = (
    *(0, -1, 1.5, 10**20, 10**400, 1e308, float("nan"), float("inf"), True, None, "", "x", "nan", "1", "\0"),
    *("../../etc/passwd", "/dev/null", "x" * 5_000, [], [0], [[]], [[1.0], 2], [1] * 3_000, {}, {"a": 1}),
)
POINTS = (
    "set,kind,system,strength,steps,cfg,flops,time,psnr\n"
    "report,control,steps,20,50,1,0.4,0.41,21.5\n"
    "report,cache-dit,DBCache,0.12,50,1,0.3,0.33,30.1\n"
    "report,cache-dit,DBCache,0.2,50,4,0.25,0.29,27.9\n"
)
SCORES = (
    "set,kind,system,strength,steps,cfg,seed,flops,time,psnr,ssim\n"
    "report,control,steps,20,50,1,3,0.4,0.41,21.5,0.8\n"
    "training,cache-dit,DBCache,0.12,50,4.5,4,0.3,0.33,30.1,0.95\n"
)
DRAWN = (
    '{"number": 0, "file": "0000.png", "sha256": "ab", "prompt": "a house", "seed": 7, "seconds": 1.5, '
    '"flops": null, "steps": [28], "cached": [12]}'
)
RUN = '{"made by": "cache-dit bench", "model": "demo", "steps": 28, "seed": 0}'


INTRODUCTION = """# Damaged inputs

Good inputs with one to four random changes: parts cut out, repeated or exchanged, words of YAML, JSON,
Python and the shell put in, extreme numbers, control characters. Of YAML and JSON every other input is well
formed: values inside of it are exchanged for odd ones, left out, repeated or renamed. An input is read or
refused with an error of this package (for a path: of the system; for arguments: of the parser of the command,
as nothing is run). Anything else counts as another error, and the script shows it.
"""


@dataclass
class Target:
    """Something that reads: its name, what it is called with, good inputs, and errors that it may raise.

    `tree`: its inputs are YAML or JSON, whose values may be damaged too.
    """

    name: str
    read: Callable[[str], Any]
    good: Sequence[str]
    allowed: tuple[type[BaseException], ...] = (CacheDiTError,)
    tree: bool = False
    ends: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def check(self, text: str) -> None:
        """Read one input and note how that ended."""
        start = time.process_time()
        try:
            self.read(text)
            end = "read"
        except self.allowed as error:
            end = type(error).__name__
        except Exception:  # noqa: BLE001 -- that there is none is what is measured
            self.failures.append(f"{self.name}: {text!r}\n{traceback.format_exc()}")
            end = "CRASH"
        self.ends[end] += 1
        self.slowest = max(self.slowest, time.process_time() - start)

    def changed(self, text: str, chance: random.Random, others: Sequence[str]) -> str:
        """A good input, damaged."""
        return bent(text, chance) if self.tree and chance.random() < 0.5 else damaged(text, chance, others)


def damaged(text: str, chance: random.Random, others: Sequence[str]) -> str:
    """The text with one to four random changes."""
    for _ in range(chance.randint(1, 4)):
        at, to = sorted((chance.randint(0, len(text)), chance.randint(0, len(text))))
        match chance.randrange(9):
            case 0:
                text = text[:at] + text[to:]
            case 1:
                text = text[:to] + text[at:]
            case 2 | 3 | 4:
                text = text[:at] + chance.choice(WORDS) + text[at:]
            case 5:
                text = text[:at] + chr(chance.randrange(1, 0x2FF)) + text[at + 1 :]
            case 6:
                text = text[:at] + chance.choice(others)[-to:]
            case 7:
                text = re.sub(r"(?<![\d.])[\d.]+", chance.choice(NUMBERS), text[:to], count=1) + text[to:]
            case _:
                text = text[:at] + text[at:to] * chance.choice((2, 3, 50)) + text[to:]
    return text[:5_000]


def bent(text: str, chance: random.Random) -> str:
    """YAML or JSON with one to three random changes of its values or keys."""
    root = [yaml.safe_load(text)]
    for _ in range(chance.randint(1, 3)):
        places = list(_places(root))
        holder, key = chance.choice(places)
        other, another = chance.choice(places)
        match chance.randrange(5):
            case 0 | 1:
                holder[key] = copy.deepcopy(chance.choice(VALUES))
            case 2:
                holder[key] = copy.deepcopy(other[another])
            case 3 if isinstance(holder, dict):
                holder[chance.choice((*WORDS, *map(str, other)))] = holder.pop(key)
            case _ if holder is not root:
                del holder[key]
    return json.dumps(root[0]) if chance.random() < 0.5 else yaml.safe_dump(root[0])


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in it, by what holds it and its key or number."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


def argument_parser() -> Callable[[str], Any]:
    """What parses the arguments of the command and of the sub-command that they name; nothing is run."""

    def disarm(command: Any) -> Any:
        for part in getattr(command, "commands", {}).values():
            disarm(part)
        command.callback = None
        return command

    command = disarm(typer.main.get_command(app))

    def parse(text: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            command.main(text.split(), prog_name="cache-dit", standalone_mode=False)

    return parse


def targets(folder: Path) -> list[Target]:
    """Everything that reads, with good inputs from files written to `folder`."""

    def from_file(read: Callable[[Path], Any], name: str = "input.json") -> Callable[[str], Any]:
        def written(text: str) -> Any:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            return read(path)

        return written

    Schedule(total=8, computed=(0, 1, 4, 7), model="Flux", method="found").save(folder / "schedule.json")
    Trajectory.expected([1.0, 0.7, 0.4, 0.0]).save(folder / "trajectory.json")
    save_configs(
        folder / "configs.yaml",
        cache_config=DBCacheConfig(Fn_compute_blocks=1),
        calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=2),
    )
    known = {name: (folder / name).read_text() for name in ("schedule.json", "trajectory.json")}
    configs = (*CONFIGS, (folder / "configs.yaml").read_text())
    files = (CacheDiTError, OSError)
    return [
        Target("config string", parse_config, STRINGS),
        Target("configuration, as text", load_sections, configs, files, tree=True),
        Target("configuration file", from_file(load_sections), (*configs, NAMING), files, tree=True),
        Target("schedule file", from_file(Schedule.load), [known["schedule.json"]], tree=True),
        Target("trajectory file", from_file(Trajectory.load), [known["trajectory.json"]], tree=True),
        Target("profile file", from_file(Profile.load), [PROFILE], tree=True),
        Target("profile, for its points", from_file(_shown), [PROFILE], tree=True),
        Target("table of points", from_file(_shown), [POINTS]),
        Target("table of scores", from_file(lambda path: store.read([path])), [SCORES]),
        Target("run of a benchmark", from_file(_claim, "run/run.json"), [RUN], tree=True),
        Target("pictures of a benchmark", from_file(_drawn, "manifest.jsonl"), [DRAWN, f"{DRAWN}\n{DRAWN}"]),
        Target("arguments of the command", argument_parser(), ARGUMENTS, (Usage, typer.Exit, typer.Abort)),
    ]


def _shown(path: Path) -> Any:
    return panels_of(read_points(path))


def _claim(path: Path) -> None:
    manifest.claim(path.parent, json.loads(RUN))


def _drawn(path: Path) -> Any:
    return manifest.read_drawn(path.parent)


PROFILE = json.dumps(
    {
        "format": "cache_dit profile 1",
        "model": "FluxTransformer2DModel",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "steps": 28,
        "arguments": {"guidance_scale": 1.0},
        "target": "2x",
        "met": True,
        "method": "DBCache",
        "config": {"cache_config": {"Fn_compute_blocks": 1}, "calibrator_config": {"taylorseer_order": 1}},
        "predicted": {"psnr": {"mean": 30.0, "low": 29.0, "high": 31.0, "worst": 25.0, "pictures": 8}},
        "measured": {"psnr": {"mean": 30.0, "low": 29.0, "high": 31.0, "worst": 25.0, "pictures": 8}},
        "tried": [
            {"method": "DBCache", "psnr": 30.0},
            {"method": "DBCache 0.1", "flops": 0.5, "psnr": 30.0},
            {"method": "FBCache 0.1", "flops": 0.6, "psnr": 25.0},
        ],
        "versions": {"torch": "2.13"},
    }
)


def fuzz(inputs: int, seed: int, folder: Path) -> list[Target]:
    """Give every reader its share of `inputs`, the good ones first.

    Args:
        inputs: For all together.
        seed: Draws the damage.
        folder: For the files that are read.
    """
    chance, made = random.Random(seed), targets(folder)
    everything = [text for target in made for text in target.good]
    with warnings.catch_warnings():
        # Sections for other functions, and odd escapes in config strings, are warned of.
        warnings.simplefilter("ignore")
        for number, target in enumerate(made):
            share = (inputs + len(made) - 1 - number) // len(made)
            for count in range(share):
                good = target.good[count % len(target.good)]
                target.check(good if count < len(target.good) else target.changed(good, chance, everything))
    return made


def table(made: Sequence[Target]) -> str:
    """How the inputs of every reader ended."""
    rows = [
        "| what reads | inputs | read | refused, by error | other errors | slowest, ms of the processor |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for target in made:
        refused = {name: n for name, n in target.ends.most_common() if name not in ("read", "CRASH")}
        said = ", ".join(f"{name} {n:,}" for name, n in refused.items())
        rows.append(
            f"| {target.name} | {target.ends.total():,} | {target.ends['read']:,} | {said} | "
            f"{target.ends['CRASH']:,} | {target.slowest * 1e3:.0f} |"
        )
    total = sum(target.ends.total() for target in made)
    crashes = sum(target.ends["CRASH"] for target in made)
    return "\n".join((*rows, f"| **all** | **{total:,}** | | | **{crashes:,}** | |"))


def main() -> int:
    """Fuzz, print the table and every input that was answered by another error; 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    start = time.process_time()
    # Some good inputs name files relative to here.
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        made = fuzz(options.inputs, options.seed, Path(folder))
        os.chdir("/")
    text = table(made)
    print(text)
    failures = [failure for target in made for failure in target.failures]
    print(*failures[:20], sep="\n")
    if options.write and not failures:
        from common import environment

        from cache_dit.files import write_whole

        spent = f"{time.process_time() - start:.0f} s of the processor"
        head = f"{INTRODUCTION}\n{environment()}\n- seed {options.seed}, {spent}\n\n"
        write_whole(RESULTS / "fuzz.md", f"{head}{text}\n", mark="# Damaged inputs")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
