"""Text encoders with their layers' weights spread over ranks (FSDP2); a layer is gathered when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from cache_dit.errors import ConfigError


def shard_layers(module: nn.Module, group: dist.ProcessGroup) -> Callable[[], None]:
    """Spread the weights of every layer over the ranks of a group with `torch.distributed.fsdp.fully_shard`.

    A layer's weights are gathered before it runs and freed after it, so results do not change and each rank
    holds one share of the layers, and one whole layer while it runs. Embeddings and what else is no member of
    a list of layers stay whole. All ranks must call the module equally often.

    Args:
        module: A text encoder: any module with lists of layers.
        group: The ranks that share a sample.

    Returns:
        A function that makes the module what it was; all ranks must call it.

    Raises:
        ConfigError: The module has no list of layers, or is on a device that the group has no backend for.
    """
    from torch.distributed.fsdp import fully_shard

    layers = list(_layers(module))
    if not layers:
        raise ConfigError(
            f"extra_parallel_modules names a {type(module).__name__}, which has no list of layers to spread; "
            "leave it out."
        )
    device = next(module.parameters()).device.type
    try:
        group._get_backend(torch.device(device))
    except RuntimeError as error:
        raise ConfigError(
            f"extra_parallel_modules names a {type(module).__name__} on {device}, where the processes cannot "
            f"exchange weights by {dist.get_backend(group)}; move the pipeline to the accelerator first, or "
            "leave it out."
        ) from error
    mesh = DeviceMesh.from_group(group, device)
    kept = [_Kept.of(layer) for layer in layers]
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for one in kept:
        one.release()

    def undo() -> None:
        for one in kept:
            one.restore()

    return undo


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists that have several with weights."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and sum(_has_weights(member) for member in child) > 1:
            yield from filter(_has_weights, child)
        else:
            yield from _layers(child)


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


@dataclass(slots=True)
class _Kept:
    """What a layer was before `fully_shard`, which has no undo: class, hooks and parameters."""

    layer: nn.Module
    plain: type
    attributes: dict[nn.Module, dict[str, Any]]
    parameters: dict[nn.Parameter, tuple[nn.Module, str]]

    @classmethod
    def of(cls, layer: nn.Module) -> _Kept:
        modules = list(layer.modules())
        attributes = {
            module: {
                name: value.copy() if isinstance(value, dict) else value
                for name, value in vars(module).items()
            }
            for module in modules
        }
        parameters = {
            parameter: (module, name)
            for module in modules
            for name, parameter in module.named_parameters(recurse=False)
        }
        return cls(layer, type(layer), attributes, parameters)

    def release(self) -> None:
        """Free the whole weights: the layer has shares of them now."""
        for parameter in self.parameters:
            parameter.data = parameter.data.new_empty(0)

    def restore(self) -> None:
        """Gather the weights and put everything back."""
        from torch.distributed._composable_state import _module_state_mapping

        sharded: Any = self.layer
        sharded.reshard()
        for parameter, (module, name) in self.parameters.items():
            share: Any = getattr(module, name)
            whole: Tensor = share.full_tensor()
            parameter.data = whole.detach()
        self.layer.__class__ = self.plain
        for module, attributes in self.attributes.items():
            vars(module).clear()
            vars(module).update(attributes)
        _module_state_mapping.pop(self.layer, None)
