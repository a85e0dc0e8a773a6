"""PSNR and SSIM of pictures in memory, in float64 whatever the type of the pictures.

8-bit arithmetic wraps around: `uint8(3) - uint8(5)` is 254, and 254 squared is 4 there. So both functions
convert first and subtract then, and the range of the values is never guessed from their type.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from cache_dit.errors import ConfigError, ConfigTypeError

# A tensor, a numpy array, or anything else that `torch.as_tensor` takes.
Picture: TypeAlias = Any

WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def psnr(picture: Picture, reference: Picture, *, data_range: float) -> float:
    """Peak signal-to-noise ratio, `10 log10(data_range² / mean squared error)`.

    Args:
        picture: Values of any real type and any shape; the mean runs over all of them.
        reference: What it is compared with, of the same shape. The order of the two does not matter.
        data_range: Largest possible difference of two values: 1.0 for pictures from 0 to 1, 255 for 8 bits.

    Returns:
        Decibels; `inf` for equal pictures, `nan` where a value is not a number.

    Raises:
        ConfigError: Shapes that differ, no values, or a range that is not above 0.
        ConfigTypeError: Values that are no real numbers.
    """
    first, second = _checked(picture, reference, data_range)
    return decibels((first - second).square().mean().item(), data_range)


def decibels(error: float, data_range: float) -> float:
    """The PSNR of a mean squared error, `inf` for 0."""
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(picture: Picture, reference: Picture, *, data_range: float) -> float:
    """Structural similarity (Wang, Bovik, Sheikh and Simoncelli, IEEE Trans. Image Processing 13(4), 2004).

    As in the paper: Gaussian window of 11x11 pixels with standard deviation 1.5, K1 = 0.01, K2 = 0.03,
    weighted (not sample) variances, and only windows that lie inside of the picture. Each channel is a grey
    picture of its own; the result is the mean over windows, channels and pictures.

    Args:
        picture: Values of any real type, [..., height, width] with channels before the height, at least
            11x11 pixels. A picture with channels last must be permuted first.
        reference: What it is compared with, of the same shape. The order of the two does not matter.
        data_range: Largest possible difference of two values: 1.0 for pictures from 0 to 1, 255 for 8 bits.

    Returns:
        1.0 for equal pictures, less for others, -1.0 at least.

    Raises:
        ConfigError: Shapes that differ or are too small, or a range that is not above 0.
        ConfigTypeError: Values that are no real numbers.
    """
    first, second = _checked(picture, reference, data_range)
    if first.ndim < 2 or min(first.shape[-2:]) < WINDOW:
        raise ConfigError(
            f"ssim got pictures of shape {tuple(first.shape)}; give [..., height, width] with at least "
            f"{WINDOW}x{WINDOW} pixels, channels first."
        )
    planes = (values.reshape(-1, 1, *values.shape[-2:]) for values in (first, second))
    return float(similarities(*planes, data_range=data_range).mean())


def squared_errors(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared error of each picture: two [n, ...] of floats -> [n]."""
    return (first - second).square().flatten(1).mean(dim=1)


def similarities(first: Tensor, second: Tensor, *, data_range: float) -> Tensor:
    """SSIM of each picture, see `ssim`: two [n, channels, height, width] of floats -> [n]."""
    x, y = (values.flatten(0, 1).unsqueeze(1) for values in (first, second))
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    planes = likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return planes.reshape(len(first), -1).mean(dim=1)


def _checked(picture: Picture, reference: Picture, data_range: float) -> tuple[Tensor, Tensor]:
    if not 0 < data_range < math.inf:
        raise ConfigError(f"data_range is {data_range}; give 1.0 for pictures from 0 to 1, 255 for 8 bits.")
    first, second = (torch.as_tensor(values).detach() for values in (picture, reference))
    if first.is_complex() or second.is_complex():
        raise ConfigTypeError("the pictures have complex values; give real ones.")
    if first.shape != second.shape:
        raise ConfigError(
            f"the pictures have shapes {tuple(first.shape)} and {tuple(second.shape)}; make them equal."
        )
    if first.numel() == 0:
        raise ConfigError(f"the pictures have shape {tuple(first.shape)}, which is empty; give some values.")
    return first.double(), second.to(first.device).double()


def _blur(planes: Tensor) -> Tensor:
    """Weighted mean over every window inside of [n, 1, height, width]; the window is separable."""
    offsets = torch.arange(WINDOW, dtype=planes.dtype, device=planes.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    rows = F.conv2d(planes, weights.view(1, 1, 1, -1))
    return F.conv2d(rows, weights.view(1, 1, -1, 1))
