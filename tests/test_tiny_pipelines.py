"""The tiny pipelines run end to end, repeat, and call their transformers as their descriptions say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny.pipelines import SD3_SKIP_LAYER_GUIDANCE, TINY_PIPELINES, TinyPipeline

STEPS = 4


def each_pipeline(test: Any) -> Any:
    return pytest.mark.parametrize("tiny", TINY_PIPELINES, ids=lambda tiny: tiny.id)(test)


class CallLog:
    """Which transformer was called under which branch name, and with which batch size."""

    def __init__(self, pipe: DiffusionPipeline, names: tuple[str, ...]) -> None:
        self.calls: list[tuple[str, str | None]] = []
        self.batches: list[int] = []
        self._branch: str | None = None
        for name in names:
            self._watch(name, getattr(pipe, name))

    def _watch(self, name: str, transformer: Any) -> None:
        def record(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.calls.append((name, self._branch))
            self.batches.append(len(args[0] if args else kwargs["hidden_states"]))

        @contextlib.contextmanager
        def cache_context(branch: str, **_details: Any) -> Iterator[None]:
            self._branch = branch
            yield
            self._branch = None

        transformer.register_forward_pre_hook(record, with_kwargs=True)
        transformer.cache_context = cache_context


@each_pipeline
def test_calls_and_branch_names(tiny: TinyPipeline) -> None:
    pipe = tiny.build()
    log = CallLog(pipe, tiny.transformers)
    latents = tiny.call(pipe, 0, STEPS)

    assert type(pipe).__name__ == tiny.name
    assert latents.isfinite().all()
    assert len(tiny.branch_names) == tiny.calls_per_step
    assert [branch for _, branch in log.calls] == list(tiny.branch_names) * STEPS
    duty = [name for name, _ in log.calls[:: tiny.calls_per_step]]
    assert sorted(duty, key=tiny.transformers.index) == duty, "transformers take turns in order"
    assert set(duty) == set(tiny.transformers)
    assert len(set(log.batches)) == 1


@each_pipeline
def test_same_seed_same_result(tiny: TinyPipeline) -> None:
    first, second = tiny.build(), tiny.build()
    reference = tiny.call(first, 0, STEPS)
    assert torch.equal(tiny.call(first, 0, STEPS), reference)
    assert torch.equal(tiny.call(second, 0, STEPS), reference)
    for other in (tiny.call(first, 1, STEPS), tiny.call(first, 0, STEPS + 1)):
        assert float((other - reference).norm() / reference.norm()) > 1e-3


def test_skip_layer_guidance_adds_smaller_calls_on_some_steps() -> None:
    pipe = SD3_SKIP_LAYER_GUIDANCE.build()
    log = CallLog(pipe, SD3_SKIP_LAYER_GUIDANCE.transformers)
    SD3_SKIP_LAYER_GUIDANCE.call(pipe, 0, STEPS)
    assert log.batches == [2, 2, 1, 2, 1, 2]
