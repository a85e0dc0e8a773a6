"""Which way a module is spread: by tiles, by layers, or as a transformer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from cache_dit.errors import ConfigError, nearest
from cache_dit.parallelism.mesh import Sharing
from cache_dit.parallelism.modules.layers import shard_layers
from cache_dit.parallelism.modules.tiles import share_tiles
from cache_dit.parallelism.tensor import TENSOR_PLANS, divide


def spread(entries: Sequence[Any], pipe: object, sharing: Sharing, undo: contextlib.ExitStack) -> None:
    """Spread modules around the transformer over the ranks that share a sample.

    A VAE has its tiles shared out, a ControlNet is divided as a transformer over `tp_size`, and of everything
    else, such as text encoders, every rank keeps a share of each layer's weights.

    Args:
        entries: Modules, or names of the pipeline's components.
        pipe: The pipeline; None where there is none.
        sharing: The ranks.
        undo: Takes the way back.

    Raises:
        ConfigError: There is no such component, or it cannot be spread.
    """
    for name, module in _named(entries, pipe):
        if dist.get_world_size(sharing.group) > 1:
            undo.callback(_spread(name, module, sharing))


def _spread(name: str, module: Any, sharing: Sharing) -> Callable[[], None]:
    known = {plan.name for plan in TENSOR_PLANS}
    if any(base.__name__ in known for base in type(module).__mro__):
        if sharing.mesh is None or sharing.config.tp_size == 1:
            raise ConfigError(
                f"extra_parallel_modules names {name}, a {type(module).__name__}, which is divided by "
                "tp_size, but that is 1; give tp_size, or call enable_cache on it, with ulysses_size."
            )
        return divide(module, sharing.part("tp"))
    if hasattr(module, "decoder") and hasattr(module, "decode"):
        return share_tiles(module, sharing.group)
    return shard_layers(module, sharing.group)


def _named(entries: Sequence[Any], pipe: object) -> Iterator[tuple[str, nn.Module]]:
    for entry in entries:
        name = entry if isinstance(entry, str) else type(entry).__name__
        module = getattr(pipe, entry, None) if isinstance(entry, str) else entry
        if not isinstance(module, nn.Module):
            components = (
                [key for key, value in vars(pipe).items() if isinstance(value, nn.Module)] if pipe else []
            )
            near = nearest(name, components)
            hint = f" Did you mean {near!r}?" if near else ""
            raise ConfigError(
                f"extra_parallel_modules names {name!r}, which is no module of the pipeline.{hint} "
                f"Give a module, or one of: {', '.join(components) or 'none, as there is no pipeline'}."
            )
        yield name, module
