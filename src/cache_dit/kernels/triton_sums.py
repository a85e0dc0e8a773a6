"""The kernels: every element is read once, sums are made in float32 and in an order that never changes."""

# No `from __future__ import annotations`: Triton reads the annotations of its kernels.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
# A fixed number, so that a sum does not depend on the device; enough to fill a large one.
_PROGRAMS = 1024


# Triton gives its own meaning to the parameters: pointers, numbers, constants of compilation.
@triton.jit
def _distance_kernel(value, reference, partial, count, programs, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0).to(tl.int64)
    difference = tl.zeros((BLOCK,), tl.float32)
    norm = tl.zeros((BLOCK,), tl.float32)
    for start in range(program * BLOCK, count, programs * BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < count
        a = tl.load(value + index, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(reference + index, mask=inside, other=0.0).to(tl.float32)
        difference += tl.abs(a - b)
        norm += tl.abs(b)
    tl.store(partial + program, tl.sum(difference, axis=0))
    tl.store(partial + programs + program, tl.sum(norm, axis=0))


# The parameters likewise.
@triton.jit
def _sum_kernel(a, b, c, d, out, wa, wb, wc, wd, count, VALUES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    total = tl.load(a + index, mask=inside, other=0.0).to(tl.float32) * wa
    if VALUES > 1:
        total += tl.load(b + index, mask=inside, other=0.0).to(tl.float32) * wb
    if VALUES > 2:
        total += tl.load(c + index, mask=inside, other=0.0).to(tl.float32) * wc
    if VALUES > 3:
        total += tl.load(d + index, mask=inside, other=0.0).to(tl.float32) * wd
    tl.store(out + index, total.to(out.dtype.element_ty), mask=inside)


def distance_in_one_pass(value: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """`sum |value - reference|` and `sum |reference|` of contiguous tensors, float32 without dimensions."""
    count = value.numel()
    programs = max(1, min(_PROGRAMS, triton.cdiv(count, _BLOCK)))
    partial = torch.empty((2, programs), dtype=torch.float32, device=value.device)
    with torch.cuda.device_of(value):  # Triton starts kernels where the process is, not the tensors
        _distance_kernel[(programs,)](value, reference, partial, count, programs, BLOCK=_BLOCK)
    difference, norm = partial.sum(dim=1).unbind()
    return difference, norm


def sum_in_one_pass(values: list[Tensor], weights: list[float]) -> Tensor:
    """`sum_i weights[i] * values[i]` of one to four contiguous tensors of one type, which the result has."""
    out = torch.empty_like(values[0])
    count, missing = out.numel(), 4 - len(values)
    pointers: list[Any] = [*values, *[values[0]] * missing]
    factors = [*map(float, weights), *[0.0] * missing]
    grid = (max(1, triton.cdiv(count, _BLOCK)),)
    with torch.cuda.device_of(out):
        _sum_kernel[grid](*pointers, out, *factors, count, VALUES=len(values), BLOCK=_BLOCK)
    return out
