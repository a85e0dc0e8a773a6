"""Two one-thread processes instead of one with two threads, which on a small CPU are several times slower.

Each process takes its own batches and its own optimiser steps; every few steps the parameters are
averaged over gloo.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


def launch(worker: Callable[..., None], world: int, port: int, *args: Any) -> None:
    """Runs `worker(rank, world, *args)` in `world` processes; in this one when `world` is 1."""
    if world == 1:
        _enter(0, worker, 1, port, args)
    else:
        mp.spawn(_enter, (worker, world, port, args), nprocs=world)  # type: ignore[no-untyped-call]


def _enter(rank: int, worker: Callable[..., None], world: int, port: int, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if world > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        worker(rank, world, *args)
    finally:
        if world > 1:
            dist.destroy_process_group()


@torch.no_grad()
def average(tensors: Iterable[Tensor], world: int) -> None:
    """Replaces the tensors by their mean over the processes, in one collective."""
    tensors = list(tensors)
    if world == 1 or not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= world
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def agree(value: float, world: int) -> float:
    """The largest value of all processes: they must end together or the next collective would hang."""
    if world == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)
