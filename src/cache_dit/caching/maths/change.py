"""How much a tensor changed: the signal behind every dynamic gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cache_dit.caching.maths.kernels import chosen_kernels
from cache_dit.caching.maths.moment import Reduce


def l1_norm(tensor: Tensor) -> Tensor:
    """Sum of magnitudes, as a tensor without dimensions on the same device.

    The sum runs in float32, or in float64 for such tensors: a bfloat16 sum keeps 8 bits, too few to compare
    with a threshold. Two plain operations: on a CPU `torch.linalg.vector_norm` takes four times as long.
    """
    return tensor.abs().sum(dtype=torch.promote_types(tensor.dtype, torch.float32))


def l1_ratio(value: Tensor, reference: Tensor, reduce: Reduce | None = None) -> Tensor:
    """`l1_norm(value) / l1_norm(reference)`, likewise; `reduce` as for `relative_l1`."""
    norms = torch.stack((l1_norm(value), l1_norm(reference)))
    norms = norms if reduce is None else reduce(norms)
    return norms[0] / norms[1]


def relative_l1(
    current: Tensor, reference: Tensor, norm: Tensor | None = None, reduce: Reduce | None = None
) -> float:
    """Return `sum|current - reference| / norm` over two tensors of one shape.

    Only the quotient travels to the host, so this is the one synchronisation of a dynamic step. A NaN stays
    NaN, which no threshold admits; an all-zero reference gives 0 for an equal tensor, else inf.

    Args:
        current: Any shape.
        reference: The same shape.
        norm: An `l1_norm`, on the same device. None (default): that of `reference`.
        reduce: Adds both sums up over the ranks that have parts of the tensors, in one collective: sums and
            not means, since parts may differ in size. None: the tensors are whole.
    """
    kernels = chosen_kernels.get()
    if kernels is not None:
        difference, own = kernels.distance(current, reference)
        norm = own if norm is None else norm
    else:
        norm = l1_norm(reference) if norm is None else norm
        difference = (current - reference).abs_().sum(dtype=norm.dtype)
    if reduce is not None:
        difference, norm = reduce(torch.stack((difference, norm)))
    ratio: float = (difference / norm).item()
    if math.isnan(ratio) and float(norm) == float(difference) == 0.0:
        return 0.0
    return ratio
