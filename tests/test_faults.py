"""A process that dies while it writes leaves the old file, whole."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cache_dit import Schedule
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.errors import ConfigError
from cache_dit.files import write_whole

KILLED_BEFORE_THE_SWAP = """
    import os, signal, sys
    from pathlib import Path
    from cache_dit.files import write_whole
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    write_whole(Path(sys.argv[1]), "new" * 1_000_000)
"""
WRITES_FOR_EVER = """
    import sys
    from pathlib import Path
    from cache_dit.files import write_whole
    print("ready", flush=True)
    while True:
        for letter in "ab":
            write_whole(Path(sys.argv[1]), letter * 2_000_000)
"""


def child(code: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_before_the_swap(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with child(KILLED_BEFORE_THE_SWAP, path) as process:
        assert process.wait(60) == -signal.SIGKILL
    assert path.read_text() == "old"
    # What is left over is in nobody's way.
    assert len([one for one in tmp_path.iterdir() if one != path]) == 1
    write_whole(path, "newer")
    assert path.read_text() == "newer"


def test_killed_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "a" * 2_000_000)
    seen = set()
    with child(WRITES_FOR_EVER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(40):
            content = path.read_text()
            assert content in ("a" * 2_000_000, "b" * 2_000_000)
            seen.add(content[0])
            time.sleep(0.005)
        process.kill()
    assert path.read_text() in ("a" * 2_000_000, "b" * 2_000_000)
    assert seen == {"a", "b"}, "the child did write while we read"


@pytest.mark.parametrize("kind", ["schedule", "trajectory"])
def test_foreign_files_are_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("mine")
    made = {
        "schedule": Schedule(total=4, computed=(0, 2)),
        "trajectory": Trajectory.expected([1.0, 0.7, 0.4, 0.0]),
    }[kind]
    with pytest.raises(ConfigError, match=r"thesis\.txt exists and was not written by this command"):
        made.save(path)
    assert path.read_text() == "mine"
    made.save(tmp_path / "own.json")
    made.save(tmp_path / "own.json")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["own.json", "thesis.txt"]


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Schedule(total=4, computed=(0, 2)).save(tmp_path / "file" / "schedule.json")
