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
    """

    undo: Callable[[], None]
    reduce: Reduce | None
    label: str
    edges: Mapping[nn.Module, Mapping[nn.Module, Edge]] = field(default_factory=dict)


class Distribution(ABC):
    """How one sample is spread over processes, see `cache_dit.ParallelismConfig`."""

    @abstractmethod
    def install(self, models: Sequence[nn.Module], pipe: object) -> Installed:
        """Spread the models, of a pipeline if there is one, or raise and leave them as they are."""


def check_parts(plan: Plan, name: str) -> None:
    """Raise `ConfigError` where something looks along the tokens of blocks that have a part of them only."""
    for number, segment in enumerate(plan.segments):
        if number in plan.around:
            continue
        made = [one for one in segment.forecasters if one is not None and one.looks_along_tokens]
        if segment.tokens is not None or made:
            what = "A method that chooses tokens" if not made else f"The forecaster {type(made[0]).__name__}"
            raise ConfigError(
                f"{what} looks along the whole sequence, but each process has a part of that of {name}; give "
                "another method or calibrator, place=Place.OUTPUT, or tp_size in place of ulysses_size and "
                "ring_size."
            )
