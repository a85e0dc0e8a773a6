"""Which request a forward belongs to: values in context variables, so that nothing is shared by accident."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Protocol, Self
from weakref import ReferenceType, WeakKeyDictionary, ref

from cache_dit.errors import ConfigError


class Timeline(Protocol):
    """What a pipeline knows of the run that it is in."""

    def total_steps(self) -> int | None:
        """Steps of the run, once they are set."""
        ...

    def position(self) -> int | None:
        """A number that is constant within a step and grows over a run; None where there is none."""
        ...


class Request:
    """One image or video in the making: forwards inside `with request:` share a cache of their own.

    A pipeline opens a request for each of its calls by itself. Whoever calls a transformer step by step, for
    many requests in turn, makes one for each and enters it around every forward, in any thread or task:

        >>> request = Request(num_inference_steps=28)
        >>> with request:                # as often as needed
        ...     noise = transformer(...)

    What is cached for a request is freed with the object.

    Args:
        num_inference_steps: Steps of the run; None for unknown.

    Raises:
        ConfigError: `num_inference_steps` is below 1.
    """

    def __init__(self, num_inference_steps: int | None = None) -> None:
        if num_inference_steps is not None and num_inference_steps < 1:
            raise ConfigError(f"num_inference_steps is {num_inference_steps}; give 1 or more, or None.")
        self.num_inference_steps = num_inference_steps
        self.timeline: Timeline | None = None
        self.implicit = False
        self.states: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._tokens: list[Token[Request | None]] = []

    def __enter__(self) -> Self:
        self._tokens.append(_request.set(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _request.reset(self._tokens.pop())


_request: ContextVar[Request | None] = ContextVar("cache_dit_request", default=None)
_implicit: ContextVar[tuple[ReferenceType[Any], Request] | None] = ContextVar(
    "cache_dit_implicit_request", default=None
)
branch_name: ContextVar[str | None] = ContextVar("cache_dit_branch", default=None)
"""Name of the CFG branch that the caller announced, if it did."""


def current_request() -> Request:
    """The request entered last in this thread or task, or the one for all its unannounced forwards."""
    request = _request.get()
    if request is not None:
        return request
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
