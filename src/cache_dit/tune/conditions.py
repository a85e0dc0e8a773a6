"""What scores of a model hold for, so that none of another model, input or method is taken for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cache_dit.caching.attach.targets import cached_models
from cache_dit.tune.space import Family

_SAMPLE = 8


def digests(pipe: Any, arguments: Mapping[str, Any], space: Sequence[Family]) -> dict[str, str]:
    """A fingerprint each of the weights, of the pipeline's arguments and of the methods.

    Args:
        pipe: A diffusers pipeline. Of every parameter of its transformers the name, shape, type and device
            count, and of plain ones the first numbers.
        arguments: What it is called with. Tensors and pictures count by their content.
        space: The methods, which may have measurements in them.
    """
    return {
        "weights": _digest(line for model in cached_models(pipe) for line in _weights(model)),
        "given": _digest(f"{name}={_content(arguments[name])}" for name in sorted(arguments)),
        "methods": _digest(f"{family.name}={family.preset(family.mild)!r}" for family in space),
    }


def _digest(lines: Iterator[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _weights(model: nn.Module) -> Iterator[str]:
    for name, parameter in model.named_parameters():
        first: list[float] = []
        # Those of a quantized model may be objects of another kind, and those of an offloaded one elsewhere.
        if type(parameter.data) is Tensor and not parameter.is_meta:
            row = parameter.detach()[(0,) * (parameter.ndim - 1)] if parameter.ndim else parameter.detach()
            first = row.reshape(-1)[:_SAMPLE].to(torch.float32).tolist()
        yield f"{name} {tuple(parameter.shape)} {parameter.dtype} {parameter.device.type} {first}"


def _content(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {value.tolist()}"
    if hasattr(value, "tobytes"):  # a picture of PIL, an array of numpy
        return hashlib.sha256(value.tobytes()).hexdigest()
    return repr(value)
