"""One decision for all ranks that share a sample: their sums are added up before they are compared."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from cache_dit.caching.maths.moment import Reduce


def reduce_over(group: dist.ProcessGroup) -> Reduce:
    """A function that adds a small tensor up over the ranks of a group, in one collective.

    Every rank of the group has to call it at the same place: a rank that left earlier would leave the others
    waiting. Where all ranks have the same tensor, as under tensor parallelism, quotients of sums stay right.
    """

    def reduce(sums: Tensor) -> Tensor:
        total = sums.clone()
        dist.all_reduce(total, group=group)
        return total

    return reduce
