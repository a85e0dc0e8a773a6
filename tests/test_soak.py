"""bench/soak.py in small: a few runs in a row give what each gives alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import soak


def test_runs_in_a_row_give_what_each_gives_alone(tmp_path: Path) -> None:
    found = soak.soak(12, tmp_path, every=6)
    assert len({soak.Setup.drawn(number).config for number in range(12)}) > 4
    for number in (3, 7, 11):
        alone = soak.digest(soak.take(soak.pipeline(), soak.Setup.drawn(number), tmp_path))
        assert found.digests[number] == alone
    # Behind disable_cache nothing of the runs is left but what a run leaves in the scheduler.
    first, last = found.tensors.values()
    assert abs(last - first) < 1_000


def test_every_kind_of_run_is_drawn() -> None:
    setups = [soak.Setup.drawn(number) for number in range(300)]
    assert {setup.ending for setup in setups} == set(soak.Ending)
    assert {setup.config for setup in setups} == set(soak.CONFIGS)
    assert all(any(getattr(setup, name) for setup in setups) for name in ("lora", "by_file", "disabled"))


def test_a_broken_run_has_no_latents(tmp_path: Path) -> None:
    pipe = soak.pipeline()
    for ending in (soak.Ending.ABORTED, soak.Ending.BROKEN):
        number = next(n for n in range(500) if soak.Setup.drawn(n).ending is ending)
        assert soak.take(pipe, soak.Setup.drawn(number), tmp_path) == []


def test_the_slope_and_its_error() -> None:
    assert soak.slope([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx((2.0, 0.0))
    rise, error = soak.slope([0, 1, 2, 3], [0, 1, 0, 1])
    assert (rise, error) == pytest.approx((0.2, 0.2828427))


def test_tensors_are_counted() -> None:
    before = soak.tensor_bytes()
    kept = torch.zeros(1_000)
    views = [kept[:10], kept.view(10, 100)]
    assert soak.tensor_bytes() - before == kept.nbytes
    del kept, views
    assert soak.tensor_bytes() == before
