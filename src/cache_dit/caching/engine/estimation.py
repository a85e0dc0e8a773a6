"""The latent of a run by the best linear estimate from what was computed, see `maths.trajectory`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from cache_dit.caching.engine.requests import Noise
from cache_dit.caching.maths.trajectory import Estimator, Trajectory


class Estimation:
    """One branch of a run: in every step, computed or not, the output that takes the latent to its estimate.

    Under classifier-free guidance every branch does this by itself with the same weights: all is linear.

    Args:
        trajectory: Of this model, at any noise levels.
        noise: The schedule of the run, with strides.
        first: Index of the run's first step in it.
    """

    def __init__(self, trajectory: Trajectory, noise: Noise, first: int) -> None:
        assert noise.strides is not None  # the caller has looked
        sigmas = (*noise.levels, noise.levels[-1] + noise.strides[-1])
        self._estimator = Estimator(trajectory.resampled(sigmas), first=first)
        self._values: list[Tensor] = []
        self._moved: Tensor | None = None

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
        exact = self._estimator.exact(step)
        weights = self._estimator.weights(step + 1)
        if not exact and stride != 0.0:
            target = weights[0] * self._values[0]
            for weight, known in zip(weights[1:], self._values[1:], strict=True):
                target.add_(known, alpha=weight)
            leaves[place] = target.sub_(self._moved).div_(stride).to(value.dtype)
        # As rounded, so that the next estimate puts that right too.
        self._moved.add_(leaves[place].detach(), alpha=stride)
        return output if exact else tree_unflatten(leaves, spec)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are kept."""
        return sum(
            tensor.nbytes for tensor in (*self._values, *([] if self._moved is None else [self._moved]))
        )
