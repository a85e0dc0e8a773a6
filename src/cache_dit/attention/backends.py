"""Choose which kernel computes the attention of a model, and put back what was there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from cache_dit.caching.attach.override import plain_class
from cache_dit.caching.attach.targets import cached_models
from cache_dit.errors import ConfigError, UnsupportedModelError, nearest

# The attribute that diffusers reads on an attention processor.
_FIELD = "_attention_backend"
_UNSET = object()
# Those that need no GPU, or bring a check of their own for another accelerator.
_ANYWHERE = {
    "native",
    "flex",
    "_native_math",
    "_native_flash",
    "_native_efficient",
    "_native_npu",
    "_native_xla",
}


def attn_backends() -> tuple[str, ...]:
    """Names of all attention backends of the installed diffusers, whether they can run here or not."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    return tuple(name.value for name in AttentionBackendName)


def set_attn_backend(pipe_or_transformer: Any, backend: str) -> ExitStack:
    """Let the transformers of a pipeline, or one model, compute attention with another kernel.

    Unlike `set_attention_backend` of diffusers it leaves the default of all other models alone. It may be
    called before or after `enable_cache`, and again to choose another.

    Args:
        pipe_or_transformer: A diffusers pipeline, of which the transformers are meant, or a model.
        backend: One of `attn_backends()`, such as "native" (torch's choice), "_native_cudnn", "flash",
            "_flash_3" or "sage".

    Returns:
        What undoes it: call its `close()`, or use it in a `with` statement. It may be ignored.

    Raises:
        ConfigError: The name is unknown, its package is not installed, or it needs a GPU and there is none.
            Nothing has been changed then.
        UnsupportedModelError: There is no model whose attention can be chosen.

    Examples:
        >>> set_attn_backend(pipe, "_native_cudnn")
        >>> with set_attn_backend(pipe, "_native_math"):
        ...     reference = pipe("a red house")
    """
    name = checked_attn_backend(backend)
    target = pipe_or_transformer
    models = [target] if isinstance(target, nn.Module) else cached_models(target)
    found = [(model, list(_choosing(model))) for model in models]
    for model, modules in found:
        if not modules or not hasattr(model, "set_attention_backend"):
            raise UnsupportedModelError(
                f"{plain_class(model).__name__} has no attention whose kernel diffusers can choose; where it "
                "calls torch's own attention, torch.nn.attention.sdpa_kernel chooses among those of torch."
            )
    with ExitStack() as undo:
        for model, modules in found:
            for module in modules:
                undo.callback(_restore, module, vars(module.processor).get(_FIELD, _UNSET))
            _set(model, name)
        return undo.pop_all()


def checked_attn_backend(backend: str) -> str:
    """The name, if diffusers knows it and this machine can run it; for checks before a model is loaded.

    Args:
        backend: As in `set_attn_backend`.

    Returns:
        The same name.

    Raises:
        ConfigError: The name is unknown, or it needs a GPU and there is none.
    """
    known = attn_backends()
    if backend not in known:
        hint = nearest(str(backend), known)
        meant = f" Did you mean {hint!r}?" if hint else ""
        raise ConfigError(f"backend is {backend!r}; diffusers knows {', '.join(map(repr, known))}.{meant}")
    if backend not in _ANYWHERE and not torch.cuda.is_available():
        raise ConfigError(
            f"backend is {backend!r}, whose kernels run on a CUDA GPU, and there is none; give 'native'."
        )
    return backend


def _choosing(model: nn.Module) -> Iterator[Any]:
    """The modules whose attention processor takes a backend."""
    return (part for part in model.modules() if hasattr(getattr(part, "processor", None), _FIELD))


def _set(model: Any, name: str) -> None:
    with _default_kept():
        try:
            model.set_attention_backend(name)
        except (RuntimeError, ImportError, ValueError) as error:
            # What is missing: a package, its version, or the support of context parallelism.
            raise ConfigError(f"backend is {name!r}, which cannot be used here: {error}") from error


@contextmanager
def _default_kept() -> Iterator[None]:
    """diffusers makes the backend of one model the default of all; its advice on that is of no use either."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry
    from diffusers.utils import logging

    default, _ = Registry.get_active_backend()
    logger = logging.get_logger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        # diffusers 0.35 has no function that sets it.
        Registry._active_backend = default


def _restore(module: Any, before: Any) -> None:
    """Put the backend of a module's processor back, which may be another one by now."""
    processor = module.processor
    if before is not _UNSET:
        setattr(processor, _FIELD, before)
    else:
        vars(processor).pop(_FIELD, None)
