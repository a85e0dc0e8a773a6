"""Faults of files for `bench/faults.py`: writers that are killed or refused, files that are damaged."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import resource
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fuzz import DRAWN, PROFILE

import cache_dit
from cache_dit import DBCacheConfig, Schedule, TaylorSeerCalibratorConfig
from cache_dit.bench.manifest import read_drawn
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.configs.loading import load_configs, save_configs
from cache_dit.errors import CacheDiTError
from cache_dit.metrics.measured import Measured, write_scores
from cache_dit.pages.fronts import Point
from cache_dit.tune.profile import Profile

Holds = Iterator[bool]
"""For every fault whether all held that has to."""

KILLS, CUTS = 20, 200  # of each kind of file
NOBODY = 65534


@dataclass(frozen=True)
class Kind:
    """One kind of file: its ending, what writes content 0 or 1 of it, and what reads it."""

    ending: str
    write: Callable[[Path, int], Any]
    read: Callable[[Path], Any] | None = None


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind that the package writes by itself."""
    (folder / "known.json").write_text(PROFILE)
    profile = Profile.load(folder / "known.json")
    (folder / "known.json").unlink()

    def schedule(path: Path, number: int) -> None:
        Schedule(total=4_000, computed=tuple(range(0, 4_000, 2 + number))).save(path)

    def trajectory(path: Path, number: int) -> None:
        steps = 60 + number
        sigmas = tuple(1.0 - step / steps for step in range(steps + 1))
        Trajectory(sigmas, torch.eye(steps, dtype=torch.float64), "M", 1).save(path)

    def configs(path: Path, number: int) -> None:
        mask = (1, *(number for _ in range(400)))
        cache = DBCacheConfig(steps_computation_mask=mask)
        save_configs(path, cache_config=cache, calibrator_config=TaylorSeerCalibratorConfig())

    def page(path: Path, number: int) -> None:
        points = [Point("ours", str(place), 0.1 * place, 20.0 + place + number) for place in range(1, 6)]
        cache_dit.report(None, path, comparison=points)

    def scores(path: Path, number: int) -> None:
        values = {f"{place}.png": float(place + number) for place in range(500)}
        write_scores(path, {"psnr": Measured.mean(values)})

    return {
        "schedule": Kind(".json", schedule, Schedule.load),
        "trajectory": Kind(".json", trajectory, Trajectory.load),
        "profile": Kind(
            ".json", lambda path, number: replace(profile, steps=28 + number).save(path), Profile.load
        ),
        "configuration, YAML": Kind(".yaml", configs, load_configs),
        "configuration, JSON": Kind(".json", configs, load_configs),
        "report": Kind(".html", page),
        "scores": Kind(".csv", scores),
    }


def each(folder: Path) -> Iterator[tuple[Kind, Path, tuple[bytes, bytes]]]:
    """Every kind with a path that holds content 0, and both contents."""
    for number, kind in enumerate(kinds(folder).values()):
        inner = folder / str(number)
        inner.mkdir()
        path = inner / f"file{kind.ending}"
        kind.write(path, 1)
        new = content(path)
        kind.write(path, 0)
        yield kind, path, (content(path), new)


def content(path: Path) -> bytes:
    """Of a file, but for the minute that a report tells."""
    return re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC", b"", path.read_bytes())


def child(act: Callable[[], Any]) -> int:
    """A process that does it and exits with 0, or with 7 for an OSError; returns its number."""
    with warnings.catch_warnings():
        # From Python 3.12 on: other threads, such as torch's, do not come along. Here none is needed.
        warnings.simplefilter("ignore", DeprecationWarning)
        number = os.fork()
    if number:
        return number
    code = 1
    try:
        act()
        code = 0
    except OSError:
        code = 7
    finally:
        os._exit(code)


def killed_at_random(folder: Path) -> Holds:
    """The file is the old one or the new one, whole, and can be read and written."""
    chance = random.Random(0)
    for kind, path, contents in each(folder):

        def write_for_ever(kind: Kind = kind, path: Path = path) -> None:
            while True:
                kind.write(path, 1)
                kind.write(path, 0)

        for _ in range(KILLS):
            old, number = path.stat().st_ino, child(write_for_ever)
            while path.stat().st_ino == old:  # it has not begun
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.02))
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            yield content(path) in contents
        kind.write(path, 1)
        yield content(path) == contents[1]


def killed_before_the_swap(folder: Path) -> Holds:
    """The old file stays, and the next writer does its work."""
    for kind, path, contents in each(folder):

        def write(kind: Kind = kind, path: Path = path) -> None:
            os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            kind.write(path, 1)

        _, status = os.waitpid(child(write), 0)
        stayed = os.WTERMSIG(status) == signal.SIGKILL and content(path) == contents[0]
        kind.write(path, 1)
        yield stayed and content(path) == contents[1]


def cut_off(folder: Path) -> Holds:
    """The kernel ends the write in the middle, as where a quota is full."""
    for kind, path, contents in each(folder):

        def write(kind: Kind = kind, path: Path = path, most: int = len(contents[1]) // 2) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            kind.write(path, 1)

        yield _refused(child(write), path, contents[0])


def disk_full(folder: Path) -> Holds:
    """A disk of 256 KiB in memory, filled up; only root may make one."""
    if os.geteuid():
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True)
    try:
        made = list(each(folder))
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 1024)
        for kind, path, contents in made:
            yield _refused(child(functools.partial(kind.write, path, 1)), path, contents[0])
    finally:
        subprocess.run(["umount", folder], check=True)


def not_allowed(folder: Path) -> Holds:
    """Another user: nothing may be written, and what may not be read is an error of the system."""
    for kind, path, contents in each(folder):
        path.chmod(0o000)
        path.parent.chmod(0o555)

        def write(kind: Kind = kind, path: Path = path) -> None:
            _be_nobody()
            kind.write(path, 1)

        yield _refused(child(write), path, contents[0])
        if kind.read is not None:

            def read(kind: Kind = kind, path: Path = path) -> None:
                _be_nobody()
                assert kind.read is not None
                kind.read(path)

            yield _refused(child(read), path, contents[0])
        path.parent.chmod(0o755)


def _be_nobody() -> None:
    if not os.geteuid():
        os.setuid(NOBODY)


def _refused(number: int, path: Path, old: bytes) -> bool:
    _, status = os.waitpid(number, 0)
    path.chmod(0o644)
    return os.waitstatus_to_exitcode(status) == 7 and content(path) == old and len(_names(path)) == 1


def _names(path: Path) -> list[str]:
    return os.listdir(path.parent)


def many_at_once(folder: Path) -> Holds:
    """Eight threads write two contents to one path: one of them is there, and no part is left."""
    for kind, path, contents in each(folder):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number, kind=kind, path=path: kind.write(path, number % 2), range(16)))
        yield content(path) in contents and len(_names(path)) == 1


def foreign(folder: Path) -> Holds:
    """A file that something else has written stays, and the error says so."""
    for kind, path, _ in each(folder):
        for thesis in (b"", b"my thesis", b"{}", b"\x89PNG\r\n"):
            path.write_bytes(thesis)
            try:
                kind.write(path, 1)
            except CacheDiTError as error:
                yield path.name in str(error) and path.read_bytes() == thesis and len(_names(path)) == 1
            else:
                yield False


def cut_short(folder: Path) -> Holds:
    """A file that ends early is refused by an error that names it, or is a smaller whole one (YAML)."""
    for kind, path, contents in each(folder):
        if kind.read is None:
            continue
        length = len(contents[0].rstrip())
        for end in range(0, length, max(1, length // CUTS)):
            path.write_bytes(contents[0][:end])
            try:
                kind.read(path)
            except CacheDiTError as error:
                yield str(path) in str(error)
            else:
                yield path.suffix == ".yaml"


def led_astray(folder: Path) -> Holds:
    """Files that name others outside of their folder are refused, before those are opened."""
    secret = folder / "secret.json"
    Schedule(total=4, computed=(0, 2)).save(secret)
    inner = folder / "inner"
    inner.mkdir()
    for named in ("../secret.json", str(secret), "a/../../secret.json", "/etc/passwd"):
        for option in ("cache_config: {schedule: %s}\n", "calibrator_config: {trajectory: %s}\n"):
            (inner / "cache.yaml").write_text(option % named)
            yield _says(lambda: load_configs(inner / "cache.yaml"), "outside of the folder")
        (inner / "manifest.jsonl").write_text(DRAWN.replace("0000.png", named))
        yield _says(lambda: read_drawn(inner), "is no picture of a benchmark")
        (inner / "profile.json").write_text(PROFILE.replace('"config": {', f'"config": "{named}", "x": {{'))
        yield _says(lambda: Profile.load(inner / "profile.json"), "which is no mapping")


def _says(act: Callable[[], Any], told: str) -> bool:
    try:
        act()
    except CacheDiTError as error:
        return told in str(error)
    return False


OLD = "the old file, whole, and no other; an error of the system"
FILE_FAULTS: tuple[tuple[str, str, Callable[[Path], Holds]], ...] = (
    ("SIGKILL while writing, at random moments", "the old or the new file, whole", killed_at_random),
    ("SIGKILL right before the swap", "the old file, whole; then the new one", killed_before_the_swap),
    ("the write ends in the middle (limit of the kernel)", OLD, cut_off),
    ("the disk is full", OLD, disk_full),
    ("nothing may be written or read (another user)", OLD, not_allowed),
    ("eight threads write to one path", "one of their files, whole, and no other", many_at_once),
    ("a foreign file is there", "it stays; an error that names it", foreign),
    ("a file that ends early", "an error that names it; of YAML perhaps fewer options", cut_short),
    ("a name that leads out of the folder", "an error; nothing is opened", led_astray),
)
