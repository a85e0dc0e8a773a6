"""Pyramid attention broadcast: the kinds of attention are computed at intervals of their own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from cache_dit.caching.config import CacheConfig, Kind, Place
from cache_dit.caching.maths.gate import Gate, Policy, Reason, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import instance_of, option, options, real, sequence_of, whole
from cache_dit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BroadcastGate(Gate):
    """Strictly between two noise levels compute the steps whose number divides by `interval`, else all."""

    needs_noise: ClassVar[bool] = True
    interval: int
    low: float
    high: float

    def decide(self, state: Any, at: Moment, change: float | None) -> Verdict:
        sigma = at.sigma
        if sigma is None:
            sigma = 1.0 if at.total is None else 1.0 - at.step / at.total
        return Verdict(self.low < sigma < self.high and at.step % self.interval != 0, Reason.SCHEDULE)


@options
class PABConfig(CacheConfig):
    """Repeat the outputs of the attention modules, the longer the less they change: cross the longest.

    Pyramid Attention Broadcast (arXiv 2408.12588). The window is published in timesteps: between 100 and 800
    of 1000. Where nothing tells the noise level, the share of the run still to come stands for it; where the
    length of the run is unknown too, every step is computed.

    Attributes:
        spatial: Interval of self-attention over a picture, or over picture and text jointly. Default 2.
        temporal: Interval of self-attention over time. Default 4.
        cross: Interval of cross-attention. Default 6.
        mlp: Interval of feed-forward modules, with `Place.SUBMODULES`. 1 (default): always computed.
        window: Noise levels between which steps may be skipped. Default (0.1, 0.8).
        place: `Place.ATTENTION` (default) or `Place.SUBMODULES`.
    """

    method: ClassVar[str] = "PAB"

    place: Place = option(instance_of(Place), default=Place.ATTENTION)
    spatial: int = option(whole(1), default=2)
    temporal: int = option(whole(1), default=4)
    cross: int = option(whole(1), default=6)
    mlp: int = option(whole(1), default=1)
    window: tuple[float, float] = option(sequence_of(real(0.0, 1.0), 2), default=(0.1, 0.8))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.window[0] < self.window[1]:
            raise ConfigError(f"window is {self.window}; give a low and a higher noise level.")

    def gate(self, kind: Kind = Kind.SPATIAL) -> BroadcastGate:
        """The rule of one kind of module, for steps that no limit decides."""
        intervals = {
            Kind.SPATIAL: self.spatial,
            Kind.TEMPORAL: self.temporal,
            Kind.CROSS: self.cross,
            Kind.MLP: self.mlp,
        }
        return BroadcastGate(intervals[kind], *self.window)

    def policy_of(self, kind: Kind) -> Policy:
        """The rule of one kind of module, within the limits that are set here."""
        return self.policy() if self.static else dataclasses.replace(self.policy(), gate=self.gate(kind))

    def label(self) -> str:
        """The intervals, each behind its letter."""
        return f"S{self.spatial}T{self.temporal}C{self.cross}M{self.mlp}"
