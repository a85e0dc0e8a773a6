"""The one combination of offloading and caching that cannot work, found before it fails."""

from __future__ import annotations

from typing import Any

from torch import nn

from cache_dit.caching.attach.override import attachment_of, plain_class
from cache_dit.caching.attach.targets import cached_models
from cache_dit.errors import ConfigError


def check_offload(pipe_or_transformer: Any) -> None:
    """Raise where a block that is always computed would find its weights offloaded.

    Group offloading with several blocks in a group loads all of them when the first one runs. Where that one
    is skipped and a later one is not, as with `Bn_compute_blocks`, nobody loads the weights. Call it once
    caching and offloading are both on, in whatever order that was.

    Args:
        pipe_or_transformer: A diffusers pipeline or a model.

    Raises:
        ConfigError: There is such a block; the message says what to change.
        UnsupportedModelError: The object is no pipeline, transformer or adapter.
    """
    for model in cached_models(pipe_or_transformer):
        attached = attachment_of(model)
        for segment in attached.session.plan.segments if attached is not None else ():
            skipped = segment.blocks[segment.start : segment.stop]
            behind = enumerate(segment.blocks[segment.stop :], segment.stop)
            cut = next((index for index, block in behind if _leader(block) in skipped), None)
            if cut is not None:
                raise ConfigError(
                    f"block {cut} of {segment.label} in {plain_class(model).__name__} is always computed but "
                    "shares an offloading group with blocks that are skipped, so its weights would not be "
                    "loaded. Give enable_group_offload(num_blocks_per_group=1), or Bn_compute_blocks=0."
                )


def _leader(block: nn.Module) -> nn.Module | None:
    """The block that loads the weights of a block, where that is another one."""
    hook = getattr(getattr(block, "_diffusers_hook", None), "hooks", {}).get("group_offloading")
    leader: nn.Module | None = None if hook is None else hook.group.onload_leader
    return None if leader is block else leader
