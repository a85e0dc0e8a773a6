"""bench/soak.py in small: a few runs in a row give what each gives alone, and the counts count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import alive
import soak
import soak_runs
from soak_runs import Ending, Setup


def test_runs_in_a_row_give_what_each_gives_alone(tmp_path: Path) -> None:
    found = soak.soak(soak_runs.pipeline(), 12, tmp_path, every=6)
    assert len({Setup.drawn(number).config for number in range(12)}) > 4
    for number in (3, 7, 11):
        alone = soak.digest(soak_runs.take(soak_runs.pipeline(), Setup.drawn(number), tmp_path))
        assert found.digests[number] == alone
    # Behind disable_cache nothing of the runs is left but what a run leaves in the scheduler.
    first, last = found.tensors
    assert abs(last - first) < 1_000
    assert all(found.memory)


def test_every_kind_of_run_is_drawn() -> None:
    setups = [Setup.drawn(number) for number in range(300)]
    assert {setup.ending for setup in setups} == set(Ending)
    assert {setup.config for setup in setups} > set(soak_runs.CONFIGS)
    assert all(any(getattr(setup, name) for setup in setups) for name in soak.MARKS)


@pytest.mark.parametrize("ending", [Ending.ABORTED, *soak_runs.RAISED])
def test_a_broken_run_has_no_latents(tmp_path: Path, ending: Ending) -> None:
    number = next(
        n for n in range(900) if (one := Setup.drawn(n)).ending is ending and one.at == 1 and one.images == 1
    )
    assert soak_runs.take(soak_runs.pipeline(), Setup.drawn(number), tmp_path) == []


def test_one_of_two_threads_dies(tmp_path: Path) -> None:
    pipe = soak_runs.pipeline()
    for ending, count in ((Ending.THREADS, 2), (Ending.THREAD_DIES, 1)):
        number = next(n for n in range(900) if Setup.drawn(n).ending is ending)
        assert len(soak_runs.take(pipe, Setup.drawn(number), tmp_path)) == count


def test_a_block_that_is_called_too_seldom_has_not_failed() -> None:
    number = next(n for n in range(900) if Setup.drawn(n).ending is Ending.BROKEN)
    found = soak.Soaked(*([1] * (number + 1) for _ in range(5)))  # type: ignore[arg-type]  # lists do
    assert soak._ended(Setup.drawn(number), found) is Ending.DONE
    found.digests[number] = 0
    assert soak._ended(Setup.drawn(number), found) is Ending.BROKEN


def test_the_slope_and_its_error() -> None:
    assert alive.slope([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx((2.0, 0.0))
    rise, error = alive.slope([0, 1, 2, 3], [0, 1, 0, 1])
    assert (rise, error) == pytest.approx((0.2, 0.2828427))


def test_a_rise_is_told_from_noise() -> None:
    assert alive.rise([7] * 35) == (0.0, 0.0)
    noise = [(number * 37) % 11 for number in range(200)]
    rise, half = alive.rise(noise)
    assert abs(rise) < half
    rise, half = alive.rise([value + 3 * number for number, value in enumerate(noise)])
    assert rise - half < 3.0 < rise + half
    assert half < 0.1


def test_tensors_are_counted() -> None:
    before = alive.tensor_bytes()
    kept = torch.zeros(1_000)
    views = [kept[:10], kept.view(10, 100)]
    assert alive.tensor_bytes() - before == kept.nbytes
    del kept, views
    assert alive.tensor_bytes() == before


def test_the_heap_is_counted() -> None:
    before = alive.in_heap()
    kept = torch.zeros(1_000_000)
    assert kept.nbytes <= alive.in_heap() - before < kept.nbytes + 100_000
    del kept
    assert alive.in_heap() - before < 100_000
