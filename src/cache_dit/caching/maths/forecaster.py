"""What to put in the place of a skipped segment: the contract of forecasters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from cache_dit.caching.maths.gate import Signal
from cache_dit.caching.maths.moment import Moment


class Forecaster(ABC):
    """Estimates a stream at later steps from its computed values.

    A forecaster is immutable configuration; its state is a value, a tree of tuples and tensors, that the
    engine keeps for each request, CFG branch, segment and stream. All tensors have the shape of the stream.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset()
    """Signals of which the gate must take one, for it to be in `at.signal`; empty: it makes do without."""

    needs_noise: ClassVar[bool] = False
    """Whether it needs the noise level of a step, `at.sigma`."""

    looks_along_tokens: ClassVar[bool] = False
    """Whether a part of the tokens is forecast in another way than within the whole."""

    @property
    @abstractmethod
    def memory(self) -> int:
        """Tensors of the stream's size that are kept, and of how many computed steps a forecast is made."""

    @abstractmethod
    def init(self) -> Any:
        """The state with nothing seen yet."""

    @abstractmethod
    def observe(self, state: Any, at: Moment, value: Tensor) -> Any:
        """The state after a computed value; `value` now belongs to the forecaster."""

    @abstractmethod
    def predict(self, state: Any, at: Moment) -> Tensor:
        """The estimate at a later step, from at least one value; it may be the state's own tensor."""

    def patched(self, state: Any, index: Tensor, rows: Tensor) -> Any:
        """The state after some tokens of a skipped step were computed: `rows` [B, K, C] at `index` [B, K]."""
        return state

    def spare(self, state: Any) -> Tensor | None:
        """Memory that the next `observe` may overwrite."""
        return None

    def within(self, memory: int) -> Forecaster | None:
        """The best forecaster of this kind that keeps at most so many tensors; None: there is none."""
        return self if self.memory <= memory else None
