"""Sizes of tiny image models, and inputs that many of them take."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BATCH, Draw, Inputs

SIDE, TEXT, TEXT_DIM, POOLED = 4, 5, 24, 20
IMAGE = SIDE**2
NUM_HEADS, HEAD = 2, 16
WIDTH = NUM_HEADS * HEAD
HEADS: Inputs = {"num_attention_heads": NUM_HEADS, "attention_head_dim": HEAD}
ROPE = (4, 6, 6)
ROPE_4 = (4, 4, 4, 4)


def grid(axes: int, time: float = 0) -> Tensor:
    """Position of every image token; the second and third axes are row and column."""
    ids = torch.zeros(SIDE, SIDE, axes)
    ids[..., 0] = time
    ids[..., 1] += torch.arange(SIDE)[:, None]
    ids[..., 2] += torch.arange(SIDE)[None, :]
    return ids.reshape(IMAGE, axes)


def times(draw: Draw, scale: float = 1) -> Tensor:
    return torch.full((BATCH,), scale * draw.time)


def size(*values: int) -> Tensor:
    return torch.tensor([values] * BATCH, dtype=torch.float32)
