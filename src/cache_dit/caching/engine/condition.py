"""What a run is conditioned on, as far as it can be seen without comparing prompts.

When it switches in the middle of a run (a ControlNet's window ends, a LoRA is exchanged), what was learnt so
far describes another function, so the step is computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any
from weakref import ref

from torch import Tensor, nn

from cache_dit.caching.engine.ports import Call, Port

_DIGITS = 9
"""diffusers scales LoRAs up and down again around a forward, which leaves an error of rounding."""


class Watch:
    """Reads the condition of every forward of a run; remembers which parts of the model have a scale."""

    __slots__ = ("_adapters", "_scaled", "_version")

    def __init__(self) -> None:
        self._adapters: tuple[Any, ...] = ()
        self._scaled: list[ref[nn.Module]] = []
        self._version = 0

    def condition(self, call: Call, controls: Sequence[Port]) -> Hashable:
        """The arguments that are given, which control inputs are not zero, and the adapters' scales.

        Outside of their window diffusers multiplies a ControlNet's outputs by zero, so they are read: one
        wait for the device, in forwards with control inputs only.
        """
        given, scales, prompted = [], [], False
        for name, value in call.kwargs.items():
            if value is not None:
                given.append(name)
                # Attention arguments, with a scale for all LoRAs and with the images of IP-Adapters.
                if type(value) is dict:
                    scales.append(value.get("scale"))
                    prompted = prompted or any([str(key).startswith("ip_") for key in value])
        active = tuple([_acts(port.read(call.args, call.kwargs)) for port in controls]) if controls else ()
        adapted = self._adapted(call.model, prompted)
        return (len(call.args), frozenset(given), active, *scales, prompted, adapted)

    def _adapted(self, model: nn.Module, prompted: bool) -> Hashable:
        configs = vars(model).get("peft_config")
        if not configs and not prompted:
            return None
        adapters = tuple((configs or {}).values())
        # By identity, since an adapter may be replaced by another one of the same name.
        if not self._version or tuple(map(id, adapters)) != tuple(map(id, self._adapters)):
            self._adapters = adapters
            self._scaled = [ref(module) for module in model.modules() if _has_scale(module)]
            self._version += 1
        modules = [module for module in [kept() for kept in self._scaled] if module is not None]
        return (self._version, *map(_scale, modules))


def _acts(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value.any())
    if isinstance(value, Mapping):
        value = tuple(value.values())
    # A scale counts for all of them, so the first tells.
    return isinstance(value, (tuple, list)) and len(value) > 0 and _acts(value[0])


def _has_scale(module: nn.Module) -> bool:
    return hasattr(module, "to_k_ip") or (hasattr(module, "scaling") and hasattr(module, "active_adapters"))


def _scale(module: Any) -> Hashable:
    if hasattr(module, "to_k_ip"):
        return tuple(module.scale) if isinstance(module.scale, list) else module.scale
    names = () if module.disable_adapters else module.active_adapters
    return tuple([(name, round(module.scaling[name], _DIGITS)) for name in names if name in module.scaling])
