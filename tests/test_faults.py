"""Faults leave nothing behind: bench/faults.py in small, and writers in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache_dit import Request, Schedule
from cache_dit.files import write_whole

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import fault_files
import faults

WRITES_FOR_EVER = """
    import sys
    from pathlib import Path
    from cache_dit.files import write_whole
    print("ready", flush=True)
    while True:
        for letter in "ab":
            write_whole(Path(sys.argv[1]), letter * 2_000_000)
"""


def test_faults_in_runs_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "ODD", (float("nan"),))
    some = property(lambda self: [self.model.transformer_blocks[0], self.model.single_transformer_blocks[0]])
    monkeypatch.setattr(faults.Bench, "blocks", some)
    rows = faults.engine_faults(("F1B0_W2M0MC2_R1_T1O1",))
    assert [row.fault for row in rows if row.put == 0] == []
    assert [(row.fault, row.good) for row in rows] == [(row.fault, row.put) for row in rows]


def test_a_fault_that_leaves_something_behind_is_seen() -> None:
    bench = faults.Bench("F1B0_W2M0MC2_R1_T1O1")
    request = Request(faults.STEPS, sigmas=faults.SIGMAS)
    bench.run(request, 2)
    assert not bench.sound(), "a run is still there"
    request.close()
    assert bench.sound()
    bench.model.proj_out.weight.data[0] += 1.0
    assert not bench.sound(), "outputs are others"


@pytest.mark.parametrize(
    "act",
    [count for *_, count in fault_files.FILE_FAULTS if count is not fault_files.disk_full],
    ids=lambda act: act.__name__,
)
def test_faults_in_files(
    act: Callable[[Path], Iterator[bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_files, "KILLS", 2)
    monkeypatch.setattr(fault_files, "CUTS", 10)
    held = list(act(tmp_path))
    assert len(held) >= 7
    assert all(held)


def child(code: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


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


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Schedule(total=4, computed=(0, 2)).save(tmp_path / "file" / "schedule.json")
