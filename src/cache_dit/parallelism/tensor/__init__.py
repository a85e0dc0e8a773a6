"""Tensor parallelism: heads and channels of every block divided over ranks, on plain local tensors."""

from cache_dit.parallelism.tensor.divide import divide, plan_of
from cache_dit.parallelism.tensor.plan import Blocks, Joined, Part, TensorPlan, attention, feed_forward
from cache_dit.parallelism.tensor.rows import TENSOR_PLANS

__all__ = [
    "TENSOR_PLANS",
    "Blocks",
    "Joined",
    "Part",
    "TensorPlan",
    "attention",
    "divide",
    "feed_forward",
    "plan_of",
]
