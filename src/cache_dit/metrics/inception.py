"""The InceptionV3 of FID, which gives 2,048 features of a picture.

C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens and Z. Wojna, Rethinking the Inception Architecture for Computer
Vision, CVPR 2016, arXiv 1512.00567. FID is defined by one set of weights (TensorFlow's of 2015-12-05), whose
pooling is another than that of torchvision's port: padding does not count in means, and the last block takes
maxima.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

import torch
import torch.nn.functional as F
from torch import Tensor

from cache_dit.errors import ConfigError
from cache_dit.metrics.weights import misfits

# TensorFlow's network has 1,008 classes, torchvision's port 1,000: so they are told apart.
_CLASSES = (1008, 2048)
_SIZE = 299
_EPSILON = 1e-3  # of the batch normalisation


class _Pool(Enum):
    NONE = auto()
    MEAN = auto()
    MAX = auto()
    MAX_HALF = auto()  # with stride 2


@dataclass(frozen=True, slots=True)
class _Conv:
    """A convolution, batch normalisation and ReLU. With stride 2, or not padded, it eats the border."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True

    @property
    def padding(self) -> tuple[int, int]:
        kept = self.padded and self.stride == 1
        return (self.kernel[0] // 2, self.kernel[1] // 2) if kept else (0, 0)


@dataclass(frozen=True, slots=True)
class _Branch:
    """A pooling, then convolutions one after the other, then some side by side."""

    convs: tuple[_Conv, ...] = ()
    fork: tuple[_Conv, ...] = ()
    pool: _Pool = _Pool.NONE


@dataclass(frozen=True, slots=True)
class _Block:
    """Branches side by side; their channels are joined."""

    name: str
    branches: tuple[_Branch, ...]


def _stem(name: str, channels: int, kernel: int, stride: int = 1, padded: bool = False) -> _Block:
    return _Block("", (_Branch((_Conv(name, channels, (kernel, kernel), stride, padded),)),))


def _a(name: str, pooled: int) -> _Block:
    five = (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5)))
    double = (
        _Conv("branch3x3dbl_1", 64),
        _Conv("branch3x3dbl_2", 96, (3, 3)),
        _Conv("branch3x3dbl_3", 96, (3, 3)),
    )
    pool = _Branch((_Conv("branch_pool", pooled),), pool=_Pool.MEAN)
    return _Block(name, (_Branch((_Conv("branch1x1", 64),)), _Branch(five), _Branch(double), pool))


def _b(name: str) -> _Block:
    double = (
        _Conv("branch3x3dbl_1", 64),
        _Conv("branch3x3dbl_2", 96, (3, 3)),
        _Conv("branch3x3dbl_3", 96, (3, 3), stride=2),
    )
    three = _Branch((_Conv("branch3x3", 384, (3, 3), stride=2),))
    return _Block(name, (three, _Branch(double), _Branch(pool=_Pool.MAX_HALF)))


def _c(name: str, inner: int) -> _Block:
    seven = (
        _Conv("branch7x7_1", inner),
        _Conv("branch7x7_2", inner, (1, 7)),
        _Conv("branch7x7_3", 192, (7, 1)),
    )
    double = (
        _Conv("branch7x7dbl_1", inner),
        _Conv("branch7x7dbl_2", inner, (7, 1)),
        _Conv("branch7x7dbl_3", inner, (1, 7)),
        _Conv("branch7x7dbl_4", inner, (7, 1)),
        _Conv("branch7x7dbl_5", 192, (1, 7)),
    )
    pool = _Branch((_Conv("branch_pool", 192),), pool=_Pool.MEAN)
    return _Block(name, (_Branch((_Conv("branch1x1", 192),)), _Branch(seven), _Branch(double), pool))


def _d(name: str) -> _Block:
    three = (_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, (3, 3), stride=2))
    seven = (
        _Conv("branch7x7x3_1", 192),
        _Conv("branch7x7x3_2", 192, (1, 7)),
        _Conv("branch7x7x3_3", 192, (7, 1)),
        _Conv("branch7x7x3_4", 192, (3, 3), stride=2),
    )
    return _Block(name, (_Branch(three), _Branch(seven), _Branch(pool=_Pool.MAX_HALF)))


def _e(name: str, pool: _Pool) -> _Block:
    three = _Branch(
        (_Conv("branch3x3_1", 384),),
        (_Conv("branch3x3_2a", 384, (1, 3)), _Conv("branch3x3_2b", 384, (3, 1))),
    )
    double = _Branch(
        (_Conv("branch3x3dbl_1", 448), _Conv("branch3x3dbl_2", 384, (3, 3))),
        (_Conv("branch3x3dbl_3a", 384, (1, 3)), _Conv("branch3x3dbl_3b", 384, (3, 1))),
    )
    pooled = _Branch((_Conv("branch_pool", 192),), pool=pool)
    return _Block(name, (_Branch((_Conv("branch1x1", 320),)), three, double, pooled))


_HALVED = _Block("", (_Branch(pool=_Pool.MAX_HALF),))
_BLOCKS = (
    _stem("Conv2d_1a_3x3", 32, 3, stride=2),
    _stem("Conv2d_2a_3x3", 32, 3),
    _stem("Conv2d_2b_3x3", 64, 3, padded=True),
    _HALVED,
    _stem("Conv2d_3b_1x1", 80, 1),
    _stem("Conv2d_4a_3x3", 192, 3),
    _HALVED,
    _a("Mixed_5b.", 32),
    _a("Mixed_5c.", 64),
    _a("Mixed_5d.", 64),
    _b("Mixed_6a."),
    _c("Mixed_6b.", 128),
    _c("Mixed_6c.", 160),
    _c("Mixed_6d.", 160),
    _c("Mixed_6e.", 192),
    _d("Mixed_7a."),
    _e("Mixed_7b.", _Pool.MEAN),
    _e("Mixed_7c.", _Pool.MAX),
)


class Inception:
    """The network with its weights: pictures [n, 3, height, width] in uint8 -> features [n, 2048].

    Args:
        state: The weights by torchvision's names, in float32 or less, with 1,008 classes.
        device: Where it computes.

    Raises:
        ConfigError: A weight is missing or of another shape, or the weights are torchvision's own.
    """

    def __init__(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        wanted = shapes()
        if wrong := misfits(state, wanted):
            raise ConfigError(
                f"the weights of InceptionV3 are not whole, or not those of FID: {wrong[0]}. Give "
                "pt_inception-2015-12-05 (1,008 classes): FID by torchvision's own weights has another scale."
            )
        self._state = {name: state[name].to(device, torch.float32) for name in wanted}

    def __call__(self, pictures: Tensor) -> Tensor:
        x = F.interpolate(pictures.float() / 255, size=(_SIZE, _SIZE), mode="bilinear", align_corners=False)
        x = 2 * x - 1
        for block in _BLOCKS:
            x = torch.cat(
                [y for branch in block.branches for y in self._branch(x, block.name, branch)], dim=1
            )
        return x.mean(dim=(2, 3))

    def _branch(self, x: Tensor, prefix: str, branch: _Branch) -> list[Tensor]:
        x = _pooled(x, branch.pool)
        for conv in branch.convs:
            x = self._conv(x, prefix, conv)
        return [self._conv(x, prefix, conv) for conv in branch.fork] or [x]

    def _conv(self, x: Tensor, prefix: str, conv: _Conv) -> Tensor:
        weight, *normal = (self._state[name] for name in _names(prefix, conv))
        x = F.conv2d(x, weight, stride=conv.stride, padding=conv.padding)
        scale, shift, mean, variance = normal
        return F.relu(F.batch_norm(x, mean, variance, scale, shift, eps=_EPSILON))


def shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every weight by its name."""
    found: dict[str, tuple[int, ...]] = {"fc.weight": _CLASSES}
    channels = 3
    for block in _BLOCKS:
        joined = 0
        for branch in block.branches:
            width = channels
            for conv in branch.convs:
                found |= _shapes_of(block.name, conv, width)
                width = conv.channels
            for conv in branch.fork:
                found |= _shapes_of(block.name, conv, width)
            joined += sum(conv.channels for conv in branch.fork) or width
        channels = joined
    return found


def _shapes_of(prefix: str, conv: _Conv, channels: int) -> dict[str, tuple[int, ...]]:
    weight, *normal = _names(prefix, conv)
    return {weight: (conv.channels, channels, *conv.kernel)} | dict.fromkeys(normal, (conv.channels,))


def _names(prefix: str, conv: _Conv) -> Iterator[str]:
    yield f"{prefix}{conv.name}.conv.weight"
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}{conv.name}.bn.{part}"


def _pooled(x: Tensor, pool: _Pool) -> Tensor:
    match pool:
        case _Pool.NONE:
            return x
        case _Pool.MEAN:
            return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        case _Pool.MAX:
            return F.max_pool2d(x, 3, stride=1, padding=1)
        case _Pool.MAX_HALF:
            return F.max_pool2d(x, 3, stride=2)
