"""The last computed value again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.tokens import put_rows


@dataclass(frozen=True, slots=True)
class Reuse(Forecaster):
    """The value of the last computed step, as it was (FBCache, DBCache without a calibrator)."""

    @property
    def memory(self) -> int:
        return 1

    def init(self) -> Tensor | None:
        return None

    def observe(self, state: Tensor | None, at: Moment, value: Tensor) -> Tensor:
        return value

    def predict(self, state: Tensor, at: Moment) -> Tensor:
        return state

    def patched(self, state: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        return put_rows(state, index, rows)

    def spare(self, state: Tensor | None) -> Tensor | None:
        return state
