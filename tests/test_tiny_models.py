"""The tiny models are fair test subjects: repeatable, finite, and changed by the loss of any block."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny.models import TINY_MODELS, TinyModel, output_of
from tiny.versions import since
from torch import Tensor, nn

from cache_dit.caching.models.row import BlockList
from cache_dit.caching.models.rows import row_of


def each_model(test: Any) -> Any:
    return pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.id)(test)


def relative_change(outputs: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> float:
    return max(
        float((output - other).norm() / other.norm())
        for output, other in zip(outputs, reference, strict=True)
    )


def left_out(block: nn.Module, flow: BlockList, kwargs: dict[str, Any], model: nn.Module) -> Any:
    """Output of the model when `block` hands its streams through and adds nothing on the side."""
    signature = inspect.signature(type(block).forward)

    def identity(module: nn.Module, args: tuple[Any, ...], call: dict[str, Any], output: Any) -> Any:
        arguments = signature.bind(module, *args, **call).arguments
        if flow.stacks:
            entered = arguments[flow.main]
            before = entered[:-1] if entered.ndim == output.ndim else output[:0]
            stream = entered[-1] if entered.ndim == output.ndim else entered
            return torch.stack([*before, torch.zeros_like(stream), stream])
        if flow.bare:
            return arguments[flow.main]
        # SD3: the last block drops the text stream.
        return tuple(
            part if part is None else torch.zeros_like(part) if name is None else arguments[name]
            for name, part in zip(flow.continues, output, strict=True)
        )

    handle = block.register_forward_hook(identity, with_kwargs=True)
    try:
        return output_of(model, kwargs)
    finally:
        handle.remove()


def flows_of(model: nn.Module) -> tuple[BlockList, ...]:
    row = row_of(type(model))
    assert row is not None
    return tuple(flow for flow in row.lists if flow.members(model))


def each_block(model: nn.Module) -> Iterator[tuple[str, nn.Module, BlockList]]:
    for flow in flows_of(model):
        for index, block in enumerate(flow.members(model)):
            yield f"{flow.label}[{index}]", block, flow


@each_model
def test_class_name_and_lists(tiny: TinyModel) -> None:
    model = tiny.build()
    lengths = [len(flow.members(model)) for flow in flows_of(model)]
    assert type(model).__name__ == tiny.name
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert min(lengths) >= 4
    assert len(set(lengths)) == len(lengths), "equal lengths would hide a mix-up of two lists"


@each_model
def test_same_weights_and_outputs_each_time(tiny: TinyModel) -> None:
    caller_state = torch.get_rng_state()
    first, second = tiny.build(), tiny.build()
    assert torch.equal(torch.get_rng_state(), caller_state)
    reference = output_of(first, tiny.inputs(0))
    for again in (output_of(first, tiny.inputs(0)), output_of(second, tiny.inputs(0))):
        assert all(map(torch.equal, again, reference))
    assert all(0.1 < float(output.std()) < 10 for output in reference)
    assert relative_change(output_of(first, tiny.inputs(1)), reference) > 1e-2


@each_model
def test_every_block_matters(tiny: TinyModel) -> None:
    model = tiny.build()
    kwargs = tiny.inputs(0)
    reference = output_of(model, kwargs)
    for where, block, flow in each_block(model):
        change = relative_change(left_out(block, flow, kwargs, model), reference)
        assert change > 1e-2, f"{where} changes the output by {change:.1e} only"


@pytest.mark.parametrize(
    ("tiny", "variant"),
    [pytest.param(tiny, name, id=f"{tiny.id}-{name}") for tiny in TINY_MODELS for name in tiny.variants],
)
def test_variants_run(tiny: TinyModel, variant: str) -> None:
    if (tiny.name, variant) == ("QwenImageTransformer2DModel", "padded_text"):
        since("0.37", "use for the mask of Qwen-Image's text")
    model = tiny.build()
    reference = output_of(model, tiny.inputs(0))
    outputs = output_of(model, tiny.variants[variant](0))
    assert all(bool(output.isfinite().all()) for output in outputs)
    if variant == "attention_kwargs":
        assert all(map(torch.equal, outputs, reference))
    else:
        # With sound comes an output more.
        assert len(outputs) != len(reference) or relative_change(outputs, reference) > 1e-2
