"""Any text or file is read, or refused by an error of ours; masks and schedules keep their rules."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_dit import Schedule
from cache_dit.caching.maths.masks import stretch
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.configs.loading import load_configs
from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.files import read_json

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import fuzz


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[fuzz.Target]:
    return fuzz.targets(tmp_path_factory.mktemp("fuzz"))


def test_what_is_damaged_is_good_at_first(targets: list[fuzz.Target]) -> None:
    """Else the damage would be done to inputs that are refused at their first word."""
    for target in targets:
        for text in target.good:
            target.read(text)


def test_damaged_inputs_are_read_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = fuzz.fuzz(2_100, seed=1, folder=tmp_path)
    assert [failure for target in made for failure in target.failures] == []
    assert all(target.ends.total() == 300 for target in made)
    assert all(target.ends["read"] < 200 for target in made)


def test_another_error_is_a_failure() -> None:
    def broken(text: str) -> None:
        raise KeyError(text)

    target = fuzz.Target("broken", broken, ("a",))
    target.check("a")
    assert target.ends["CRASH"] == 1
    assert "KeyError" in target.failures[0]
    assert "| broken | 1 | 0 |  | 1 |" in fuzz.table([target])


# --- what files may not do ---

_FOLDER = tempfile.TemporaryDirectory()
READERS = {"schedule": Schedule.load, "trajectory": Trajectory.load, "profile": fuzz.Profile.load}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b" " * 1_000_001, "more than 1000000 bytes"),
        (b"[" * 100_000, ""),
        (b'{"total": NaN}', "it has NaN"),
        (b"\x80\x04\x95\x1c\x00\x00\x00", ""),
        (b"\xff\xfe{", ""),
        (b"[]", ""),
        (b"1" * 5_000, ""),
    ],
    ids=["huge", "deep", "NaN", "pickle", "UTF-16", "list", "long number"],
)
def test_odd_files_are_refused_by_name(tmp_path: Path, kind: str, content: bytes, why: str) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"odd\.json is no {kind} \(.*{why}"):
        READERS[kind](path)


def test_a_schedule_of_a_billion_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="total is 1000000000; give 100000 steps at most"):
        Schedule(total=1_000_000_000, computed=(0,))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    trace = tmp_path / "trace"
    path.write_text(f"cache_config: !!python/object/apply:os.mkdir ['{trace}']\n")
    with pytest.raises(ConfigError):
        load_configs(path)
    path.write_text(f'{{"__reduce__": "os.mkdir", "args": ["{trace}"]}}')
    assert read_json(path)["__reduce__"] == "os.mkdir"
    assert not trace.exists()


def test_a_name_that_no_path_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither text nor a path"):
        load_configs("cache\0.yaml")


# --- rules of masks and schedules ---

MASKS = st.lists(st.sampled_from((0, 1)), min_size=1, max_size=60).map(lambda mask: [1, *mask])


@given(MASKS, st.integers(2, 120))
@settings(deadline=None)
def test_a_stretched_mask_has_the_length_and_begins_computed(mask: list[int], total: int) -> None:
    made = stretch(mask, total)
    assert len(made) == total
    assert set(made) <= {0, 1}
    assert made[0] == 1
    # The same share is computed, as far as the ends and rounding let it.
    assert abs(sum(made) / total - sum(mask) / len(mask)) <= 2.0 / total + 2.0 / len(mask)


@given(st.sets(st.integers(1, 99)), st.integers(1, 150))
@settings(deadline=None)
def test_a_schedule_is_read_as_it_was_written(later: set[int], total: int) -> None:
    computed = (0, *sorted(later))
    try:
        schedule = Schedule(total=total, computed=computed, model="M", versions={"torch": "2"})
    except CacheDiTError:
        assert computed[-1] >= total
        return
    assert [step for step, one in enumerate(schedule.mask()) if one] == list(computed)
    path = Path(_FOLDER.name) / "schedule.json"
    schedule.save(path)
    assert Schedule.load(path) == schedule
