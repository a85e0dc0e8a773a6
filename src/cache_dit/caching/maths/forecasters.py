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


class Ladder(NamedTuple):
    """Divided differences `rows[j] = f[s_0 .. s_j]` over the computed steps `nodes`, newest first."""

    nodes: tuple[int, ...]
    rows: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class TaylorSeer:
    """Extrapolate with a polynomial through the last `order + 1` computed values.

    The idea is TaylorSeer's (arXiv 2503.06923, eq. 7): forecast a feature instead of reusing it. The
    published ladder divides every difference by the latest gap, which is not exact on a quadratic even at
    uniform spacing; here the differences are Newton's divided differences on the true step positions, exact
    on polynomials of degree `order` at any gaps, at the same memory of `order + 1` tensors a stream. Order 1
    is the same in both. With fewer values than that seen, the order is what the values allow.
    """

    order: int = 1

    @property
    def memory(self) -> int:
        return self.order + 1

    def init(self) -> Ladder:
        return Ladder((), ())

    def observe(self, state: Ladder, step: int, value: Tensor) -> Ladder:
        rows = [value]
        # f[new, s_0 .. s_j] = (f[new, s_0 .. s_{j-1}] - f[s_0 .. s_j]) / (new - s_j), each in the memory
        # of the row it replaces; the oldest row of a full ladder is not needed (see `spare`).
        for node, old in zip(state.nodes[: self.order], state.rows[: self.order], strict=True):
            difference = torch.sub(rows[-1], old, out=old)
            rows.append(difference if step - node == 1 else difference.div_(step - node))
        return Ladder((step, *state.nodes[: self.order]), tuple(rows))

    def predict(self, state: Ladder, step: int) -> Tensor:
        # Newton's form with weights w_j = (t - s_0) .. (t - s_{j-1}).
        if len(state.rows) == 1:
            return state.rows[0]
        weight: float = step - state.nodes[0]
        value = state.rows[0].add(state.rows[1], alpha=weight)
        for node, row in zip(state.nodes[1:], state.rows[2:], strict=False):
            weight *= step - node
            value.add_(row, alpha=weight)
        return value

    def spare(self, state: Ladder) -> Tensor | None:
        return state.rows[-1] if len(state.rows) > self.order else None
