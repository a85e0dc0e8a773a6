"""Compile the blocks of a transformer, each class once, and leave the loop around them as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from cache_dit.caching.attach.override import attachment_of, plain_class
from cache_dit.caching.attach.targets import cached_models
from cache_dit.caching.models.rows import row_of
from cache_dit.errors import UnsupportedModelError

_Target = TypeVar("_Target")


def compile_repeated_blocks(
    pipe_or_transformer: _Target, *, fullgraph: bool = True, clone_outputs: bool | None = None, **options: Any
) -> _Target:
    """Compile the repeated blocks of the transformers of a pipeline, or of one model, in place.

    Blocks of one class share their graphs, so compiling takes as long as for one block, and the cache
    decides outside of them: computed and skipped steps use the same graphs. In any order with
    `enable_cache`. diffusers has a method of this name too, which 38 of the 81 known classes do not support.

    Args:
        pipe_or_transformer: A diffusers pipeline, of which the transformers are meant, or a model.
        fullgraph: Raise where a block cannot be one graph, rather than to run parts of it uncompiled.
        clone_outputs: Give what a block returns memory of its own. CUDA graphs write every result into the
            same memory, over the one that the cache still holds. None: where CUDA graphs are asked for, by
            `mode`, `options` or `set_compile_configs`.
        **options: For `torch.compile`: `mode`, `dynamic`, `backend`, `options`.

    Returns:
        The object that was given.

    Raises:
        UnsupportedModelError: The blocks of a class are not known. Nothing has been compiled then.

    Examples:
        >>> compile_repeated_blocks(pipe, mode="max-autotune-no-cudagraphs")
    """
    target: Any = pipe_or_transformer
    models = [target] if isinstance(target, nn.Module) else cached_models(target)
    found = [block for model in models for block in repeated_blocks(model)]
    clones = uses_cuda_graphs(options) if clone_outputs is None else clone_outputs
    for block in found:
        block.compile(fullgraph=fullgraph, **options)
        compiled = block._compiled_call_impl
        if clones and compiled is not None:
            block._compiled_call_impl = _with_own_memory(compiled)
    return pipe_or_transformer


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: those that its class names, else those of its row, else those cached.

    Raises:
        UnsupportedModelError: There are none.
    """
    names = getattr(model, "_repeated_blocks", None) or ()
    blocks = [part for part in model.modules() if type(part).__name__ in names]
    row, attached = row_of(type(model)), attachment_of(model)
    if not blocks and row is not None:
        blocks = [block for flow in row.lists for block in flow.members(model)]
    if not blocks and attached is not None:
        blocks = [block for members in attached.lists.blocks for block in members]
    if not blocks:
        raise UnsupportedModelError(
            f"The repeated blocks of {plain_class(model).__name__} are not known; enable the cache with a "
            "BlockAdapter first, or compile the whole model: transformer.compile()."
        )
    return list(dict.fromkeys(blocks))


def uses_cuda_graphs(options: Mapping[str, Any]) -> bool:
    """Whether `torch.compile` with these options would replay CUDA graphs."""
    if options.get("mode") in ("reduce-overhead", "max-autotune"):
        return True
    asked = (options.get("options") or {}).get("triton.cudagraphs")
    return bool(torch._inductor.config.triton.cudagraphs if asked is None else asked)


def _with_own_memory(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return tree_map_only(Tensor, Tensor.clone, call(*args, **kwargs))

    return run
