"""LPIPS: how far two pictures are apart in the features of a network that was trained to see.

R. Zhang, P. Isola, A. Efros, E. Shechtman and O. Wang, The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric, CVPR 2018, arXiv 1801.03924, eq. 1. Networks: AlexNet and VGG16.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from cache_dit.errors import ConfigError
from cache_dit.metrics.measured import Measured
from cache_dit.metrics.options import NotGivenError, Options, Run
from cache_dit.metrics.pairs import measure_pairs
from cache_dit.metrics.pictures import PathLike, existing
from cache_dit.metrics.weights import WEIGHTS, misfits, read_state

LPIPS_FOLDER = "LPIPS_MODEL_DIR"
# ImageNet's mean and deviation for pictures from -1 to 1, rounded as in the LPIPS release.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


@dataclass(frozen=True, slots=True)
class _Conv:
    """A convolution with a ReLU behind it: its number in torchvision's `features`, and its form."""

    number: int
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True, slots=True)
class Network:
    """A stack of convolutions. A stage ends where features are compared, the next begins with a max pooling.

    Attributes:
        name: What it is called.
        stages: The convolutions of each stage.
        pooling: Kernel of the pooling, of stride 2, before each stage; 0: none.
        smallest: Least height and width of a picture that leaves something to compare at the end.
    """

    name: str
    stages: tuple[tuple[_Conv, ...], ...]
    pooling: tuple[int, ...]
    smallest: int


ALEXNET = Network(
    "AlexNet",
    (
        (_Conv(0, 64, kernel=11, stride=4, padding=2),),
        (_Conv(3, 192, kernel=5, padding=2),),
        (_Conv(6, 384),),
        (_Conv(8, 256),),
        (_Conv(10, 256),),
    ),
    (0, 3, 3, 0, 0),
    smallest=31,
)
VGG16 = Network(
    "VGG16",
    (
        (_Conv(0, 64), _Conv(2, 64)),
        (_Conv(5, 128), _Conv(7, 128)),
        (_Conv(10, 256), _Conv(12, 256), _Conv(14, 256)),
        (_Conv(17, 512), _Conv(19, 512), _Conv(21, 512)),
        (_Conv(24, 512), _Conv(26, 512), _Conv(28, 512)),
    ),
    (0, 2, 2, 2, 2),
    smallest=16,
)


def compute_lpips(
    true: PathLike, test: PathLike, weights: PathLike | None = None, **options: Unpack[Options]
) -> Measured:
    """LPIPS of pictures (Zhang et al. 2018, arXiv 1801.03924, eq. 1), in float32.

    Args:
        true: The reference: a picture, or a folder of pictures.
        test: What is compared with it, of the same kind. Files of folders are matched by their names.
        weights: A folder (or one file) with the weights of one network as `.safetensors`, `.pth` or `.pt`:
            torchvision's AlexNet or VGG16 (`features.0.weight`, ...) and the heads of the LPIPS release
            (`lin0.model.1.weight`, ...). Default None: the folder that LPIPS_MODEL_DIR names.
        options: See `Options`.

    Returns:
        Mean over the pictures, 0 for equal ones, and their number.

    Raises:
        ConfigError: There are no weights or not those of one network, a path is missing, a file has no
            partner, is no picture or too small, or the sizes of a pair differ.
        ConfigTypeError: An option is unknown.
    """
    state = read_weights(weights)
    network = network_of(state)
    device = Run.of(options).device
    state = {name: values.to(device, torch.float32) for name, values in state.items()}

    def compare(first: Tensor, second: Tensor) -> list[float]:
        return lpips(first.float(), second.float(), network, state).tolist()

    return measure_pairs("lpips", true, test, options, compare, smallest=network.smallest)


def lpips(first: Tensor, second: Tensor, network: Network, state: Mapping[str, Tensor]) -> Tensor:
    """LPIPS of pictures in memory: two [n, 3, height, width] from 0 to 1 -> [n]."""
    total = torch.zeros(len(first), device=first.device)
    layers = zip(features(first, network, state), features(second, network, state), strict=True)
    for number, (one, other) in enumerate(layers):
        difference = (_unit(one) - _unit(other)).square()
        head = state[f"lin{number}.model.1.weight"]
        total += F.conv2d(difference, head).mean(dim=(1, 2, 3))
    return total


def features(pictures: Tensor, network: Network, state: Mapping[str, Tensor]) -> list[Tensor]:
    """What each stage ends with: [n, 3, height, width] from 0 to 1 -> [n, channels, rows, columns] each."""
    shift, scale = (pictures.new_tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
    x = (2 * pictures - 1 - shift) / scale
    found = []
    for stage, pooling in zip(network.stages, network.pooling, strict=True):
        x = F.max_pool2d(x, pooling, stride=2) if pooling else x
        for conv in stage:
            weight, bias = (state[f"features.{conv.number}.{part}"] for part in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, stride=conv.stride, padding=conv.padding))
        found.append(x)
    return found


def network_of(state: Mapping[str, Tensor]) -> Network:
    """The network that some weights are those of.

    Raises:
        ConfigError: It is neither AlexNet nor VGG16, or a weight or a head is missing or of another shape.
    """
    wrong = {network: misfits(state, shapes(network)) for network in (ALEXNET, VGG16)}
    network = min(wrong, key=lambda network: len(wrong[network]))
    if wrong[network]:
        raise ConfigError(
            f"the weights of LPIPS are not whole; of {network.name}, the nearest, {wrong[network][0]}. Give "
            "torchvision's AlexNet or VGG16 (features.0.weight, ...) and the heads of the LPIPS release "
            "(lin0.model.1.weight, ...)."
        )
    return network


def read_weights(weights: PathLike | None) -> dict[str, Tensor]:
    """All tensors of a file, or of all files of weights in a folder; None: of the folder LPIPS_MODEL_DIR.

    Raises:
        ConfigError: There are none, a file holds something else than tensors, or a name is in two files.
    """
    place = weights if weights is not None else os.environ.get(LPIPS_FOLDER)
    if place is None:
        raise NotGivenError(
            "weights of LPIPS are not given; put those of torchvision's AlexNet or VGG16 and the heads of "
            f"the LPIPS release into one folder, and give weights=FOLDER or set {LPIPS_FOLDER} to it."
        )
    path = existing(place)
    files = sorted(child for child in path.iterdir() if child.suffix in WEIGHTS) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} has no weights ({', '.join(WEIGHTS)}); give another folder.")
    state: dict[str, Tensor] = {}
    for file in files:
        read = read_state(file)
        if twice := sorted(state.keys() & read.keys()):
            raise ConfigError(
                f"{twice[0]} is in {file} and in another file of {path}; keep one network there."
            )
        state |= read
    return state


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """The shape of every weight and every head by its name."""
    found: dict[str, tuple[int, ...]] = {}
    channels = 3
    for number, stage in enumerate(network.stages):
        for conv in stage:
            found[f"features.{conv.number}.weight"] = (conv.channels, channels, conv.kernel, conv.kernel)
            found[f"features.{conv.number}.bias"] = (conv.channels,)
            channels = conv.channels
        found[f"lin{number}.model.1.weight"] = (1, channels, 1, 1)
    return found


def _unit(x: Tensor) -> Tensor:
    """Every pixel's features with length 1; [n, channels, rows, columns]."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)
