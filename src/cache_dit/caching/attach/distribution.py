"""One sample on several processes, as far as caching has to know of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from cache_dit.caching.engine.plan import Plan
from cache_dit.caching.engine.ports import Arguments, Keywords
from cache_dit.caching.maths.moment import Reduce
from cache_dit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a module begins or ends to work on a part of the sequence.

    Attributes:
        enter: From the arguments of a call to those of this process; None: they stay.
        leave: From what this process returns to what is passed on; None: it stays.
    """

    enter: Callable[[Arguments, Keywords], tuple[Arguments, Keywords]] | None = None
    leave: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Installed:
    """A distribution in force on some models.

    Attributes:
        undo: Makes them what they were; edges are not its business.
        reduce: Adds a tensor up over the ranks that share a sample; None: there is one.
        label: In short form, such as `Ulysses2`.
        edges: Of each model, where its sequence is split and put together again, by module.
        check: Raises `ConfigError` where a plan of a model does not go with it.
    """

    undo: Callable[[], None]
    reduce: Reduce | None
    label: str
    edges: Mapping[nn.Module, Mapping[nn.Module, Edge]] = field(default_factory=dict)
    check: Callable[[Plan, nn.Module], None] = lambda plan, model: None


class Distribution(ABC):
    """How one sample is spread over processes, see `cache_dit.ParallelismConfig`."""

    @abstractmethod
    def install(self, models: Sequence[nn.Module], pipe: object) -> Installed:
        """Spread the models, of a pipeline if there is one, or raise and leave them as they are."""


def check(plan: Plan, model: nn.Module, installed: Installed | None) -> None:
    """Raise `ConfigError` where a plan does not go with how a model is spread, by this package or another."""
    theirs = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
    if theirs is not None and (installed is None or installed.reduce is None or model in installed.edges):
        raise ConfigError(
            "enable_parallelism(...) of diffusers and enable_cache(...) were called on "
            f"{type(model).__name__}: in either order every process would decide for itself what it skips, "
            "and wait for the others. Load it anew, and in place of these two calls write enable_cache(..., "
            "parallelism_config=ParallelismConfig(ulysses_size=...))."
        )
    if installed is not None:
        installed.check(plan, model)
