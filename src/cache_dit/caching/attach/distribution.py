"""One sample on several processes, as far as caching has to know of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Installed:
    """A distribution in force on some models.

    Attributes:
        undo: Makes them what they were.
        reduce: Adds a tensor up over the ranks that share a sample; None: there is one.
        label: In short form, such as `Ulysses2`.
    """

    undo: Callable[[], None]
    reduce: Reduce | None
    label: str


class Distribution(ABC):
    """How one sample is spread over processes, see `cache_dit.ParallelismConfig`."""

    @abstractmethod
    def install(self, models: Sequence[nn.Module], pipe: object) -> Installed:
        """Spread the models, of a pipeline if there is one, or raise and leave them as they are."""
