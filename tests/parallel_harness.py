"""Run cases in several processes under gloo: one start for all cases of a module.

A module of cases has a function `cases(size)` that returns, by name, functions without arguments; every
process calls all of them in order. What they return, or the error that they raise, comes back for each rank.
The ranks are forks of one process, since importing what they need takes longer than most cases.
"""

from __future__ import annotations

import datetime
import fcntl
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
    found: dict[str, list[Any]] = json.loads(results.read_text())
    return found


def _run(module: str, size: int) -> dict[str, list[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        ranks = subprocess.Popen(
            [sys.executable, __file__, module, str(size), folder],
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        limit = threading.Timer(LIMIT, os.killpg, (ranks.pid, signal.SIGKILL))
        limit.start()
        said = ranks.communicate()[0].decode(errors="replace")
        limit.cancel()
        written = [Path(folder, f"{rank}.json") for rank in range(size)]
        if not all(path.exists() for path in written):
            raise RuntimeError(f"{module} failed with {size} ranks:\n{said[-5000:]}")
        values = [json.loads(path.read_text()) for path in written]
    return {name: [value[name] for value in values] for name in values[0]}


def once(compute: Callable[[], Made]) -> Made:
    """What a case computes without the others, computed by rank 0 for all of them."""
    import torch.distributed as dist

    made: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            made[0] = compute()
        except Exception:  # noqa: BLE001  # raised on all ranks, so that none waits for another
            made[1] = traceback.format_exc()
    dist.broadcast_object_list(made)
    if made[1] is not None:
        raise RuntimeError(made[1])
    result: Made = made[0]
    return result


def main(module: str, size: int, folder: str) -> None:
    importlib.import_module(module)
    ranks = []
    for rank in range(size):
        process = os.fork()
        if process == 0:
            try:
                _work(module, size, folder, rank)
            except BaseException:  # noqa: BLE001  # the others end by themselves then
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(0)
        ranks.append(process)
    for process in ranks:
        os.waitpid(process, 0)


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
        except Exception:  # noqa: BLE001  # told to the test that asks for this case
            found[name] = {"raised": traceback.format_exc()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
