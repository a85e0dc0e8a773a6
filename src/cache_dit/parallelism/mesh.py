"""The processes that share a sample, as one device mesh."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from cache_dit.errors import ConfigError
from cache_dit.parallelism.config import SIZES, ParallelismConfig

DIMENSIONS = ("ring", "ulysses", "tp")

# The groups of this process, by the one that they are parts of, for as long as that lasts. None is destroyed
# before: torch gives the name of a destroyed group to the next of the same ranks, which would then look for
# each other at the old addresses.
_Formed = dict[tuple[tuple[int, ...], datetime.timedelta], dist.ProcessGroup]
_FORMED: WeakKeyDictionary[dist.ProcessGroup, _Formed] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class Sharing:
    """The ranks that work on one sample.

    Attributes:
        config: With numbers for all sizes.
        group: All of them; what decisions are reduced over.
        mesh: Their mesh, with the dimensions "ring", "ulysses" and "tp", some of which may be 1; None where
            nothing is split.
        context: Those that share the sequence, in the order of the shards; None where it is not split.
    """

    config: ParallelismConfig
    group: dist.ProcessGroup
    mesh: DeviceMesh | None
    context: dist.ProcessGroup | None

    @property
    def label(self) -> str:
        """In short form, such as `Ulysses2_TP2`."""
        names = {"ring_size": "Ring", "ulysses_size": "Ulysses", "tp_size": "TP"}
        sizes = {name: getattr(self.config, size) for size, name in names.items()}
        parts = [f"{name}{size}" for name, size in sizes.items() if size != 1 and self.mesh is not None]
        return "_".join(parts) or f"Group{dist.get_world_size(self.group)}"

    def part(self, dimension: str) -> dist.ProcessGroup:
        """The group of this rank along one dimension of the mesh."""
        assert self.mesh is not None  # the caller has split something
        return self.mesh.get_group(dimension)


def share(config: ParallelismConfig) -> Sharing:
    """Form the groups of this process; every rank that shares the sample has to call it.

    With a `process_group` exactly its ranks take part, in a run of processes of which others may do
    something else; without one the world is cut into replicas of as many ranks in a row as the sizes need.

    Raises:
        ConfigError: torch.distributed is not initialised, or the sizes do not fit the processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "parallelism_config is given but torch.distributed is not initialised; start the program with "
            "torchrun and call torch.distributed.init_process_group() before enable_cache."
        )
    group = config.process_group
    if all(getattr(config, name) is None for name in SIZES):
        everyone: Any = group or dist.group.WORLD
        return Sharing(config.resolved(dist.get_world_size(everyone)), everyone, None, None)
    ranks = list(range(dist.get_world_size())) if group is None else dist.get_process_group_ranks(group)
    fixed = config.resolved(len(ranks))
    shape = [getattr(fixed, name) for name in SIZES]
    count = shape[0] * shape[1] * shape[2]
    if group is not None and count != len(ranks):
        raise ConfigError(
            f"process_group has {len(ranks)} ranks but the sizes make {count}; give sizes whose product is "
            f"{len(ranks)}, or 'auto' for one of them."
        )
    first = ranks.index(dist.get_rank()) // count * count
    mine = torch.tensor(ranks[first : first + count]).view(shape)
    return _groups(fixed, mine, group)


def _groups(config: ParallelismConfig, ranks: torch.Tensor, group: dist.ProcessGroup | None) -> Sharing:
    # torch 2.6 raises where there is none.
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = "cpu" if device is None or "gloo" in str(dist.get_backend(group)) else device.type
    given: Any = group or dist.group.WORLD
    # That of the user, where torch would take its default: a rank that died must not hold the others up.
    timeout = given._get_backend(torch.device(kind)).options._timeout
    formed = _FORMED.setdefault(given, {})

    def group_of(members: torch.Tensor) -> dist.ProcessGroup:
        key = tuple(members.tolist())
        if key == tuple(dist.get_process_group_ranks(given)):
            return given
        if (key, timeout) not in formed:
            # Only its own ranks have to call: the others may be no replicas at all.
            with _unbound():
                made = dist.new_group(list(key), timeout=timeout, use_local_synchronization=True)
            formed[key, timeout] = made
        return formed[key, timeout]

    here = (ranks == dist.get_rank()).nonzero()[0].tolist()
    lines = []
    for dimension in range(ranks.ndim):
        index: list[int | slice] = list(here)
        index[dimension] = slice(None)
        lines.append(group_of(ranks[tuple(index)]))
    mesh = DeviceMesh.from_group(lines, kind, mesh=ranks, mesh_dim_names=DIMENSIONS)
    plane = ranks[:, :, here[2]].flatten()
    context = group_of(plane) if len(plane) > 1 else None
    whole = group_of(ranks.flatten())
    return Sharing(config, whole, mesh, context)


@contextmanager
def _unbound() -> Iterator[None]:
    """New groups are connected when they are first used.

    Where `init_process_group` was given a device, torch splits them off the group of all processes at once,
    which all of these must take part in.
    """
    world: Any = dist.group.WORLD
    bound, world.bound_device_id = world.bound_device_id, None
    try:
        yield
    finally:
        world.bound_device_id = bound
