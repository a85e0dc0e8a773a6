"""What a quantization did, and how many bytes tensors take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cache_dit.quantize.types import QuantType

_NAMED = 3


@dataclass(frozen=True, slots=True)
class QuantizeSummary:
    """What became of the Linear layers of one model; `str()` of it is a short text.

    Attributes:
        model: Class of the model.
        quant_type: What was asked for.
        quantized: Names of the layers that are quantized now.
        skipped: Names of the others, each with the reason.
        bytes_before: Of all parameters and buffers of the model.
        bytes_after: Likewise, scales included.
    """

    model: str
    quant_type: QuantType
    quantized: tuple[str, ...]
    skipped: Mapping[str, str]
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        count = len(self.quantized) + len(self.skipped)
        lines = [
            f"{self.model}: {len(self.quantized)} of {count} Linear layers are {self.quant_type}, "
            f"{_size(self.bytes_before)} -> {_size(self.bytes_after)}"
        ]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        lines += [f"  left: {_names(names)}: {reason}" for reason, names in by_reason.items()]
        return "\n".join(lines)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of a module, as they are stored."""
    return sum(map(_bytes, dict.fromkeys(_tensors(model))))


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _bytes(tensor: Any) -> int:
    if hasattr(tensor, "__tensor_flatten__"):
        inner, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in inner)
    # bitsandbytes keeps its scales beside the weight, those of LLM.int8 under another name.
    state = getattr(tensor, "quant_state", None)
    beside = [] if state is None else _state_tensors(state)
    scales = getattr(tensor, "SCB", None)
    if scales is not None:
        beside.append(scales)
    return tensor.nbytes + sum(other.nbytes for other in beside)


def _state_tensors(state: Any) -> list[Tensor]:
    """The tensors of a `QuantState`; its scales are quantized too, and have a state of their own."""
    found = [value for value in (state.absmax, state.code, state.offset) if isinstance(value, torch.Tensor)]
    return found + ([] if state.state2 is None else _state_tensors(state.state2))


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1000:.1f} kB"


def _names(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
