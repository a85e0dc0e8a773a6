"""TeaCache: skip until the modulated input of the first block has changed enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

from cache_dit.caching.config import CacheConfig
from cache_dit.caching.gates.accumulated import AccumulatedGate
from cache_dit.caching.maths.gate import Signal
from cache_dit.caching.options import option, optional, options, real, sequence_of, whole

FLUX_COEFFICIENTS = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
"""The fit for FLUX.1-dev by TeaCache's authors (github.com/ali-vilab/TeaCache, TeaCache4FLUX)."""


@dataclass(frozen=True, slots=True)
class TeaCacheGate(AccumulatedGate):
    """`AccumulatedGate` on the modulated input, where a polynomial tells the output's change from it.

    Attributes:
        coefficients: The polynomial, highest power first; None: the change itself.
    """

    signal: ClassVar[Signal] = Signal.MODULATED
    coefficients: Sequence[float] | None = None

    def weight(self, change: float) -> float:
        if self.coefficients is None:
            return change
        return reduce(lambda value, coefficient: value * change + coefficient, self.coefficients, 0.0)


@options
class TeaCacheConfig(CacheConfig):
    """Skip while the estimated changes of the output, added up, stay small (TeaCache, arXiv 2411.19108).

    The signal is what the first block's attention is given: its input, normalised and modulated for the
    timestep. Its relative L1 change since the step before goes through a polynomial that was fitted to the
    change of the output; the sum decides. The first and the last step are computed. A fit is good for one
    model only; without one the change is added as it is, and thresholds mean something else. The polynomial
    is not clamped, as published: it may be negative outside of the changes that it was fitted to.

    Attributes:
        rel_l1_thresh: Compute when the sum reaches this. With the fit for FLUX, 0.25 is about 1.5 times as
            fast, 0.4 1.8, 0.6 2.0 and 0.8 2.25 times (the authors' figures). 0 never skips. Default 0.25.
        coefficients: Five numbers, that of the fourth power first; `FLUX_COEFFICIENTS` is the authors' fit
            for FLUX.1-dev. None (default): no polynomial.
        max_warmup_steps: First steps that are computed. Default 1.
    """

    method: ClassVar[str] = "TeaCache"

    rel_l1_thresh: float = option(real(0.0), default=0.25)
    coefficients: Sequence[float] | None = option(optional(sequence_of(real(), count=5)), default=None)
    max_warmup_steps: int = option(whole(0), default=1)

    def gate(self) -> TeaCacheGate:
        return TeaCacheGate(self.rel_l1_thresh, self.coefficients)

    def label(self) -> str:
        """`TEA` and the threshold; `P` where there is a polynomial."""
        return f"TEA{self.rel_l1_thresh:g}{'' if self.coefficients is None else 'P'}"
