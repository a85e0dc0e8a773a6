"""Which request a forward belongs to: values in context variables, so that nothing is shared by accident."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, Self
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

from cache_dit.caching.config import CacheConfig, CalibratorConfig
from cache_dit.caching.options import Override, instance_of, optional, whole
from cache_dit.errors import ConfigError


class Noise(NamedTuple):
    """The noise schedule of a run.

    Attributes:
        levels: Noise level before every step, from 1 (pure noise) to 0.
        strides: What the sampler multiplies the output of every step by when it moves the latent; None where
            its move is not one multiple of the output.
    """

    levels: tuple[float, ...]
    strides: tuple[float, ...] | None


class Timeline(Protocol):
    """What a pipeline knows of the run that it is in.

    That is how many steps it has, once they are set, a number that is constant within a step and grows over
    the run, and the noise schedule; None where there is none.
    """

    def total_steps(self) -> int | None: ...
    def position(self) -> int | None: ...
    def noise(self) -> Noise | None: ...


class Request:
    """One image or video in the making: forwards inside `with request:` share a cache of their own.

    A pipeline opens a request for each of its calls by itself. Whoever calls a transformer step by step, for
    many requests in turn, makes one for each and enters it around every forward, in any thread or task. The
    forwards of one request follow one another; those of different requests may run at the same time.

        >>> request = Request(num_inference_steps=28)
        >>> with request:                # as often as needed
        ...     noise = transformer(...)

    What is cached for a request is freed after its last step where `num_inference_steps` is known, with
    `close()`, and with the object.

    Args:
        num_inference_steps: Steps of the run. None (default): as in the configuration, or unknown.
        cache_config: Configuration of this request, or `DBCacheConfig().reset(...)` to change the fields
            named in that of the transformer; checked against the model at the first forward. None (default):
            that of the transformer.
        calibrator_config: Calibrator of this request. None (default): that of the transformer.
        sigmas: Noise levels of the steps, from 1 to 0, for what is forecast along them. With one more than
            there are steps, the last one mostly 0, the sampler is said to be Euler's (`x += (sigma_next -
            sigma) * v`). None (default): nothing is known.

    Raises:
        ConfigError: `num_inference_steps` is below 1, or `sigmas` does not fit it.
        ConfigTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        num_inference_steps: int | None = None,
        cache_config: CacheConfig | Override | None = None,
        calibrator_config: CalibratorConfig | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        optional(whole(1))("num_inference_steps", num_inference_steps)
        optional(instance_of(CacheConfig, Override))("cache_config", cache_config)
        optional(instance_of(CalibratorConfig))("calibrator_config", calibrator_config)
        self.num_inference_steps = num_inference_steps
        self.cache_config = cache_config
        self.calibrator_config = calibrator_config
        self.noise = None if sigmas is None else _noise(tuple(map(float, sigmas)), num_inference_steps)
        self.timeline: Timeline | None = None
        self.implicit = False
        self.states: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self.attachments: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    @property
    def configured(self) -> bool:
        """Whether it has a configuration of its own."""
        return self.cache_config is not None or self.calibrator_config is not None

    def close(self) -> None:
        """Free what is cached for the request, as when it is aborted; a later forward begins a new run."""
        self.states.clear()

    def __enter__(self) -> Self:
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        # By search and not by a token: two threads or tasks may have entered the same request.
        entered = _entered.get()
        last = max((place for place, request in enumerate(entered) if request is self), default=len(entered))
        _entered.set(entered[:last] + entered[last + 1 :])


def _noise(sigmas: tuple[float, ...], steps: int | None) -> Noise:
    if steps is None or len(sigmas) - steps not in (0, 1):
        raise ConfigError(
            f"sigmas has {len(sigmas)} entries with num_inference_steps={steps}; give one for each step, or "
            "one more."
        )
    whole = len(sigmas) > steps
    strides = tuple(after - before for before, after in pairwise(sigmas)) if whole else None
    return Noise(sigmas[:steps], strides)


class LiveRuns:
    """The runs that keep state in one transformer, and how many of them there may be.

    Args:
        limit: Most runs; -1: no limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._runs: WeakSet[Any] = WeakSet()
        self._lock = threading.Lock()

    def admit(self, run: object, model: str) -> None:
        """Count a run that begins.

        Raises:
            ConfigError: There are as many as there may be.
        """
        with self._lock:
            if 0 <= self._limit <= len(self._runs):
                raise ConfigError(
                    f"max_live_requests is {self._limit} and as many requests keep state in {model}, so no "
                    "other can begin. Let some end first (a request ends after the last step where "
                    "Request(num_inference_steps=...) tells it, with close(), and with the object) or "
                    "give a larger max_live_requests to enable_cache, -1 for no limit."
                )
            self._runs.add(run)

    def release(self, run: object) -> None:
        """Count a run no more that has ended; nothing happens where it was not counted."""
        with self._lock:
            self._runs.discard(run)


_entered: ContextVar[tuple[Request, ...]] = ContextVar("cache_dit_requests", default=())
_implicit: ContextVar[tuple[ReferenceType[Any], Request] | None] = ContextVar(
    "cache_dit_implicit_request", default=None
)
branch_name: ContextVar[str | None] = ContextVar("cache_dit_branch", default=None)
"""Name of the CFG branch that the caller announced, if it did."""


def current_request() -> Request:
    """The request entered last in this thread or task, or the one for all its unannounced forwards."""
    entered = _entered.get()
    if entered:
        return entered[-1]
    kept, owner = _implicit.get(), _thread_or_task()
    # Tasks, and threads started from one, get a copy of the context variables: what another one has put
    # there is not theirs.
    if kept is not None and kept[0]() is owner:
        return kept[1]
    request = Request()
    request.implicit = True
    _implicit.set((ref(owner), request))
    return request


def _thread_or_task() -> object:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        # No event loop runs in this thread.
        task = None
    return task or threading.current_thread()
