"""Let the cache use Triton kernels for a while, with torch where they do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

from cache_dit.caching.maths.kernels import Kernels, chosen_kernels
from cache_dit.errors import ConfigError

# More values than this at once are left to torch; a forecast of the third order has four.
MOST_VALUES = 4
_FITTING = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def triton_kernels() -> Iterator[None]:
    """Compute the signal of gates and the sums of forecasts by Triton kernels, for what runs inside.

    One pass over memory each, where torch takes six for a signal and two for every value of a forecast. They
    are not the default, since no GPU has shown yet that they are faster: `bench/gpu.sh` measures it. Tensors
    that are not on a GPU, not contiguous, or of another type than float32, bfloat16 and float16 are left to
    torch. Sums are made in two stages of fixed size, so that they repeat bit by bit; from those of torch they
    differ by rounding.

    Raises:
        ConfigError: Triton is not installed.

    Examples:
        >>> with triton_kernels():
        ...     image = pipe("a red house").images[0]
    """
    if find_spec("triton") is None:
        raise ConfigError(
            "triton_kernels needs triton, which builds of torch for GPUs bring along; install it: "
            "pip install triton."
        )
    token = chosen_kernels.set(Kernels(distance, weighted_sum))
    try:
        yield
    finally:
        chosen_kernels.reset(token)


def distance(value: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """`sum |value - reference|` and `sum |reference|`, tensors without dimensions.

    Args:
        value: Any shape.
        reference: The same shape.
    """
    if fits(value, reference):
        from cache_dit.kernels.triton_sums import distance_in_one_pass

        return distance_in_one_pass(value, reference)
    return torch_distance(value, reference)


def weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`sum_i weights[i] * values[i]` in float32, a new tensor of the values' type; weights of 0 leave out."""
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    if 0 < len(pairs) <= MOST_VALUES and fits(*(value for value, _ in pairs)):
        from cache_dit.kernels.triton_sums import sum_in_one_pass

        return sum_in_one_pass(*map(list, zip(*pairs, strict=True)))
    return torch_weighted_sum(values, weights)


def torch_distance(value: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The same by torch."""
    wide = torch.promote_types(value.dtype, torch.float32)
    return (value - reference).abs_().sum(dtype=wide), reference.abs().sum(dtype=wide)


def torch_weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The same by torch."""
    from cache_dit.caching.maths.weights import plain_weighted_sum

    return plain_weighted_sum(values, weights)


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels can take tensors: on one GPU, contiguous, of one shape and type."""
    first = tensors[0]
    return first.is_cuda and alike(*tensors)


def alike(*tensors: Tensor) -> bool:
    """Whether tensors are contiguous and of one shape, device and type that the kernels know."""
    first = tensors[0]
    return first.dtype in _FITTING and all(
        one.is_contiguous() and (one.shape, one.dtype, one.device) == (first.shape, first.dtype, first.device)
        for one in tensors
    )
