"""Run cases in several processes under gloo: one start of the ranks for all cases of a module.

A module of cases has a function `cases(size)` that returns, by name, functions without arguments; every
process calls all of them in order. What they return, or the error that they raise, comes back for each rank.
The ranks are forks of one process, since importing what they need takes longer than most cases. That process
lives as long as the one that runs the tests.
"""

from __future__ import annotations

import atexit
import datetime
import fcntl
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

Made = TypeVar("Made")
LIMIT = 1200
"""Seconds for all cases together."""
PATIENCE = 200
"""Seconds that a collective waits for the other ranks."""


def outcomes(module: str, size: int, folder: Path) -> dict[str, list[Any]]:
    """What every rank returned in each case; computed once, however many test processes ask for it."""
    results = folder / f"{module}-{size}.json"
    with open(folder / f"{module}-{size}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not results.exists():
            results.write_text(json.dumps(_run(module, size)))
    return Told(json.loads(results.read_text()))


def _run(module: str, size: int) -> dict[str, list[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        limit = threading.Timer(LIMIT, os.killpg, (server.pid, signal.SIGKILL))
        limit.start()
        print(json.dumps([module, size, folder]), file=server.stdin, flush=True)
        ended = server.stdout.readline() == ""
        limit.cancel()
        if ended:
            _server.cache_clear()
        written = [Path(folder, f"{rank}.json") for rank in range(size)]
        if not all(path.exists() for path in written):
            said = Path(folder, "said").read_text(errors="replace")
            raise RuntimeError(f"{module} failed with {size} ranks:\n{said[-5000:]}")
        values = [json.loads(path.read_text()) for path in written]
    return {name: [value[name] for value in values] for name in values[0]}


class Told(dict[str, list[Any]]):
    """What every rank says of each case; a case that an older diffusers cannot have skips its test."""

    def __getitem__(self, name: str) -> list[Any]:
        ranks = super().__getitem__(name)
        if isinstance(ranks[0], dict) and "skipped" in ranks[0]:
            pytest.skip(ranks[0]["skipped"])
        return ranks


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that the ranks are forks of."""
    server = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    # It ends with its input.
    atexit.register(server.communicate)
    return server


def once(compute: Callable[[], Made]) -> Made:
    """What a case computes without the others, computed by rank 0 for all of them."""
    import torch.distributed as dist

    made: list[Any] = [None, None, None]
    if dist.get_rank() == 0:
        try:
            made[0] = compute()
        except pytest.skip.Exception as skipped:  # like what follows
            made[2] = str(skipped)
        except Exception:  # noqa: BLE001  # raised on all ranks, so that none waits for another
            made[1] = traceback.format_exc()
    dist.broadcast_object_list(made)
    if made[1] is not None:
        raise RuntimeError(made[1])
    if made[2] is not None:
        pytest.skip(made[2])
    result: Made = made[0]
    return result


def main() -> None:
    """Fork the ranks for every request that comes in a line, and say when they have ended."""
    diffusers = importlib.import_module("diffusers")
    for tiny in importlib.import_module("tiny.models").TINY_MODELS:
        # Modules of models are imported when they are first asked for: here, and not by every rank.
        getattr(diffusers, tiny.name, None)
    for request in sys.stdin:
        module, size, folder = json.loads(request)
        ranks = []
        for rank in range(size):
            process = os.fork()
            if process == 0:
                _fork(module, size, folder, rank)
            ranks.append(process)
        for process in ranks:
            os.waitpid(process, 0)
        print("done", flush=True)


def _fork(module: str, size: int, folder: str, rank: int) -> None:
    said = os.open(Path(folder, "said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        _work(module, size, folder, rank)
    except BaseException:  # noqa: BLE001  # the others end by themselves then
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(0)


def _work(module: str, size: int, folder: str, rank: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )
    found = {}
    for name, case in importlib.import_module(module).cases(size).items():
        print(name, flush=True)  # the last one is where a run that had to be ended was
        try:
            found[name] = case()
        except pytest.skip.Exception as skipped:
            found[name] = {"skipped": str(skipped)}
        except Exception:  # noqa: BLE001  # told to the test that asks for this case
            found[name] = {"raised": traceback.format_exc()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
