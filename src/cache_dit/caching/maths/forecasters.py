"""What to put in the place of a skipped segment: forecasters of a stream from its computed values.

A forecaster is immutable configuration; its state is a value that the engine keeps for each
(request, CFG branch, segment, stream). The contract:

    init() -> state                       nothing seen yet
    observe(state, step, value) -> state  a computed value; `value` now belongs to the forecaster
    predict(state, step) -> value         the estimate at a later step; may be the state's own tensor
    spare(state) -> tensor or None        memory that the next `observe` may overwrite
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Forecaster(Protocol):
    """The contract of this module; `memory` is how many of the latest computed values a prediction uses."""

    @property
    def memory(self) -> int: ...
    def init(self) -> Any: ...
    def observe(self, state: Any, step: int, value: Tensor) -> Any: ...
    def predict(self, state: Any, step: int) -> Tensor: ...
    def spare(self, state: Any) -> Tensor | None: ...


@dataclass(frozen=True, slots=True)
class Reuse:
    """The value of the last computed step, as it was (FBCache, DBCache without a calibrator)."""

    memory: int = 1

    def init(self) -> Tensor | None:
        return None

    def observe(self, state: Tensor | None, step: int, value: Tensor) -> Tensor:
        return value

    def predict(self, state: Tensor, step: int) -> Tensor:
        return state

    def spare(self, state: Tensor | None) -> Tensor | None:
        return state


class Computed(NamedTuple):
    """The latest computed values and the steps that they are of, newest first."""

    steps: tuple[int, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class TaylorSeer:
    """Extrapolate with the polynomial through the last `order + 1` computed values.

    The idea is TaylorSeer's (arXiv 2503.06923, eq. 7): forecast a feature instead of reusing it. The
    published ladder of differences divides every one by the latest gap, which is not exact on a quadratic
    even at uniform spacing. The polynomial through the values at their true steps is exact up to degree
    `order` at any gaps; order 1 is the same in both. The memory is the same too, `order + 1` tensors a
    stream, and all work is left to the skipped steps: a computed one only hands over its value. With fewer
    values than that seen, the order is what the values allow.
    """

    order: int = 1

    @property
    def memory(self) -> int:
        return self.order + 1

    def init(self) -> Computed:
        return Computed((), ())

    def observe(self, state: Computed, step: int, value: Tensor) -> Computed:
        return Computed((step, *state.steps[: self.order]), (value, *state.values[: self.order]))

    def predict(self, state: Computed, step: int) -> Tensor:
        # Neville's scheme: p[i..j](t) is p[i..j-1] and p[i+1..j], joined linearly to fit at s_i and s_j.
        steps, row = state.steps, state.values
        for width in range(1, len(steps)):
            row = tuple(
                torch.lerp(row[i], row[i + 1], (step - steps[i]) / (steps[i + width] - steps[i]))
                for i in range(len(steps) - width)
            )
        return row[0]

    def spare(self, state: Computed) -> Tensor | None:
        return state.values[-1] if len(state.values) > self.order else None
