"""Pictures as users have them, to put into a page."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cache_dit.errors import ConfigError, ConfigTypeError
from cache_dit.metrics.image import psnr, ssim

# A path, a PIL image, or an array or tensor, [3, height, width] or [height, width, 3].
Picture: TypeAlias = Any

_SMALL = 256  # pixels; below, pictures are enlarged without smoothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A picture with its reference.

    Attributes:
        picture: As a data URI.
        reference: Likewise; None: there is none.
        width: In pixels.
        height: In pixels.
        small: It is better shown in plain pixels.
        psnr: Decibels between the two, `inf` where they are equal; None without a reference.
        ssim: Structural similarity of the two; None likewise, and for pictures below 11 pixels.
    """

    picture: str
    reference: str | None
    width: int
    height: int
    small: bool
    psnr: float | None
    ssim: float | None


def pair_of(picture: Picture, reference: Picture | None) -> Pair:
    """Make a pair to show.

    Raises:
        ConfigError: Not a picture, or two of different size.
        ConfigTypeError: An object that is none of the kinds that are taken.
    """
    shown = as_tensor("picture", picture)
    other = None if reference is None else as_tensor("reference", reference)
    if other is not None and other.shape != shown.shape:
        sizes = [f"{one.shape[2]}x{one.shape[1]}" for one in (shown, other)]
        raise ConfigError(
            f"picture has {sizes[0]} pixels but reference {sizes[1]}; give two of one size, of one prompt "
            "and seed."
        )
    height, width = shown.shape[1:]
    scored = other is not None and min(height, width) >= 11
    return Pair(
        picture=data_uri(shown),
        reference=None if other is None else data_uri(other),
        width=width,
        height=height,
        small=max(height, width) < _SMALL,
        psnr=None if other is None else psnr(shown, other, data_range=1.0),
        ssim=ssim(shown, other, data_range=1.0) if scored else None,
    )


def as_tensor(name: str, picture: Picture) -> Tensor:
    """A picture as float32 [3, height, width], values from 0 to 1; `name` is for messages."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(picture, (str, os.PathLike)):
        try:
            with Image.open(Path(picture)) as opened:
                return as_tensor(name, opened.convert("RGB"))
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ConfigError(f"{name} is {str(picture)!r}, which cannot be read as a picture.") from error
    if isinstance(picture, Image.Image):
        rgb = picture.convert("RGB")
        flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
        return flat.view(rgb.height, rgb.width, 3).permute(2, 0, 1) / 255.0
    if isinstance(picture, (list, tuple)):
        raise ConfigTypeError(f"{name} is a list of {len(picture)}; give one picture, such as {name}[0].")
    try:
        values = torch.as_tensor(picture).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigTypeError(
            f"{name} is of type {type(picture).__name__}; give a path, a PIL image, an array or a tensor."
        ) from error
    if values.dim() == 3 and values.shape[0] != 3:
        values = values.permute(2, 0, 1)
    if values.dim() != 3 or values.shape[0] != 3 or not values.numel():
        raise ConfigError(
            f"{name} has the shape {tuple(torch.as_tensor(picture).shape)}; give one colour picture, "
            "[3, height, width] or [height, width, 3]."
        )
    if not values.is_floating_point():
        return values.float() / 255.0
    low, high = values.min().item(), values.max().item()
    if not (low >= -0.01 and high <= 1.01):
        raise ConfigError(f"{name} has values from {low:.3g} to {high:.3g}; give floats from 0 to 1.")
    return values.float().clamp(0.0, 1.0)


def data_uri(picture: Tensor) -> str:
    """The picture as a PNG file in a `data:` URI."""
    from PIL import Image

    pixels = picture.mul(255.0).round().byte().permute(1, 2, 0).contiguous()
    buffer = io.BytesIO()
    size = (pixels.shape[1], pixels.shape[0])
    Image.frombytes("RGB", size, pixels.numpy().tobytes()).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
