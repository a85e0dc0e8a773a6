"""DiCache: skip until what the first blocks return has changed enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cache_dit.caching.config import CacheConfig
from cache_dit.caching.gates.accumulated import AccumulatedGate
from cache_dit.caching.maths.gate import Probe, Signal
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import option, options, real, whole


@dataclass(frozen=True, slots=True)
class DiCacheGate(AccumulatedGate):
    """`AccumulatedGate` on what leaves the first blocks, the probe."""

    signal: ClassVar[Signal] = Signal.PROBE

    def seen(self, at: Moment, signal: Probe) -> Tensor:
        output: Tensor = signal.output
        return output


@options
class DiCacheConfig(CacheConfig):
    """Skip while the changes of a probe, added up, stay small (DiCache, arXiv 2508.17356).

    The probe is the first blocks, which run on every step; when the step is computed, it goes on from what
    they returned. The relative L1 change of their output since the step before is added up. The authors'
    variant that takes the change of the input off is not here. What is skipped they fill from two computed
    steps, aligned by the probe: `DiCacheCalibratorConfig`. The last step is computed, where the length of
    the run is known; whether theirs is, is not certain.

    Attributes:
        threshold: Compute when the sum reaches this; the authors use 0.4 on FLUX, 0.2 on Wan and 0.1 on
            HunyuanVideo. 0 never skips. Default 0.4.
        Fn_compute_blocks: The blocks of the probe. Default 1.
        max_warmup_steps: First steps that are computed. Default 1.
    """

    method: ClassVar[str] = "DiCache"

    threshold: float = option(real(0.0), default=0.4)
    Fn_compute_blocks: int = option(whole(1), default=1)
    max_warmup_steps: int = option(whole(0), default=1)

    def gate(self) -> DiCacheGate:
        return DiCacheGate(self.threshold)

    def label(self) -> str:
        return f"DI{self.threshold:g}"
