"""The cache beside torch.compile: graphs are made once, whether steps are computed or skipped.

The backend counts graphs and runs them as they are, so results are those of the uncompiled model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny.models import FLUX
from tiny.pipelines import FLUX_TRUE_CFG
from tiny.runs import Denoising, decisions
from torch import Tensor, fx, nn

import cache_dit
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig

CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=2
)
TAYLOR = TaylorSeerCalibratorConfig(taylorseer_order=2)


class Graphs:
    """A backend that counts graphs, and how often any of them is run."""

    def __init__(self) -> None:
        self.made = 0
        self.runs = 0

    def __call__(self, graph: fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        self.made += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch.compiler.reset()
    yield Graphs()
    torch.compiler.reset()


def cached(target: Any) -> Any:
    return cache_dit.enable_cache(target, CONFIG, TAYLOR)


@functools.cache
def eager(seed: int) -> Tensor:
    model = cached(FLUX.build())
    result = Denoising(model, seed).finish()
    assert {"C", "S"} <= set(decisions(model)[2:])
    return result


@functools.cache
def uncached() -> Tensor:
    return run(FLUX.build(), 0)


def run(model: nn.Module, seed: int) -> Tensor:
    return Denoising(model, seed).finish()


@pytest.mark.parametrize("compiled_first", [True, False])
def test_repeated_blocks_are_compiled_without_a_break_and_once(compiled_first: bool, graphs: Graphs) -> None:
    model: Any = FLUX.build()
    if not compiled_first:
        cached(model)
    model.compile_repeated_blocks(fullgraph=True, backend=graphs)
    if compiled_first:
        cached(model)
    first = run(model, 0)
    made = graphs.made
    # As many as without the cache: one for each class of blocks, and one for what only the first block gets.
    assert made == 3
    torch.testing.assert_close(first, eager(0))

    for seed in (1, 0, 2):
        before = graphs.runs
        result = run(model, seed)
        computed = decisions(model).count("C")
        assert 2 < computed < 6
        # All 11 blocks on computed steps, the first one on skipped steps.
        assert graphs.runs - before == 11 * computed + (6 - computed)
        torch.testing.assert_close(result, eager(seed))
    assert graphs.made == made

    cache_dit.disable_cache(model)
    before = graphs.runs
    torch.testing.assert_close(run(model, 0), uncached())
    assert graphs.runs - before == 11 * 6


def compile_in_place(model: nn.Module, graphs: Graphs) -> nn.Module:
    model.compile(backend=graphs)
    return model


def compile_wrapped(model: nn.Module, graphs: Graphs) -> nn.Module:
    wrapped: nn.Module = torch.compile(model, backend=graphs)
    return wrapped


@pytest.mark.parametrize(
    ("compile_model", "compiled_first"),
    [(compile_in_place, False), (compile_wrapped, True)],
    ids=["in place", "wrapped, then cached"],
)
def test_whole_model_is_compiled_once(
    compile_model: Callable[[nn.Module, Graphs], nn.Module], compiled_first: bool, graphs: Graphs
) -> None:
    plain = model = FLUX.build()
    if not compiled_first:
        cached(model)
    model = compile_model(model, graphs)
    if compiled_first:
        assert cached(model) is model
    torch.testing.assert_close(run(model, 0), eager(0))
    made = graphs.made
    # Two classes of blocks and a few pieces around them: the engine is not compiled.
    assert 2 <= made <= 10
    for seed in (1, 0):
        torch.testing.assert_close(run(model, seed), eager(seed))
        assert {"C", "S"} <= set(decisions(plain)[2:])
    assert graphs.made == made

    assert cache_dit.disable_cache(model) is model
    assert type(plain) is type(FLUX.build())
    torch.testing.assert_close(run(model, 0), uncached())


def test_pipeline_whose_transformer_is_compiled(graphs: Graphs) -> None:
    tiny = FLUX_TRUE_CFG
    reference = tiny.call(cached(tiny.build()), 0, 6)
    pipe = cached(tiny.build())
    pipe.transformer = torch.compile(pipe.transformer, backend=graphs)
    torch.testing.assert_close(tiny.call(pipe, 0, 6), reference)
    assert "S" in decisions(pipe)
    made = graphs.made
    torch.testing.assert_close(tiny.call(pipe, 0, 6), reference)
    assert graphs.made == made
