"""From settings to a pipeline with all that was asked for on it, in the one order in which it fits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist

from cache_dit.api import enable_cache
from cache_dit.attention import set_attn_backend
from cache_dit.caching.attach.override import attachment_of
from cache_dit.caching.attach.targets import cached_models
from cache_dit.caching.config import Place
from cache_dit.compile import compile_repeated_blocks, set_compile_configs
from cache_dit.demo import load_pipeline
from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.generate.families import Family
from cache_dit.generate.settings import Offload, Stack, check_class, shows_progress
from cache_dit.offload import check_offload
from cache_dit.quantize import QuantizeSummary, quantize

_INSIDE = (Place.ATTENTION, Place.MLP, Place.SUBMODULES)
"""Where a cache decides inside of blocks, so that these are no one graph."""


@contextmanager
def ready(
    family: Family, stack: Stack, report: Callable[[QuantizeSummary], Any] | None = None
) -> Iterator[Any]:
    """The pipeline with the whole stack on it, and the processes that share its samples, for as long.

    Args:
        family: The model.
        stack: What is put on it.
        report: Gets the summary of what was quantized.

    Yields:
        The pipeline.

    Raises:
        CacheDiTError: Something does not fit this model.
        OSError: The model cannot be found or read.
    """
    if stack.device.type != "cpu":
        torch.get_device_module(stack.device).set_device(stack.device)
    if stack.parallelism is not None:
        dist.init_process_group(dist.get_default_backend_for_device(stack.device))
    with ExitStack() as undo:
        pipe = load(family, stack)
        _put_on(pipe, stack, report, undo)
        yield pipe
    # Not after an error: the other ranks may be waiting, and leaving ends them.
    if stack.parallelism is not None:
        dist.destroy_process_group()


def load(family: Family, stack: Stack) -> Any:
    """The pipeline on the CPU, from safetensors files alone.

    Args:
        family: The model.
        stack: Its `model` and `dtype` count here.

    Returns:
        A pipeline of the family's class.

    Raises:
        CacheDiTError: It is of another class than the family's, or is no pipeline.
        OSError: It cannot be found or read.
    """
    if stack.model is None and not family.model:
        pipe = load_pipeline()
        return pipe if stack.dtype in (None, torch.float32) else pipe.to(stack.dtype)
    import diffusers

    model = stack.model or family.model
    index = diffusers.DiffusionPipeline.load_config(model)
    check_class(family, index.get("_class_name"), model)
    dtype = stack.dtype
    if dtype is None:
        dtype = torch.float32 if stack.device.type == "cpu" else torch.bfloat16
    dtypes = {"default": dtype} | ({"vae": torch.float32} if family.vae_float32 else {})
    try:
        with warnings.catch_warnings(), _bars():
            # The name of this argument differs between releases of diffusers; all of them take this one.
            warnings.simplefilter("ignore", FutureWarning)
            return getattr(diffusers, family.pipeline).from_pretrained(
                model, torch_dtype=dtypes, use_safetensors=True, **_beside(family, index, dtype)
            )
    except (ValueError, ImportError) as error:
        raise CacheDiTError(f"{model} cannot be loaded: {error}") from error


@contextmanager
def _bars() -> Iterator[None]:
    """The bars of loading only where somebody looks."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [one for one in (of_diffusers, of_transformers) if one.is_progress_bar_enabled()]
    for library in () if shows_progress() else shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _beside(family: Family, index: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Components that the family's model leaves out, from where they lie."""
    import transformers

    found = {}
    for name, kind, model in family.beside:
        if index.get(name, [None])[0] is None:
            options = {} if "tokenizer" in name else {"dtype": dtype, "use_safetensors": True}
            found[name] = getattr(transformers, kind).from_pretrained(model, **options)
    return found


def _put_on(
    pipe: Any, stack: Stack, report: Callable[[QuantizeSummary], Any] | None, undo: ExitStack
) -> None:
    if stack.offload is None:
        pipe.to(stack.device)
    if stack.vae_tiling:
        _tile(pipe)
    if stack.attention is not None:
        undo.enter_context(set_attn_backend(pipe, stack.attention))
    if stack.parallelism is not None:
        enable_cache(pipe, parallelism_config=stack.parallelism)
    if stack.quantize is not None:
        # Shards are quantized, not whole weights.
        quantize(pipe, **{**stack.quantize, "report": report})
    if stack.cache is not None:
        enable_cache(pipe, **stack.cache)
    if stack.offload is not None:
        _offload(pipe, stack)
    if stack.compile is not None:
        undo.enter_context(set_compile_configs(**stack.compile))
        compile_repeated_blocks(pipe, fullgraph=_one_graph(pipe, stack))
    if stack.offload is not None:
        check_offload(pipe)


def _tile(pipe: Any) -> None:
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "enable_tiling"):
        raise ConfigError(f"vae_tiling is given, but {type(vae).__name__} has no tiling; leave it out.")
    vae.enable_tiling()


def _one_graph(pipe: Any, stack: Stack) -> bool:
    """Whether nothing runs inside of blocks that torch.compile leaves out of their graphs."""
    attached = [one for model in cached_models(pipe) if (one := attachment_of(model)) is not None]
    parts = stack.parallelism
    split = parts is not None and (
        parts.ulysses_anything or parts.ulysses_async or parts.ring_rotate_method == "p2p"
    )
    inside = any(setting.cache.place in _INSIDE for one in attached for setting in one.settings)
    return not (split or inside or stack.offload in (Offload.GROUP, Offload.SEQUENTIAL))


def _offload(pipe: Any, stack: Stack) -> None:
    if stack.offload is Offload.MODEL:
        pipe.enable_model_cpu_offload(device=stack.device)
    elif stack.offload is Offload.SEQUENTIAL:
        pipe.enable_sequential_cpu_offload(device=stack.device)
    else:
        pipe.enable_group_offload(stack.device, offload_type="block_level", num_blocks_per_group=1)
