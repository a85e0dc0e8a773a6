"""EasyCache: skip until the output must have changed enough, told from the change of the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from cache_dit.caching.config import CacheConfig, Place
from cache_dit.caching.gates.accumulated import AccumulatedGate, Sum
from cache_dit.caching.maths.change import l1_norm
from cache_dit.caching.maths.gate import Signal
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.options import flag, instance_of, option, options, real, whole


class Rate(NamedTuple):
    """Of the last computed step; `reach` is the change of input that changes the output by 100 %."""

    entry: Tensor
    output: Tensor
    reach: Tensor | None


@dataclass(frozen=True, slots=True)
class EasyCacheGate(AccumulatedGate):
    """`AccumulatedGate` on the estimated change of the output v, `rate * mean|x_t - x_{t-1}| / mean|v_s|`.

    The rate is `mean|v_s - v_r| / mean|x_s - x_r|` over the two latest computed steps r and s. In sums of
    magnitudes the sizes of x and v cancel, and the change is `|x_t - x_{t-1}| / reach` with
    `reach = |v_s| |x_s - x_r| / |v_s - v_r|`.
    """

    signal: ClassVar[Signal] = Signal.LATENT
    looks_at_output: ClassVar[bool] = True

    def measure(self, state: Sum, at: Moment, signal: Tensor) -> float | None:
        if state.learnt is None or state.learnt.reach is None:
            return None
        return AccumulatedGate.measure(self, state._replace(norm=state.learnt.reach), at, signal)

    def sees(self, state: Sum, at: Moment, entry: Tensor, output: Tensor) -> Sum:
        last, reach = state.learnt, None
        if last is not None and last.entry.shape == entry.shape and last.output.shape == output.shape:
            reach = l1_norm(output) * l1_norm(entry - last.entry) / l1_norm(output - last.output)
        # The model may write into its own tensors later, so copies are kept.
        return state._replace(learnt=Rate(entry.clone(), output.clone(), reach))


@options
class EasyCacheConfig(CacheConfig):
    """Skip while the estimated changes of the output, added up, stay small (EasyCache, arXiv 2507.02860).

    Nothing inside of the transformer is looked at, and on a skipped step nothing of it runs. How fast the
    output changes with the latent is learnt at the computed steps. The last step is computed, where the
    length of the run is known. Ports differ in which step the rate is taken back to; here both ends are
    computed steps.

    Attributes:
        threshold: Compute when the sum reaches this; the value is meant to be the authors' for Wan, and was
            not checked; ComfyUI has 0.2. 0 never skips. Default 0.05.
        place: Default `Place.OUTPUT`: the change from the latent to the output is kept.
        max_warmup_steps: First steps that are computed. Default 10.
        cfg_diff_compute_separate: Default False: the first branch of a step decides for both.
    """

    method: ClassVar[str] = "EasyCache"

    threshold: float = option(real(0.0), default=0.05)
    place: Place = option(instance_of(Place), default=Place.OUTPUT)
    max_warmup_steps: int = option(whole(0), default=10)
    cfg_diff_compute_separate: bool = option(flag, default=False)

    def gate(self) -> EasyCacheGate:
        return EasyCacheGate(self.threshold)

    def label(self) -> str:
        return f"EASY{self.threshold:g}"
