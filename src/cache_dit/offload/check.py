"""What cannot be offloaded beside caching, quantization and compilation, found before it fails."""

from __future__ import annotations

from typing import Any

from torch import nn

from cache_dit.caching.attach.override import attachment_of, plain_class
from cache_dit.caching.attach.targets import cached_models
from cache_dit.errors import ConfigError
from cache_dit.stats.offloaded import cut_group, group_of


def check_offload(pipe_or_transformer: Any) -> None:
    """Raise where a block would find its weights offloaded, or where weights cannot be moved.

    Call it once caching, offloading and compilation are on, in whatever order that was. `cache_dit.diagnose`
    tells the first of the two as well.

    Args:
        pipe_or_transformer: A diffusers pipeline or a model.

    Raises:
        ConfigError: A block that is always computed shares an offloading group with skipped ones, or blocks
            with weights of torchao are compiled and offloaded by groups; the message says what to change.
        UnsupportedModelError: The object is no pipeline, transformer or adapter.
    """
    for model in cached_models(pipe_or_transformer):
        name, attached = plain_class(model).__name__, attachment_of(model)
        if attached is not None and (cut := cut_group(attached)):
            raise ConfigError(f"In {name} {cut}")
        if any(map(_is_held, model.modules())):
            raise ConfigError(
                f"Blocks of {name} are compiled and offloaded by groups, and their weights are quantized by "
                "torchao: torch keeps hold of compiled weights, so these cannot be moved. Leave one of the "
                "three out."
            )


def _is_held(block: nn.Module) -> bool:
    """Whether a block is compiled, has weights of torchao, and these are to be moved by groups."""
    return (
        getattr(block, "_compiled_call_impl", None) is not None
        and any(type(weight).__module__.startswith("torchao.") for weight in block.parameters())
        and any(group_of(part) is not None for part in block.modules())
    )
