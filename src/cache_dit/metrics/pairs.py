"""Metrics of pairs of pictures, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, Unpack

import torch
from torch import Tensor

from cache_dit.errors import ConfigError
from cache_dit.metrics.image import WINDOW, decibels, similarities, squared_errors
from cache_dit.metrics.measured import Measured
from cache_dit.metrics.options import Options, Run
from cache_dit.metrics.pictures import PathLike, listing, load_batch, picture_pairs, same_size, size_of

# Two [n, 3, height, width] in float64 from 0 to 1 -> n values.
Compare: TypeAlias = Callable[[Tensor, Tensor], list[float]]
_LEVELS = 255


def compute_psnr(true: PathLike, test: PathLike, **options: Unpack[Options]) -> Measured:
    """Peak signal-to-noise ratio of pictures, see `psnr`.

    Args:
        true: The reference: a picture, or a folder of pictures.
        test: What is compared with it, of the same kind. Files of folders are matched by their names.
        options: See `Options`.

    Returns:
        Mean over the pictures in decibels, and their number. Equal pictures have `inf`, and so has then the
        mean.

    Raises:
        ConfigError: A path is missing, a file has no partner or is no picture, or the sizes of a pair differ.
        ConfigTypeError: An option is unknown.
    """
    return measure_pairs("psnr", true, test, options, _psnr)


def compute_ssim(true: PathLike, test: PathLike, **options: Unpack[Options]) -> Measured:
    """Structural similarity of pictures, see `ssim`: the mean over the red, green and blue plane.

    Args:
        true: The reference: a picture, or a folder of pictures, of at least 11x11 pixels.
        test: What is compared with it, of the same kind. Files of folders are matched by their names.
        options: See `Options`.

    Returns:
        Mean over the pictures, at most 1.0, and their number.

    Raises:
        ConfigError: A path is missing, a file has no partner, is no picture or too small, or the sizes of a
            pair differ.
        ConfigTypeError: An option is unknown.
    """
    return measure_pairs("ssim", true, test, options, _ssim, smallest=WINDOW)


def compute_mse(true: PathLike, test: PathLike, **options: Unpack[Options]) -> Measured:
    """Mean squared error of pictures in squared grey levels of 8 bits, so that PSNR is 10 log10(255² / mse).

    Args:
        true: The reference: a picture, or a folder of pictures.
        test: What is compared with it, of the same kind. Files of folders are matched by their names.
        options: See `Options`.

    Returns:
        Mean over the pictures, from 0 to 65025, and their number.

    Raises:
        ConfigError: A path is missing, a file has no partner or is no picture, or the sizes of a pair differ.
        ConfigTypeError: An option is unknown.
    """
    return measure_pairs("mse", true, test, options, _mse)


def measure_pairs(
    name: str, true: PathLike, test: PathLike, options: Options, compare: Compare, smallest: int = 1
) -> Measured:
    """Compare all pairs of pictures of at least `smallest` pixels a side, in batches of one size."""
    run = Run.of(options)
    pairs = picture_pairs(true, test)
    if small := [str(pair.test) for pair in pairs if min(size_of(pair.test)) < smallest]:
        raise ConfigError(f"{name} needs {smallest}x{smallest} pixels; smaller are: {listing(small)}.")
    scores: dict[str, float] = {}
    batches = same_size(pairs, lambda pair: pair.test, run.batch_size)
    with torch.inference_mode():
        for batch in run.track(batches, len(pairs), name):
            first = load_batch([pair.true for pair in batch], run.device)
            second = load_batch([pair.test for pair in batch], run.device)
            values = compare(first, second)
            scores.update({pair.name: value for pair, value in zip(batch, values, strict=True)})
    return run.done(name, scores)


def _psnr(first: Tensor, second: Tensor) -> list[float]:
    return [decibels(error, 1.0) for error in squared_errors(first, second).tolist()]


def _ssim(first: Tensor, second: Tensor) -> list[float]:
    return similarities(first, second, data_range=1.0).tolist()


def _mse(first: Tensor, second: Tensor) -> list[float]:
    return squared_errors(_LEVELS * first, _LEVELS * second).tolist()
