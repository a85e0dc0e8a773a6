"""Decisions of ranks that share a sample: those of one process, on every rank, without a hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_worker_context import METHODS_OF, STEPS
from test_parallel_context import TOLERANCE, Results, everywhere, results
from tiny.runs import small_flux

import cache_dit
from cache_dit.caching.maths.change import relative_l1
from cache_dit.errors import ConfigError
from cache_dit.parallelism import ParallelismConfig

__all__ = ["results"]

WAIT = 20


@pytest.mark.parametrize(
    ("size", "case"),
    [
        *((size, f"cached {method}") for size, methods in METHODS_OF.items() for method in methods),
        *((4, f"hybrid {method}") for method in METHODS_OF[4]),
    ],
)
def test_a_run_with_a_cache_is_that_of_one_process(results: Results, size: int, case: str) -> None:
    outcome = everywhere(results, size, case)
    assert outcome["together"] == outcome["alone"]
    assert outcome["error"] <= TOLERANCE
    assert len(outcome["alone"]) == STEPS
    assert {"C", "S"} == set(outcome["alone"])


@pytest.mark.parametrize("name", ["QwenImageTransformer2DModel", "WanTransformer3DModel"])
def test_the_block_at_which_the_sequence_is_cut_may_be_skipped(results: Results, name: str) -> None:
    outcome = everywhere(results, 2, "skips_block_0")[name]
    assert outcome["together"] == outcome["alone"] == "CSCS"
    assert outcome["error"] <= TOLERANCE


def test_ranks_that_would_disagree_do_not_hang(results: Results) -> None:
    ranks = results[2]["disagreement"]
    assert [rank["together"] for rank in ranks] == [50, 50]
    # All thresholds lie between what the two ranks would have measured, each for itself.
    assert [rank["apart"] for rank in ranks] == [50, 50]
    assert ranks[0]["change"] < ranks[1]["change"]


def test_replicas_do_not_vote(results: Results) -> None:
    ranks = results[4]["replicas"]
    assert all(rank["together"] == rank["alone"] for rank in ranks)
    assert ranks[0]["alone"] != ranks[2]["alone"]


def test_an_engine_of_the_user_has_its_decisions_alone_taken_together(results: Results) -> None:
    ranks = results[4]["engine"]
    assert all(rank["same"] for rank in ranks)
    assert ranks[0]["decisions"] == ranks[1]["decisions"]
    assert ranks[2]["decisions"] == ranks[3]["decisions"]


def test_sums_are_added_up_and_not_means() -> None:
    current, reference = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([1.0, 1.0, 1.0])
    other = torch.tensor([7.0, 5.0])  # the sums of another rank's difference and reference
    assert relative_l1(current, reference, reduce=lambda sums: sums + other) == (5.0 + 7.0) / (3.0 + 5.0)


def test_without_processes_there_is_an_error_and_no_change() -> None:
    model = small_flux()
    with pytest.raises(ConfigError, match=r"torch.distributed is not initialised.*torchrun"):
        cache_dit.enable_cache(model, parallelism_config=ParallelismConfig(ulysses_size=2))
    assert "_cache_dit" not in " ".join(vars(model))


def test_a_killed_rank_ends_the_others(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("parallel_worker_killed.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(worker), str(tmp_path / "store"), str(rank), str(WAIT)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "ready\n"
        ranks[1].kill()
        said, _ = ranks[0].communicate(timeout=3 * WAIT)
        seconds, error = said.split()
        assert float(seconds) < WAIT + 5
        assert error.endswith("Error")
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
            assert rank.stdout is not None
            rank.stdout.close()
