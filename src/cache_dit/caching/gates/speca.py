"""SpeCa: draft steps, and check each draft on one late block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cache_dit.caching.config import CacheConfig
from cache_dit.caching.maths.gate import Gate, Reason, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import option, options, real, whole

_LEAST_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class SpeCaGate(Gate):
    """Skip every step that no limit computes, and take it back where the check fails.

    The state is the number of drafts in a row.
    """

    verifies: ClassVar[bool] = True
    tolerance: float
    decay: float
    unchecked: int

    def init(self) -> int:
        return 0

    def decide(self, state: int, at: Moment, change: float | None) -> Verdict:
        return Verdict(True, Reason.SCHEDULE)

    def advance(self, state: int, at: Moment, verdict: Verdict, signal: object) -> int:
        return state + 1 if verdict.skip else 0

    def accepts(self, state: int, at: Moment, error: float) -> bool:
        # The state counts the draft in question. A NaN is computed.
        progress = at.step / at.total if at.total else 0.0
        tolerated = max(_LEAST_TOLERANCE, self.tolerance * self.decay**progress)
        return error <= tolerated or (state <= self.unchecked and error == error)


@options
class SpeCaConfig(CacheConfig):
    """Draft a step with the calibrator, and check it on the block behind (SpeCa, arXiv 2509.11628).

    The first of the last blocks, which always run, is compared with a forecast of itself. Where the
    relative L1 error is over `max(0.01, tolerance * decay**progress)`, with the progress from 0 to 1, the
    step is computed at once. (The authors' code computes the *next* step; and some ports of it let the
    progress run from 1 to 0.) Where the length of the run is not known the tolerance stays what it is. The
    drafts are TaylorSeer's in the paper: `TaylorSeerCalibratorConfig`.

    Attributes:
        tolerance: Largest error at the first step. Default 0.1, from a port of the authors' code.
        decay: What the tolerance is multiplied with over the whole run, 0 to 1. Default 0.1; ports
            have 0.01 to 0.9, the paper's value is not certain.
        unchecked_drafts: First drafts in a row that stand whatever the error is. Default 2.
        max_continuous_cached_steps: Most drafts in a row; -1: no limit. Default 5.
        Bn_compute_blocks: Last blocks, of which the first is the check; at least 1. Default 1.
        max_warmup_steps: First steps that are computed. Default 3.
    """

    method: ClassVar[str] = "SpeCa"

    tolerance: float = option(real(0.0), default=0.1)
    decay: float = option(real(0.0, 1.0), default=0.1)
    unchecked_drafts: int = option(whole(0), default=2)
    max_continuous_cached_steps: int = option(whole(1, unlimited=True), default=5)
    Bn_compute_blocks: int = option(whole(1), default=1)
    max_warmup_steps: int = option(whole(0), default=3)

    def gate(self) -> SpeCaGate:
        return SpeCaGate(self.tolerance, self.decay, self.unchecked_drafts)

    def label(self) -> str:
        return f"SPECA{self.tolerance:g}"
