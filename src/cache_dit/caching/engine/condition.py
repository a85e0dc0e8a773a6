"""What a run is conditioned on, as far as it can be seen from a forward without looking at its values.

When it switches in the middle of a run (a ControlNet's window ends, a LoRA is exchanged), what was learnt so
far describes another function, so the step is computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cache_dit.caching.engine.ports import Arguments, Keywords, Port


def condition_of(
    model: nn.Module, controls: Sequence[Port], args: Arguments, kwargs: Keywords
) -> tuple[Hashable, ...]:
    """The arguments that are given, which control inputs are not zero, and the LoRA adapters in force.

    Outside of their window diffusers multiplies a ControlNet's outputs by zero, so they are read: one wait
    for the device, in forwards with control inputs only.
    """
    given = frozenset([name for name, value in kwargs.items() if value is not None])
    active = tuple([_acts(port.read(args, kwargs)) for port in controls])
    return (len(args), given, active, _adapters(model))


def _acts(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value.any())
    if isinstance(value, Mapping):
        value = tuple(value.values())
    # A scale counts for all of them, so the first tells.
    return isinstance(value, (tuple, list)) and len(value) > 0 and _acts(value[0])


def _adapters(model: nn.Module) -> Hashable:
    if not vars(model).get("peft_config"):
        return None
    layers = (
        layer for layer in model.modules() if hasattr(layer, "active_adapters") and hasattr(layer, "scaling")
    )
    layer: Any = next(layers, None)
    if layer is None:
        return None
    return (tuple(layer.active_adapters), tuple(layer.scaling.items()), layer.disable_adapters)
