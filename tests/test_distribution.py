"""A sample on several processes, as caching sees it: what is put on models, refused and taken back."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny.image_models import FLUX
from tiny.models import output_of
from torch import nn

from cache_dit import DBCacheConfig, IntervalConfig, Request, disable_cache, enable_cache, summary
from cache_dit.caching.attach.distribution import Distribution, Edge, Installed
from cache_dit.caching.engine.plan import Plan
from cache_dit.errors import CacheDiTError, ConfigError


class Alone(Distribution):
    """One process that has all of every sample, and notes what is asked of it."""

    def __init__(self, part: str = "", refuses: str = "") -> None:
        self.part = part
        self.refuses = refuses
        self.noted: list[str] = []

    def install(self, models: Sequence[nn.Module], pipe: object) -> Installed:
        def enter(args: Any, kwargs: Any) -> tuple[Any, Any]:
            self.noted.append("enter")
            return args, kwargs

        def leave(output: Any) -> Any:
            self.noted.append("leave")
            return output

        def check(plan: Plan, model: nn.Module) -> None:
            if self.refuses:
                raise ConfigError(self.refuses)

        edges = {model: {model.get_submodule(self.part): Edge(enter, leave)} for model in models}
        self.noted.append("on")
        return Installed(lambda: self.noted.append("off"), None, "Alone1", edges, check)


def output(model: nn.Module, seed: int) -> torch.Tensor:
    return output_of(model, FLUX.inputs(seed))[0]


def test_edges_are_crossed_and_taken_off() -> None:
    model, alone = FLUX.build(), Alone()
    kind, plain = type(model), output(model, 0)
    assert enable_cache(model, parallelism_config=alone) is model
    assert torch.equal(output(model, 0), plain)
    assert alone.noted == ["on", "enter", "leave"]
    disable_cache(model)
    assert torch.equal(output(model, 0), plain)
    assert alone.noted == ["on", "enter", "leave", "off"]
    assert type(model) is kind


def test_the_edges_of_a_block_are_crossed_where_it_is_skipped_too() -> None:
    """What the next block gets is in the layout that the edge leaves."""
    model, alone = FLUX.build(), Alone("transformer_blocks.1")
    enable_cache(model, IntervalConfig(interval=2, max_warmup_steps=1), parallelism_config=alone)
    with Request(4):
        for seed in range(4):
            output(model, seed)
    assert alone.noted == ["on", *["enter", "leave"] * 4]
    (stats,) = summary(model, logging=False)
    assert stats.cached_steps == [1, 3]


def test_models_are_spread_once() -> None:
    model = enable_cache(FLUX.build(), parallelism_config=Alone())
    with pytest.raises(ConfigError, match=r"is spread over processes already \(Alone1\); call"):
        enable_cache(model, parallelism_config=Alone())


def test_what_does_not_fit_leaves_the_models_whole() -> None:
    model, alone = FLUX.build(), Alone()
    kind = type(model)
    with pytest.raises(ConfigError, match="Fn_compute_blocks is 99"):
        enable_cache(model, DBCacheConfig(Fn_compute_blocks=99), parallelism_config=alone)
    assert alone.noted == ["on", "off"]
    assert type(model) is kind


def test_a_plan_that_the_distribution_refuses_is_not_put_on() -> None:
    model, alone = FLUX.build(), Alone(refuses="it looks along the sequence")
    with pytest.raises(ConfigError, match="it looks along the sequence"):
        enable_cache(model, IntervalConfig(), parallelism_config=alone)
    assert alone.noted == ["on", "off"]


def test_parallelism_of_diffusers_is_told_what_to_call_instead() -> None:
    model: Any = FLUX.build()
    model._parallel_config = SimpleNamespace(context_parallel_config=object())
    with pytest.raises(ConfigError, match=r"enable_parallelism\(\.\.\.\) of diffusers .* Load it anew"):
        enable_cache(model, IntervalConfig())


def test_a_model_that_was_wrapped_since_is_left_whole() -> None:
    model, alone = enable_cache(FLUX.build()), Alone()
    kind: Any = type(model)
    model.__class__ = type(kind.__name__, (kind,), {})
    with pytest.raises(CacheDiTError, match="was wrapped by something else"):
        enable_cache(model, parallelism_config=alone)
    assert alone.noted == ["on", "off"]
