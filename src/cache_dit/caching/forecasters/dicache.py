"""DiCache's trajectory alignment: how far the first blocks have gone says how far the rest has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.maths.change import l1_ratio
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.gate import Probe, Signal
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import options


class Probed(NamedTuple):
    """The last two computed values, newest first, each with the first blocks' residual; None: not taken."""

    values: tuple[Tensor, ...]
    probes: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Aligned(Forecaster):
    """`r_b + gamma (r_a - r_b)` with the last computed value `r_a` and the one before (arXiv 2508.17356).

    `gamma` is `mean|p - p_b| / mean|p_a - p_b|`, kept within 1 and 1.5 and on the device, where `p` is the
    residual of the first blocks on the main stream. Where that was not taken, or stood still, it is 1: reuse.
    The residuals are shared with the gate and between the streams, and not counted in `memory`.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.PROBE, Signal.RESIDUAL})

    @property
    def memory(self) -> int:
        return 2

    def init(self) -> Probed:
        return Probed((), ())

    def observe(self, state: Probed, at: Moment, value: Tensor) -> Probed:
        return Probed((value, *state.values[:1]), (_residual(at.signal), *state.probes[:1]))

    def predict(self, state: Probed, at: Moment) -> Tensor:
        now = _residual(at.signal)
        if len(state.values) < 2 or any(probe is None for probe in (now, *state.probes)):
            return state.values[0]
        (latest, before), (last, first) = state.values, state.probes
        gamma = l1_ratio(now - first, last - first, at.reduce).nan_to_num(1.0).clamp(1.0, 1.5)
        return torch.lerp(latest, before, (1 - gamma).type(latest.dtype))

    def spare(self, state: Probed) -> Tensor | None:
        return state.values[1] if len(state.values) == 2 else None


def _residual(signal: Any) -> Any:
    return signal.residual if isinstance(signal, Probe) else signal


@options
class DiCacheCalibratorConfig(CalibratorConfig):
    """Go on along the last two computed steps, as far as the first blocks say (DiCache, arXiv 2508.17356).

    For gates that look at the first blocks. Costs two tensors a stream, and two in all for those blocks.
    """

    def strify(self) -> str:
        """`DiCache`."""
        return "DiCache"

    def describe(self) -> str:
        """The forecaster in words."""
        return f"DiCache's alignment on {self.calibrator_cache_type}"

    def method(self) -> Aligned:
        """The forecaster that this configuration is about."""
        return Aligned()
