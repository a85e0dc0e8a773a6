"""A module on some of its tokens, and whether that is what it does on all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cache_dit.caching.engine.ports import Call
from cache_dit.caching.maths.change import relative_l1
from cache_dit.caching.maths.tokens import rows_of

_TOLERANCE = 0.01
"""Relative L1 error: bfloat16 rounds to less, and a module that looks at other tokens is further off."""


def on_tokens(call: Call, shape: torch.Size, index: Tensor) -> Any:
    """The output for the tokens at `index` [B, K] alone, of a call with `shape` (B, S) samples and tokens.

    The first argument of this shape is what is cut to the tokens: of cross-attention the queries.
    """
    left = True

    def cut(value: Any) -> Any:
        nonlocal left
        if not left or not isinstance(value, Tensor) or value.ndim != 3 or value.shape[:2] != shape:
            return value
        left = False
        return rows_of(value, index)

    args = tuple(map(cut, call.args))
    return call.function(call.model, *args, **{name: cut(value) for name, value in call.kwargs.items()})


def is_tokenwise(call: Call, output: Any) -> bool:
    """Whether a module gives for some tokens what it gave for all, tried on three; waits for the device."""
    if not isinstance(output, Tensor) or output.ndim != 3:
        return False
    batch, count = shape = output.shape[:2]
    index = torch.tensor([0, count // 2, count - 1], device=output.device).expand(batch, -1)
    try:
        rows = on_tokens(call, shape, index)
    except (RuntimeError, ValueError, TypeError, IndexError):
        # Another argument has an entry for each token.
        return False
    known = rows_of(output, index)
    return isinstance(rows, Tensor) and rows.shape == known.shape and relative_l1(rows, known) <= _TOLERANCE
