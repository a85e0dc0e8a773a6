"""What is compared: a method at one strength, with the way to put it on a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cache_dit.bench.pictures import Cell


class Kind(Enum):
    """Whose method it is; the value is how result files name it."""

    OURS = "cache-dit"
    DIFFUSERS = "diffusers"
    CONTROL = "control"


def all_steps(steps: int) -> int:
    """As many steps as the uncached run has."""
    return steps


@contextmanager
def nothing(pipe: Any, cell: Cell) -> Iterator[None]:
    """The pipeline as it is."""
    del pipe, cell
    yield


def everywhere(cell: Cell) -> bool:
    """In every cell."""
    del cell
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A method at one strength.

    Attributes:
        name: The method; its strengths form one curve.
        strength: The setting, as results print it.
        kind: Whose method it is.
        applied: Called with the pipeline and the cell; within the context that it returns runs are cached,
            and after it the pipeline is as before. Each batch gets a context of its own.
        fixed: What is skipped is known before the run, whatever the picture: so pictures can share a batch,
            and one count of FLOPs holds for all.
        steps: Number of steps to run in place of that of the cell.
        available: Whether it can run in a cell: some methods need what was measured of a model before.
    """

    name: str
    strength: str
    kind: Kind
    applied: Callable[[Any, Cell], AbstractContextManager[None]] = nothing
    fixed: bool = True
    steps: Callable[[int], int] = all_steps
    available: Callable[[Cell], bool] = everywhere
