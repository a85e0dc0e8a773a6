"""Whether kept values are finite: asked of the device when they are kept, answered on the next step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cache_dit.caching.maths.moment import Reduce


def all_finite(values: Sequence[Tensor], reduce: Reduce | None = None) -> Callable[[], bool]:
    """Ask whether every entry is finite; the answer waits for the device no further than to this call.

    A sum is finite if all that it adds up is: one pass over each tensor and one number to the host.

    Args:
        values: Any shapes, on one device. None at all are finite.
        reduce: Adds the sum up over the ranks that have parts of the values, so that all get one answer.
    """
    total: Any = sum(value.sum(dtype=torch.promote_types(value.dtype, torch.float32)) for value in values)
    total = total if reduce is None or not values else reduce(total)
    copied = None
    if values and total.is_cuda:
        # Right behind what was asked for: reading it does not wait for the work queued since.
        stream, total = torch.cuda.current_stream(total.device), total.to("cpu", non_blocking=True)
        copied = stream.record_event()

    def answer() -> bool:
        if copied is not None:
            copied.synchronize()
        return math.isfinite(total)

    return answer
