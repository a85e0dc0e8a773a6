"""Deferred correction: what skipped steps got wrong is put right by the next computed one.

On a skipped step the output of the transformer is extrapolated. Once the next step is computed, the outputs
in between can be *interpolated*, which is far more exact. For a sampler that moves the latent by `h_j v_j` in
step j (Euler on the flow of flow matching, with `h_j = sigma_{j+1} - sigma_j`) the latent is by then off by
`d = sum_j h_j (v_used_j - v_interpolated_j)`, and the computed step can undo that: it returns `v - d / h`. In
the terms of multistep methods this turns an Adams-Bashforth predictor into a predictor-corrector over the
skipped steps. All is linear in the outputs, so under classifier-free guidance every branch corrects its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from cache_dit.caching.engine.requests import Noise


@dataclass(slots=True)
class Correction:
    """The outputs of one branch of a run, as far as corrections are made of them.

    Attributes:
        order: Degree of the polynomial that interpolates; `order + 1` computed outputs are kept.
        nodes: Noise levels and outputs of the latest computed steps, newest first.
        moved: Sum of `h_j v_used_j` over the skipped steps since then.
        skipped: Noise level and `h_j` of those steps.
    """

    order: int
    nodes: list[tuple[float, Tensor]] = field(default_factory=list)
    moved: Tensor | None = None
    skipped: list[tuple[float, float]] = field(default_factory=list)

    def corrected(self, output: Any, step: int, noise: Noise, *, computed: bool) -> Any:
        """The output of a step to return: as it is where the step was skipped or none before it was.

        The first tensor in the output is what the sampler moves by.

        Args:
            output: What the transformer returned, any tree.
            step: Index of the step in the noise schedule.
            noise: The schedule, with strides.
            computed: Whether all of it was computed.
        """
        assert noise.strides is not None  # the caller has looked
        sigma, stride = noise.levels[step], noise.strides[step]
        leaves, spec = tree_flatten(output)
        place = next((number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)), None)
        if place is None:
            return output
        value = leaves[place].detach()
        if not computed:
            self._skip(value, sigma, stride)
            return output
        changed = bool(self.nodes) and self.nodes[0][1].shape != value.shape
        # A copy, since the pipeline may write into what it gets.
        self.nodes = [(sigma, value.clone()), *([] if changed else self.nodes[: self.order])]
        if self.moved is None or changed or stride == 0.0:
            self._forget()
            return output
        leaves[place] = torch.sub(value, self._error(), alpha=1.0 / stride).to(value.dtype)
        self._forget()
        return tree_unflatten(leaves, spec)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are kept."""
        kept = [value for _, value in self.nodes]
        return sum(tensor.nbytes for tensor in (kept if self.moved is None else [*kept, self.moved]))

    def _skip(self, value: Tensor, sigma: float, stride: float) -> None:
        # In float32 at least: these are sums of small differences.
        step = value.to(torch.promote_types(value.dtype, torch.float32), copy=True).mul_(stride)
        self.moved = step if self.moved is None else self.moved.add_(step)
        self.skipped.append((sigma, stride))

    def _error(self) -> Tensor:
        """How far the latent is off: what it was moved by less what it should have been moved by."""
        assert self.moved is not None  # the caller has looked
        error, times = self.moved, [time for time, _ in self.nodes]
        for number, (_, value) in enumerate(self.nodes):
            weight = sum(stride * _lagrange(times, number, sigma) for sigma, stride in self.skipped)
            error = error.sub_(value, alpha=weight)
        return error

    def _forget(self) -> None:
        self.moved, self.skipped = None, []


def _lagrange(times: Sequence[float], number: int, time: float) -> float:
    """Weight of node `number` in the polynomial through all nodes, evaluated at one position."""
    weight = 1.0
    for other, position in enumerate(times):
        if other != number:
            weight *= (time - position) / (times[number] - position)
    return weight
