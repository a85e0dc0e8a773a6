"""Pipelines in Ray actors: every request is answered once, in order, whatever dies."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")


class Counting:
    """A pipeline that writes down every request, and ends its process at one of them, once."""

    def __init__(self, folder: Path, dies_at: int | None = None, always: bool = False) -> None:
        self.folder, self.dies_at, self.always = folder, dies_at, always

    def __call__(self, number: int) -> int:
        with open(self.folder / "log", "a") as log:
            log.write(f"{number} {os.getpid()}\n")
        mark = self.folder / "died"
        if number == self.dies_at and (self.always or not mark.exists()):
            mark.touch()
            os._exit(1)
        if number < 0:
            raise ValueError("a negative number")
        return 10 * number


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    # Ray leaves files and sockets of its own open.
    ray.init(
        num_cpus=4,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=80 * 2**20,
    )
    yield
    ray.shutdown()


def counting(folder: Path, replicas: int = 2, ranks: int = 1, **details: Any) -> Any:
    from cache_dit.parallelism.ray import RayPipeline

    attempts = details.pop("max_attempts", 3)
    load = functools.partial(Counting, folder, **details)
    return RayPipeline(load, replicas, ranks, max_attempts=attempts)


def numbers(*values: int) -> list[dict[str, int]]:
    return [{"number": value} for value in values]


def test_forty_requests_with_an_actor_that_dies(tmp_path: Path) -> None:
    with counting(tmp_path, dies_at=17) as pipe:
        assert pipe(numbers(*range(40))) == [10 * number for number in range(40)]
    done = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(int(number) for number, _ in done) == sorted([*range(40), 17])
    assert len({process for _, process in done}) == 3
