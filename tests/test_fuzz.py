"""Any text or file is read, or refused by an error of ours; masks and schedules keep their rules."""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache_dit import Schedule, steps_mask
from cache_dit.bench import store
from cache_dit.caching.maths.masks import stretch
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.configs.loading import load_configs
from cache_dit.configs.reading import Dumper, parse
from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.files import read_json
from cache_dit.tune.profile import Profile

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
    made = fuzz.fuzz(1_200, seed=1, folder=tmp_path)
    assert [failure for target in made for failure in target.failures] == []
    assert all(target.ends.total() == 100 for target in made)
    assert all(0 < target.ends["read"] < 80 for target in made)


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
READERS = {"schedule": Schedule.load, "trajectory": Trajectory.load, "profile": Profile.load}


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


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"mask_policy": "fast", "total_steps": 10**9}, "total_steps is 1000000000 .*; give 1 to 100000"),
        ({"compute_bins": [10**9]}, r"compute_bins is \[1000000000\]; give steps, .* 100000 at most"),
    ],
)
def test_a_mask_of_a_billion_steps_is_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        steps_mask(**asked)


@pytest.mark.parametrize("named", ["../steps.json", "/etc/passwd", "a/../../steps.json"])
def test_a_configuration_reads_nothing_outside_of_its_folder(tmp_path: Path, named: str) -> None:
    """Not even to find that it is no schedule."""
    Schedule(total=4, computed=(0, 2)).save(tmp_path / "steps.json")
    inner = tmp_path / "inner" / "cache.yaml"
    inner.parent.mkdir()
    inner.write_text(f"cache_config: {{schedule: {named}}}\n")
    with pytest.raises(ConfigError, match=r"schedule is .*, outside of the folder of the configuration; put"):
        load_configs(inner)


def test_a_profile_holds_its_configuration_and_names_no_file(tmp_path: Path) -> None:
    (tmp_path / "cache.yaml").write_text("cache_config: {Fn_compute_blocks: 1}\n")
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(json.loads(fuzz.PROFILE) | {"config": str(tmp_path / "cache.yaml")}))
    with pytest.raises(ConfigError, match=r"config is '.*cache\.yaml', which is no mapping"):
        Profile.load(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("preset: {name: [dbcache]}", r"preset is \['dbcache'\]; allowed are"),
        (
            "calibrator_config: {trajectory: {sigmas: [1, 0], gram: [[1" + "0" * 400 + "]]}}",
            "is no trajectory",
        ),
        ('cache_config: {schedule: "a\\0"}', "is neither text nor a path"),
    ],
)
def test_odd_values_are_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_configs(text)


def test_a_table_of_other_columns_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    for content in (
        fuzz.SCORES.replace("set", "sort").encode(),
        b"set,kind\n" + b"9" * 200_000,
        b"set\n\xff",
    ):
        path.write_bytes(content)
        with pytest.raises(CacheDiTError, match=r"scores\.csv, line \d is no score"):
            store.read([path])


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


@given(
    st.integers(1, 6).flatmap(
        lambda count: st.tuples(
            st.lists(st.integers(1, 9), min_size=count, max_size=count),
            st.lists(st.integers(1, 9), min_size=count - 1, max_size=count),
        )
    )
)
@settings(deadline=None)
def test_bins_are_taken_literally(bins: tuple[list[int], list[int]]) -> None:
    mask = steps_mask(compute_bins=bins[0], cache_bins=bins[1])
    runs = [(value, len(list(group))) for value, group in groupby(mask)]
    assert [length for value, length in runs if value == 1] == bins[0]
    assert [length for value, length in runs if value == 0] == bins[1]
    assert runs[0][0] == 1
    assert steps_mask(*bins, total_steps=len(mask)) == mask
    with pytest.raises(ConfigError, match="add up to"):
        steps_mask(*bins, total_steps=len(mask) + 1)


@given(st.integers(1, 400))
@settings(deadline=None, max_examples=40)
def test_policies_fit_any_number_of_steps_and_keep_their_order(total: int) -> None:
    masks = [steps_mask(mask_policy=name, total_steps=total) for name in ("slow", "medium", "fast", "ultra")]
    assert {len(mask) for mask in masks} == {total}
    assert all(mask[0] == mask[-1] == 1 for mask in masks)
    computed = [sum(mask) for mask in masks]
    assert computed == sorted(computed, reverse=True)


@given(MASKS)
@settings(deadline=None, max_examples=40)
def test_a_mask_in_digits_is_the_mask(mask: list[int]) -> None:
    digits = "".join(map(str, mask))
    # Without quotes YAML reads a number, which is long.
    for written in (f'"{digits}"', digits, str(mask), f"[{','.join(digits)},]"):
        loaded = load_configs(f"cache_config: {{steps_computation_mask: {written}}}")
        assert loaded["cache_config"].steps_computation_mask == tuple(mask)


PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
TREES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@given(st.dictionaries(st.text(max_size=8), TREES, min_size=1, max_size=4))
@example(
    {"1e-3": ["1e-3", 1e-3, "no", "2020-01-01", "\x85", "a\u2028b", "", " ", "0o7", "1_0"], "\x85": None}
)
@settings(deadline=None)
def test_yaml_and_json_are_read_alike(tree: dict[str, Any]) -> None:
    """Numbers stay numbers, and words words."""
    written = yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    assert repr(parse("yaml", written)) == repr(tree)
    assert repr(parse("json", json.dumps(tree))) == repr(tree)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text_is_plain_data_or_refused(text: str) -> None:
    try:
        found = parse("text", text)
    except ConfigError:
        return
    assert json.loads(json.dumps(found)) == found


@given(st.integers(2, 24), st.integers(0, 2**32 - 1), st.data())
@settings(deadline=None, max_examples=30)
def test_a_placed_schedule_has_the_steps_that_it_was_given(
    steps: int, seed: int, data: st.DataObject
) -> None:
    rows = torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    trajectory = Trajectory(tuple(1.0 - step / steps for step in range(steps + 1)), rows @ rows.T)
    computed = data.draw(st.integers(2, steps))
    placed = trajectory.schedule(computed)
    assert placed[0] == 0
    assert list(placed) == sorted(set(placed))
    assert len(placed) == computed
    assert placed[-1] < steps
