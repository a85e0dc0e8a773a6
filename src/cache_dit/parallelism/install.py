"""From a configuration to models that work on their part, or an error that leaves them as they are."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from cache_dit.caching.attach.distribution import Edge, Installed
from cache_dit.caching.engine.plan import Plan
from cache_dit.errors import ConfigError
from cache_dit.parallelism.config import ParallelismConfig
from cache_dit.parallelism.context.plan import ContextPlan
from cache_dit.parallelism.context.plans import CONTEXT_PLANS
from cache_dit.parallelism.context.split import split
from cache_dit.parallelism.decisions import reduce_over
from cache_dit.parallelism.mesh import Sharing, share


def install(config: ParallelismConfig, models: Sequence[nn.Module], pipe: Any) -> Installed:
    """Spread the models over the processes, see `ParallelismConfig`.

    Raises:
        ConfigError: The sizes do not fit the processes, or a model has no plan.
        CacheDiTError: Another option does not fit a model.
    """
    edges: dict[nn.Module, Mapping[nn.Module, Edge]] = {}
    with contextlib.ExitStack() as undo:
        _check_untouched(models)
        sharing = share(config)
        if sharing.mesh is not None:
            _check_plans(sharing, models)
            if config.attention_backend is not None:
                _set_backend(config.attention_backend, models, undo)
            if sharing.config.tp_size != 1:
                _divide(sharing, models, undo)
            if sharing.context is not None:
                for model in models:
                    edges[model] = split(model, _plan_of(model, config), sharing, undo)
        if config.extra_parallel_modules:
            _spread(sharing, pipe, undo)
        ranks = dist.get_world_size(sharing.group)
        reduce = reduce_over(sharing.group) if ranks > 1 else None
        check = functools.partial(_check, edges, config.ulysses_anything)
        return Installed(undo.pop_all().close, reduce, sharing.label, edges, check)


def _check(
    edges: Mapping[nn.Module, Mapping[nn.Module, Edge]], uneven: bool, plan: Plan, model: nn.Module
) -> None:
    """Raise where something looks along the tokens of which a process has a part only, or counts them."""
    own = edges.get(model, {})
    # What a ControlNet returns is a part too.
    inside = model in own and own[model].leave is not None
    for number, segment in enumerate(plan.segments):
        if not own or (number in plan.around and not inside):
            continue
        if plan.budget is not None and uneven:
            raise ConfigError(
                f"memory_budget is {plan.budget} but ulysses_anything is True: parts of different sizes "
                "would get forecasts of different orders; leave out one of them, or give place=Place.OUTPUT."
            )
        made = [one for one in segment.forecasters if one is not None and one.looks_along_tokens]
        compares = segment.policy is not None and segment.policy.gate.looks_at_output
        if made or compares or segment.tokens is not None:
            what = "A method that chooses tokens or compares outputs"
            what = f"The forecaster {type(made[0]).__name__}" if made else what
            raise ConfigError(
                f"{what} looks along the whole sequence, but each process has a part of that of "
                f"{type(model).__name__}; give another method or calibrator, place=Place.OUTPUT, or tp_size "
                "in place of ulysses_size and ring_size."
            )


def _plan_of(model: nn.Module, config: ParallelismConfig) -> ContextPlan:
    if config.cp_plan is not None:
        return config.cp_plan
    for base in type(model).__mro__:
        if base.__name__ in CONTEXT_PLANS:
            return CONTEXT_PLANS[base.__name__]
    raise ConfigError(
        f"{type(model).__name__} has no context plan, so ulysses_size and ring_size are not possible; give "
        "ParallelismConfig(cp_plan=...), or tp_size. Classes with a plan: "
        f"{', '.join(sorted(CONTEXT_PLANS))}."
    )


def _check_untouched(models: Sequence[nn.Module]) -> None:
    for model in models:
        if getattr(model, "_parallel_config", None) is not None:
            raise ConfigError(
                f"{type(model).__name__} was spread by enable_parallelism(...) of diffusers before "
                "enable_cache(...), which does the same with its parallelism_config; load the model anew and "
                "leave enable_parallelism out."
            )


def _set_backend(name: str, models: Sequence[nn.Module], undo: contextlib.ExitStack) -> None:
    """Let the processors of these models alone use a backend; diffusers' own setter sets it for all."""
    from diffusers.models.attention_dispatch import (
        AttentionBackendName,
        _check_attention_backend_requirements,
    )

    known = [backend.value for backend in AttentionBackendName]
    if name not in known:
        raise ConfigError(f"attention_backend is {name!r}; diffusers has {', '.join(known)}.")
    backend = AttentionBackendName(name)
    try:
        _check_attention_backend_requirements(backend)
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"attention_backend is {name!r}, which cannot be used here: {error}") from error
    callers: list[Any] = [getattr(part, "processor", None) for model in models for part in model.modules()]
    for processor in callers:
        if hasattr(processor, "_attention_backend"):
            undo.callback(setattr, processor, "_attention_backend", processor._attention_backend)
            processor._attention_backend = backend


def _check_plans(sharing: Sharing, models: Sequence[nn.Module]) -> None:
    if sharing.context is not None:
        for model in models:
            _plan_of(model, sharing.config)


def _spread(sharing: Sharing, pipe: Any, undo: contextlib.ExitStack) -> None:
    from cache_dit.parallelism.modules import spread

    spread(sharing.config.extra_parallel_modules, pipe, sharing, undo)


def _divide(sharing: Sharing, models: Sequence[nn.Module], undo: contextlib.ExitStack) -> None:
    from cache_dit.parallelism.tensor import divide

    for model in models:
        undo.callback(divide(model, sharing.part("tp"), sharing.config.tp_plan))
