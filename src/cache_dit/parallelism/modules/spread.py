"""Which way a module is spread: by tiles, by layers, or as a transformer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import nn

from cache_dit.caching.attach.override import spread as spread_models
from cache_dit.caching.models.rows import row_of
from cache_dit.errors import ConfigError, nearest
from cache_dit.parallelism.mesh import Sharing
from cache_dit.parallelism.modules.layers import shard_layers
from cache_dit.parallelism.modules.tiles import share_tiles


def spread(entries: Sequence[Any], pipe: object, sharing: Sharing, undo: contextlib.ExitStack) -> None:
    """Spread modules around the transformer over the ranks that share a sample.

    A VAE has its tiles shared out, a ControlNet is spread as its transformer, to which it returns parts, and
    of everything else, such as text encoders, every rank keeps a share of each layer's weights.

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
            # What only holds several ControlNets.
            for member in getattr(module, "nets", (module,)):
                undo.callback(_spread(name, member, sharing))


def _spread(name: str, module: Any, sharing: Sharing) -> Callable[[], None]:
    row = row_of(type(module))
    if row is not None:
        if sharing.mesh is None:
            raise ConfigError(
                f"extra_parallel_modules names {name}, a {type(module).__name__}, which is spread over "
                "ulysses_size, ring_size and tp_size, but none of them is given; give one, or leave it out."
            )
        own = replace(sharing.config, cp_plan=None, tp_plan=None, extra_parallel_modules=())
        return spread_models(own, [module], None)
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
