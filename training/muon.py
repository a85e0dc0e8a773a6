"""Muon (Jordan et al., 2024) for many small matrices, in float32.

`torch.optim.Muon` orthogonalises one matrix after another in bfloat16, which most CPUs have to emulate;
here matrices of one shape are stacked, so that a step is a few batched products.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Newton-Schulz iteration: pushes all singular values of [N, rows, cols], rows <= cols, towards 1."""
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def as_wide(matrix: Tensor) -> Tensor:
    """[n, rows, cols] view with rows <= cols; a tall stack of square matrices (as in adaLN) is split."""
    rows, cols = matrix.shape
    if rows % cols == 0 and rows > cols:
        return matrix.view(rows // cols, cols, cols)
    return (matrix.mT if rows > cols else matrix)[None]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised matrix by matrix: every step has all singular values near `lr`."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stacks: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])  # Nesterov
                source = as_wide(update)
                stacks[tuple(source.shape[1:])].append((as_wide(parameter), source))
            for pairs in stacks.values():
                _apply(pairs, group["lr"])


def _apply(pairs: list[tuple[Tensor, Tensor]], lr: float) -> None:
    """One shape's step; the targets are views of the parameters."""
    updates = orthogonalise(torch.cat([source for _, source in pairs]))
    for (target, _), update in zip(pairs, updates.split([len(t) for t, _ in pairs]), strict=True):
        target.sub_(update, alpha=lr)
