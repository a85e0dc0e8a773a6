"""Δ-DiT: rear blocks are skipped while the outline forms, front blocks while the details do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from cache_dit.caching.config import CacheConfig, Region
from cache_dit.caching.gates.interval import IntervalGate, Window
from cache_dit.caching.maths.gate import Gate, Reason, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import option, options, real, whole
from cache_dit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PhaseGate(Gate):
    """A rule that holds before (`early`) or behind `boundary`, a share of the run; elsewhere compute."""

    rule: IntervalGate
    boundary: float
    early: bool

    def init(self) -> Window:
        return self.rule.init()

    def decide(self, state: Window, at: Moment, change: float | None) -> Verdict:
        if at.total is None:
            raise ConfigError("boundary is a share of an unknown number of steps; give num_inference_steps.")
        if (at.step < self.boundary * at.total) is self.early:
            return self.rule.decide(state, at, change)
        return Verdict(False, Reason.SCHEDULE)

    def advance(self, state: Window, at: Moment, verdict: Verdict, signal: object) -> Window:
        return self.rule.advance(state, at, verdict, signal)


@options
class DeltaDiTConfig(CacheConfig):
    """Skip the rear blocks in the first part of the run and the front blocks in the second.

    Δ-DiT (arXiv 2406.01125): what is kept is the change over the blocks, so a skipped step still shows its
    own input. Which blocks and which boundary the paper takes for a model is unsure.

    Attributes:
        interval: Every how many steps one is computed in full; 1 skips nothing. Default 2.
        boundary: Share of the steps before which rear blocks are skipped, and then front ones. Default 0.5.
        blocks: Share of the blocks that are skipped, at most 0.5. Default 0.5.
    """

    method: ClassVar[str] = "Δ-DiT"
    each_region_decides: ClassVar[bool] = True

    interval: int = option(whole(1), default=2)
    boundary: float = option(real(0.0, 1.0), default=0.5)
    blocks: float = option(real(0.0, 0.5), default=0.5)

    def gate(self, early: bool = True) -> PhaseGate:
        """The rule of the rear blocks (`early`) or of the front ones, for steps that no limit decides."""
        return PhaseGate(IntervalGate(self.interval), self.boundary, early)

    def regions(self, start: int, stop: int) -> tuple[Region, ...]:
        """The front blocks and the rear blocks, each with its own rule."""
        count, rear = int(self.blocks * (stop - start)), self.policy()
        if not count:
            raise ConfigError(
                f"blocks is {self.blocks:g} of {stop - start} blocks, which is none; give more."
            )
        front = rear if self.static else dataclasses.replace(rear, gate=self.gate(early=False))
        return (Region(start, start + count, front), Region(stop - count, stop, rear))

    def label(self) -> str:
        """`N` and the interval, `B` and the boundary, and the share of the blocks."""
        return f"N{self.interval}B{self.boundary:g}_{self.blocks:g}"
