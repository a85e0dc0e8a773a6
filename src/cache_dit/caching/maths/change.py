"""How much a tensor changed: the signal behind every dynamic gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_l1(current: Tensor, reference: Tensor) -> float:
    """Return `mean|current - reference| / mean|reference|` over two tensors of one shape.

    Sums run in float32, or in float64 for such tensors: a bfloat16 sum keeps 8 bits, too few to compare
    with a threshold. Both sums travel to the host together, so this is the one synchronisation of a dynamic
    step.
    A NaN stays NaN, which no threshold admits; an all-zero reference gives 0 for an equal tensor, else inf.
    """
    change = current - reference
    dtype = torch.promote_types(change.dtype, torch.float32)
    sums = torch.stack(
        (
            torch.linalg.vector_norm(change, 1, dtype=dtype),
            torch.linalg.vector_norm(reference, 1, dtype=dtype),
        )
    )
    difference, scale = sums.tolist()
    if scale == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return float(difference / scale)
