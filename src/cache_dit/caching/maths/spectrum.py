"""Filters over the spatial frequencies of a latent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# At pure noise the gain of the mean would be infinite.
_SIGMA_MAX = 1.0 - 1e-6


def denoised(latent: Tensor, sigma: float, exponent: float) -> Tensor:
    """The part of a noisy latent that a Wiener filter takes for signal, over space and time (float32).

    With `x = (1 - sigma) * signal + sigma * noise` and a signal of power `S(f) = 1 / |f|**exponent` the
    gain of one axis is `(1 - sigma) S / ((1 - sigma)**2 S + sigma**2)`. The gains of the axes are
    multiplied, and divided by their mean so that steps are comparable (SeaCache, arXiv 2602.18993; eq. 7
    for the mean).

    Args:
        latent: (B, C, H, W), (B, C, T, H, W), or tokens (B, S, C): a square grid where S is a square
            number, else a line, since a sequence does not say how it is laid out.
        sigma: Noise level, 1 for pure noise.
        exponent: How fast the signal's power falls with the frequency.

    Raises:
        ValueError: A tensor with another number of dimensions.
    """
    grid, axes = as_grid(latent)
    return _filtered(grid, axes, sigma, exponent).reshape(latent.shape)


def low_frequencies(x: Tensor, share: float) -> Tensor:
    """The part of a latent with frequencies up to a share of its shorter side (float32).

    Two-dimensional, also of a video (FasterCache, arXiv 2410.19355, takes a fifth).

    Args:
        x: As in `denoised`.
        share: Largest frequency, in waves over the picture (rounded down), divided by the shorter side.

    Raises:
        ValueError: A tensor with another number of dimensions.
    """
    grid, axes = as_grid(x)
    axes = axes[-2:]
    sides = [grid.shape[axis] for axis in axes]
    distance = torch.zeros((), device=x.device)
    for axis, side in zip(axes, sides, strict=True):
        waves = torch.fft.fftfreq(side, 1.0 / side, device=x.device)
        distance = distance + waves.square_().reshape(-1, *[1] * (grid.ndim - 1 - axis))
    kept = distance <= math.floor(share * min(sides)) ** 2
    low: Tensor = torch.fft.ifftn(torch.fft.fftn(grid.float(), dim=tuple(axes)) * kept, dim=tuple(axes))
    return low.real.reshape(x.shape)


def as_grid(latent: Tensor) -> tuple[Tensor, range]:
    """The latent with its axes of space and time, and which these are; see `denoised`.

    Raises:
        ValueError: A tensor with another number of dimensions.
    """
    if latent.ndim == 3:
        side = math.isqrt(latent.shape[1])
        square = side * side == latent.shape[1]
        grid = latent.reshape(-1, side, side, latent.shape[2]) if square else latent
        return grid, range(1, grid.ndim - 1)
    if latent.ndim not in (4, 5):
        raise ValueError(f"latent is of shape {tuple(latent.shape)}; give 3, 4 or 5 dimensions.")
    return latent, range(2, latent.ndim)


def _filtered(x: Tensor, axes: range, sigma: float, exponent: float) -> Tensor:
    sigma = min(max(sigma, 0.0), _SIGMA_MAX)
    gain = torch.ones((), device=x.device)
    for axis in axes:
        frequency = torch.fft.fftfreq(x.shape[axis], device=x.device).abs_()
        # Numerator and denominator times |f|**exponent, which is finite at f = 0.
        one = (1.0 - sigma) / ((1.0 - sigma) ** 2 + sigma**2 * frequency**exponent)
        gain = gain * one.reshape(-1, *[1] * (x.ndim - 1 - axis))
    dims = tuple(axes)
    filtered: Tensor = torch.fft.ifftn(torch.fft.fftn(x.float(), dim=dims) * (gain / gain.mean()), dim=dims)
    return filtered.real
