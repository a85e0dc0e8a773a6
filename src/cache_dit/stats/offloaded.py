"""The one combination of offloading and caching that cannot work, found before it fails."""

from __future__ import annotations

from typing import Any

from torch import nn

from cache_dit.caching.attach.attachment import Attachment


def group_of(module: nn.Module) -> Any:
    """The offloading group of diffusers that a module is in; None where it is in none."""
    hook = getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).get("group_offloading")
    return None if hook is None else hook.group


def cut_group(attached: Attachment) -> str | None:
    """Why a block that is always computed would find its weights offloaded, None if none would.

    Group offloading with several blocks in a group loads all of them when the first one runs. Where that one
    is skipped and a later one is not, as with `Bn_compute_blocks`, nobody loads the weights.
    """
    for segment in attached.session.plan.segments:
        skipped = segment.blocks[segment.start : segment.stop]
        for index, block in enumerate(segment.blocks[segment.stop :], segment.stop):
            group = group_of(block)
            if group is not None and group.onload_leader in skipped:
                return (
                    f"block {index} of {segment.label} is always computed but shares an offloading group "
                    "with blocks that are skipped, so its weights would not be loaded; give "
                    "enable_group_offload(num_blocks_per_group=1), or Bn_compute_blocks=0."
                )
    return None
