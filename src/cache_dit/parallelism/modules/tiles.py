"""The tiles of a VAE, shared out over ranks; the picture is the same, bit for bit.

A tiled `decode` of diffusers calls its decoder for every tile and blends the results. It runs twice here: in
the first run the decoder only notes its arguments, then every rank computes its share of the noted calls and
all exchange their results, and in the second run the decoder hands them out. So no loop is written anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cache_dit.errors import ConfigError

# Without a state that goes from call to call by way of what the decoder returns.
TILED_VAES = (
    "AutoencoderDC",
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLQwenImage",
    "AutoencoderKLWan",
)


def share_tiles(vae: Any, group: dist.ProcessGroup) -> Callable[[], None]:
    """Let the ranks of a group share the tiles of a VAE's `decode` and `encode`.

    All ranks must call the VAE with the same input, as they do when they share a sample; all get the whole
    result. Latents that fit into one tile are decoded on every rank.

    Args:
        vae: One of the classes in `TILED_VAES`, with `enable_tiling()` called.
        group: The ranks that share a sample.

    Returns:
        A function that undoes it.

    Raises:
        ConfigError: The class is not known to work, or tiling is off: the picture of a tiled VAE is not quite
            that of the whole, so it is not switched on here.
    """
    names = [base.__name__ for base in type(vae).__mro__]
    if not any(name in TILED_VAES for name in names):
        raise ConfigError(
            f"extra_parallel_modules names a {names[0]}, whose tiles cannot be shared out; leave it out. "
            f"Known are: {', '.join(TILED_VAES)}."
        )
    if not getattr(vae, "use_tiling", False):
        raise ConfigError(
            f"extra_parallel_modules names {names[0]} but its tiling is off, so there is nothing to share "
            "out; call vae.enable_tiling() first, or leave it out."
        )
    covered = {name: vars(vae).get(name) for name in ("decode", "encode")}
    for name, inner, after in (("decode", "decoder", None), ("encode", "encoder", "quant_conv")):
        stubs = [module for path in (inner, after) if path and (module := getattr(vae, path, None))]
        vars(vae)[name] = functools.partial(_shared, getattr(vae, name), stubs, group)

    def undo() -> None:
        for name, before in covered.items():
            del vars(vae)[name]
            if before is not None:
                vars(vae)[name] = before

    return undo


@dataclass(slots=True)
class _Call:
    """One call of the inner module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def thread(self) -> tuple[int, ...]:
        """The lists that it carries on from call to call, such as Wan's cache; fresh for each tile."""
        return tuple(
            id(value) for value in self.kwargs.values() if isinstance(value, list) and len(value) > 1
        )


def _shared(
    call: Callable[..., Any], stubs: list[nn.Module], group: dist.ProcessGroup, *args: Any, **kwargs: Any
) -> Any:
    """`decode` or `encode` with the calls of the inner module, the first of the stubs, shared out."""
    inner, *others = stubs
    noted: list[_Call] = []

    def note(*given: Any, **named: Any) -> Tensor:
        noted.append(_Call(given, named))
        # Tiles are blended in place, and this one may be a view of the latents.
        clone: Tensor = given[0].clone()
        return clone

    with ExitStack() as stack:
        stack.enter_context(_replaced(inner, note))
        for other in others:
            stack.enter_context(_replaced(other, lambda hidden_states: hidden_states))
        call(*args, **kwargs)
    jobs: dict[Any, list[int]] = {}
    for place, one in enumerate(noted):
        jobs.setdefault(one.thread or place, []).append(place)
    if len(jobs) < 2:
        return call(*args, **kwargs)
    results = iter(_compute(inner, noted, list(jobs.values()), group))
    with _replaced(inner, lambda *given, **named: next(results)):
        return call(*args, **kwargs)


def _compute(
    inner: nn.Module, calls: list[_Call], jobs: list[list[int]], group: dist.ProcessGroup
) -> list[Tensor]:
    """The results of all calls, in order; every rank computes each job that is its turn."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    results: dict[int, Tensor] = {}
    for job in jobs[rank::size]:
        for place in job:
            results[place] = inner(*calls[place].args, **calls[place].kwargs).contiguous()
    shapes: list[Any] = [None] * size
    dist.all_gather_object(
        shapes, {place: (result.shape, result.dtype) for place, result in results.items()}, group
    )
    device = calls[0].args[0].device
    for source, owned in enumerate(shapes):
        for place, (shape, dtype) in owned.items():
            if source != rank:
                results[place] = torch.empty(shape, dtype=dtype, device=device)
            dist.broadcast(results[place], dist.get_global_rank(group, source), group)
    return [results[place] for place in range(len(calls))]


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for one instance, for a while."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before
