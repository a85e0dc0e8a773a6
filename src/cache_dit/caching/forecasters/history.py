"""What forecasters from the latest computed values have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from torch import Tensor

from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.moment import Moment


class Computed(NamedTuple):
    """The latest computed values and their positions on the axis of the forecast, newest first."""

    times: tuple[float, ...]
    values: tuple[Tensor, ...]

    def with_value(self, time: float, value: Tensor, keep: int) -> Computed:
        """These values with a newer one, the newest `keep` of them.

        Samplers of two stages, such as Heun's, have steps of one noise level: the later one counts.
        """
        first = 1 if self.times[:1] == (time,) else 0
        return Computed((time, *self.times[first : keep - 1]), (value, *self.values[first : keep - 1]))

    def oldest(self, keep: int) -> Tensor | None:
        """The value that goes when the next one comes."""
        return self.values[-1] if len(self.values) >= keep else None


class FromComputed(Forecaster):
    """A forecaster whose state is the newest `memory` computed values and nothing else."""

    def init(self) -> Computed:
        return Computed((), ())

    def observe(self, state: Computed, at: Moment, value: Tensor) -> Computed:
        return state.with_value(at.time, value, self.memory)

    def spare(self, state: Computed) -> Tensor | None:
        return state.oldest(self.memory)


@dataclass(frozen=True, slots=True)
class Ordered(FromComputed):
    """A forecaster from `order + 1` values that makes do with fewer at a lower order.

    Attributes:
        order: 1 or more.
    """

    order: int = 1

    @property
    def memory(self) -> int:
        return self.order + 1

    def within(self, memory: int) -> Self | None:
        return replace(self, order=min(self.order, memory - 1)) if memory > 1 else None
