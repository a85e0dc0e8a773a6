"""The latent of a run by the best linear estimate from what was computed, see `maths.trajectory`.

Where the whole transformer is skipped, the output of every step is replaced by the one that takes the latent
to its estimate. Where parts of it are, what they return is left as it is on skipped steps, and the next
computed step puts right what it got wrong: by then the outputs in between can be interpolated, which is far
more exact than any forecast (a predictor and a corrector, in the terms of multistep methods for differential
equations).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from cache_dit.caching.engine.requests import Noise
from cache_dit.caching.maths.trajectory import Estimator, Trajectory


class Estimation:
    """One branch of a run: the outputs that take the latent to its estimate.

    Under classifier-free guidance every branch does this by itself with the same weights: all is linear.

    Args:
        trajectory: Of this model, at any noise levels; None: what is expected of any model.
        noise: The schedule of the run, with strides.
        first: Index of the run's first step in it.
        replaces: Skipped steps return the estimate too; else what they have.
    """

    def __init__(self, trajectory: Trajectory | None, noise: Noise, first: int, *, replaces: bool) -> None:
        assert noise.strides is not None  # the caller has looked
        sigmas = (*noise.levels, noise.levels[-1] + noise.strides[-1])
        known = Trajectory.expected(sigmas) if trajectory is None else trajectory.resampled(sigmas)
        self._estimator = Estimator(known, first=first)
        self._replaces = replaces
        self._values: list[Tensor] = []
        self._moved: Tensor | None = None

    def fits(self, output: Any) -> bool:
        """Whether the output has the shape of those before it."""
        first = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        return self._moved is None or self._moved.shape == first.shape

    def corrected(self, output: Any, step: int, noise: Noise, *, computed: bool) -> Any:
        """The output to return in a step; its first tensor is what the sampler moves by.

        Args:
            output: What the transformer returned, any tree; of a skipped step only its form counts.
            step: Index of the step in the noise schedule.
            noise: The schedule, with strides.
            computed: Whether all of it was computed.
        """
        assert noise.strides is not None  # the caller has looked
        stride = noise.strides[step]
        leaves, spec = tree_flatten(output)
        place = next(number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        value = leaves[place].detach()
        # In float32 at least: the steps are small differences of sums.
        dtype = torch.promote_types(value.dtype, torch.float32)
        if self._moved is None:
            self._moved = torch.zeros_like(value, dtype=dtype)
        if computed:
            self._estimator.measured(step)
            self._values.append(value.to(dtype, copy=True))
        kept = self._estimator.exact(step) or not (computed or self._replaces)
        weights = self._estimator.weights(step + 1)
        if not kept and stride != 0.0:
            target = weights[0] * self._values[0]
            for weight, known in zip(weights[1:], self._values[1:], strict=True):
                target.add_(known, alpha=weight)
            leaves[place] = target.sub_(self._moved).div_(stride).to(value.dtype)
        # As rounded, so that the next estimate puts that right too.
        self._moved.add_(leaves[place].detach(), alpha=stride)
        return output if kept else tree_unflatten(leaves, spec)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are kept."""
        return sum(tensor.nbytes for tensor in (*self._values, self._moved) if tensor is not None)
