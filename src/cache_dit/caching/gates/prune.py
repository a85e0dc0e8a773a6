"""DBPrune: each block is skipped by itself, while what enters it changes little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cache_dit.caching.config import BasicCacheConfig, CacheType, Place, Region
from cache_dit.caching.gates.residual import Reference, ResidualGate
from cache_dit.caching.maths.gate import Gate, Signal, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import flag, instance_of, option, optional, options, real, sequence_of, whole


@dataclass(frozen=True, slots=True)
class PruneGate(ResidualGate):
    """`ResidualGate` on what enters a block.

    Attributes:
        relax: Once five positive changes were measured in a forward, the threshold is this times their mean,
            where that lies between `threshold` and `cap`. 0: it stays.
        cap: See `relax`.
    """

    signal: ClassVar[Signal] = Signal.ENTRY
    relax: float = 0.0
    cap: float = 0.0

    def decide(self, state: Reference | None, at: Moment, change: float | None) -> Verdict | None:
        sample = [measured for measured in at.changes if measured > 0.0][:5]
        relaxed = self.relax * sum(sample) / 5 if len(sample) == 5 else 0.0
        limit = relaxed if self.threshold < relaxed < self.cap else self.threshold
        return ResidualGate(limit).decide(state, at, change)

    def advance(self, state: Reference | None, at: Moment, verdict: Verdict, signal: Any) -> Reference | None:
        # The model may write into its own tensor later, so a copy is kept.
        own = None if signal is None or verdict.skip else signal.clone()
        return ResidualGate.advance(self, state, at, verdict, own)


@options
class DBPruneConfig(BasicCacheConfig):
    """Dual block prune: every block between the first and the last n decides by what enters it.

    Its input is compared with that of the step on which it was computed last. Options hold for each block.

    Attributes:
        place: Default `Place.BLOCKS`: each block is kept and forecast by itself.
        enable_dynamic_prune_threshold: From the fifth changed block of a step on, the threshold is `ratio`
            times the mean of the first five, where that is between the plain one and `max`. Default False.
        max_dynamic_prune_threshold: The `max` above. None (default): twice `residual_diff_threshold`.
        dynamic_prune_threshold_relax_ratio: The `ratio` above. Default 1.25.
        non_prune_block_ids: Blocks that are always computed, numbered in their list from 0. Default none.
    """

    cache_type: ClassVar[CacheType] = CacheType.DBPrune
    method: ClassVar[str] = "DBPrune"
    each_region_decides: ClassVar[bool] = True

    place: Place = option(instance_of(Place), default=Place.BLOCKS)
    enable_dynamic_prune_threshold: bool = option(flag, default=False)
    max_dynamic_prune_threshold: float | None = option(optional(real(0.0)), default=None)
    dynamic_prune_threshold_relax_ratio: float = option(real(0.0), default=1.25)
    non_prune_block_ids: Sequence[int] = option(sequence_of(whole(0)), default=())

    def gate(self) -> Gate:
        plain, base = super().gate(), self.residual_diff_threshold
        if plain.signal is Signal.NONE:
            return plain
        cap = self.max_dynamic_prune_threshold
        relax = self.dynamic_prune_threshold_relax_ratio if self.enable_dynamic_prune_threshold else 0.0
        return PruneGate(base, relax, 2.0 * base if cap is None else cap)

    def regions(self, start: int, stop: int) -> tuple[Region, ...]:
        kept, policy = frozenset(self.non_prune_block_ids), self.policy()
        return tuple(Region(block, block + 1, policy) for block in range(start, stop) if block not in kept)

    def label(self) -> str:
        return f"P{self.residual_diff_threshold:g}{'D' if self.enable_dynamic_prune_threshold else ''}"
