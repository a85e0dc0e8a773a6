"""A pipeline on many machines or GPUs by Ray: requests in, results out in order, dead actors replaced."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cache_dit.caching.options import whole
from cache_dit.errors import CacheDiTError

try:
    import ray
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; install it: pip install 'cache-dit[ray]'.", name="ray") from error

_GRACE = 10.0
"""Seconds until Ray must have noticed that an actor has died."""


def call_pipeline(pipe: Any, request: Mapping[str, Any]) -> Any:
    """What is done with a request unless something else is said: `pipe(**request)`."""
    return pipe(**request)


class RayPipeline:
    """Copies of a pipeline in Ray actors: data parallel, and context parallel where a copy has several ranks.

    Every request is given to the next copy that is free. When an actor dies, the others of its copy are
    ended, a new copy is made, and its request is done again; each result is handed out once. Ray must be
    installed (`pip install cache-dit[ray]`); call `ray.init(...)` before, or Ray starts on this machine.

    Args:
        load: Makes the pipeline, called once in every actor, with caching and parallelism enabled as wanted:
            what `torchrun` would run. It is sent by Ray, so what it refers to must be importable there.
        num_replicas: Copies of the pipeline.
        ranks_per_replica: Actors of a copy. With more than 1 they form a process group
            (`torch.distributed` is initialised before `load`), and all get the same requests; the result is
            that of rank 0.
        call: What is done with a request: the pipeline and the request to a result, which is sent back.
            Default: `pipe(**request)`.
        num_cpus: CPU cores that Ray sets aside for an actor.
        num_gpus: GPUs that Ray sets aside for an actor; may be a fraction.
        max_attempts: After so many actors have died over one request, it is an error.

    Raises:
        ConfigError: A number is below 1.
        CacheDiTError: An actor could not load the pipeline.

    Examples:
        >>> with RayPipeline(load, num_replicas=2, num_gpus=1) as pipe:
        ...     outputs = pipe([{"prompt": prompt} for prompt in prompts])
    """

    def __init__(
        self,
        load: Callable[[], Any],
        num_replicas: int = 1,
        ranks_per_replica: int = 1,
        *,
        call: Callable[[Any, Any], Any] = call_pipeline,
        num_cpus: float = 1,
        num_gpus: float = 0,
        max_attempts: int = 3,
    ) -> None:
        for name in ("num_replicas", "ranks_per_replica", "max_attempts"):
            whole(1)(name, locals()[name])
        self._max_attempts = max_attempts
        self._load, self._call, self._ranks = load, call, ranks_per_replica
        self._actor = ray.remote(_Rank).options(num_cpus=num_cpus, num_gpus=num_gpus)
        self._replicas = [self._start() for _ in range(num_replicas)]
        try:
            ray.get([started for replica in self._replicas for started in replica.started])
        except ray.exceptions.RayError as error:
            self.close()
            raise CacheDiTError(f"An actor could not load the pipeline: {error}") from error

    def __call__(self, requests: Iterable[Any]) -> list[Any]:
        """The results of all requests, in their order; see `stream`."""
        return list(self.stream(requests))

    def stream(self, requests: Iterable[Any]) -> Iterator[Any]:
        """The results in the order of the requests, each as soon as it and those before it are there.

        Requests are taken from the iterable as copies become free. One stream runs at a time.

        Raises:
            CacheDiTError: The pipeline raised an error for a request, or its actors died too often.
        """
        waiting = map(_Task, itertools.count(), requests)
        again: collections.deque[_Task] = collections.deque()
        running: dict[int, _Task] = {}
        done: dict[int, Any] = {}
        turn = 0
        while True:
            for place, replica in enumerate(self._replicas):
                task = None if place in running else again.popleft() if again else next(waiting, None)
                if task is not None:
                    running[place] = task.begin(replica)
            if not running:
                return
            (ready,), _ = ray.wait([result for task in running.values() for result in task.awaited])
            place, task = next(item for item in running.items() if ready in item[1].awaited)
            if self._settled(place, task, ready, again):
                del running[place]
                if not task.awaited:
                    done[task.id] = task.result
            while turn in done:
                yield done.pop(turn)
                turn += 1

    def close(self) -> None:
        """End all actors. The object cannot be used afterwards."""
        for replica in self._replicas:
            replica.kill()
        self._replicas = []

    def __enter__(self) -> RayPipeline:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _settled(self, place: int, task: _Task, ready: Any, again: collections.deque[_Task]) -> bool:
        """Note what an actor has returned; whether its copy has nothing more to do with the task."""
        try:
            task.note(ready)
        except ray.exceptions.RayError as error:
            died = isinstance(error, ray.exceptions.RayActorError) or task.lost_a_rank()
            # The other ranks of the copy may be waiting for this one for ever.
            self._replace(place)
            if not died:
                raise CacheDiTError(f"Request {task.id} failed: {error}") from error
            if task.attempts >= self._max_attempts:
                raise CacheDiTError(
                    f"Request {task.id} was given up: its actors died {task.attempts} times. Look for memory "
                    "that is used up, or give a higher max_attempts."
                ) from error
            again.append(task)
            return True
        return not task.awaited

    def _start(self) -> _Replica:
        ranks: list[Any] = [self._actor.remote(self._load, self._call) for _ in range(self._ranks)]
        meeting = ranks[0].meeting_point.remote(self._ranks) if self._ranks > 1 else None
        started = [actor.start.remote(rank, self._ranks, meeting) for rank, actor in enumerate(ranks)]
        return _Replica(ranks, started)

    def _replace(self, place: int) -> None:
        self._replicas[place].kill()
        self._replicas[place] = self._start()


@dataclass(slots=True)
class _Replica:
    """The actors of one copy, and what tells that they have loaded the pipeline."""

    ranks: list[Any]
    started: list[Any]

    def kill(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)


@dataclass(slots=True)
class _Task:
    """A request on its way."""

    id: int
    request: Any
    attempts: int = 0
    first: Any = None
    awaited: list[Any] = field(default_factory=list)
    result: Any = None

    def begin(self, replica: _Replica) -> _Task:
        self.attempts += 1
        self.awaited = [rank.run.remote(self.request, rank is replica.ranks[0]) for rank in replica.ranks]
        self.first = self.awaited[0]
        return self

    def note(self, ready: Any) -> None:
        value = ray.get(ready)
        self.awaited.remove(ready)
        if ready is self.first:
            self.result = value

    def lost_a_rank(self) -> bool:
        """Whether an actor has died: then the others' collectives end with errors, mostly earlier."""
        ended, _ = ray.wait(self.awaited, num_returns=len(self.awaited), timeout=_GRACE)
        for result in ended:
            try:
                ray.get(result)
            except ray.exceptions.RayActorError:
                return True
            except ray.exceptions.RayError:
                continue
        return False


class _Rank:
    """An actor: one process with a pipeline."""

    def __init__(self, load: Callable[[], Any], call: Callable[[Any, Any], Any]) -> None:
        self._load, self._call = load, call
        self._pipe: Any = None
        self._store: Any = None

    def meeting_point(self, size: int) -> tuple[str, int]:
        """Open the store where the ranks of a copy meet, and say where it is; asked of the first one."""
        from torch._C._distributed_c10d import TCPStore

        host = ray.util.get_node_ip_address()
        self._store = TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def start(self, rank: int, size: int, meeting_point: tuple[str, int] | None) -> None:
        """Form the process group and load the pipeline."""
        if meeting_point is not None:
            import torch
            import torch.distributed as dist
            from torch._C._distributed_c10d import TCPStore

            store = self._store or TCPStore(*meeting_point, size, is_master=False)
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        self._pipe = self._load()

    def run(self, request: Any, wanted: bool) -> Any:
        """Do a request; the result is sent back by one rank only."""
        result = self._call(self._pipe, request)
        return result if wanted else None
