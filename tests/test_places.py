"""What a skipped step leaves out: the blocks one by one, modules inside of them, or the whole transformer."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from test_rows import caching, calls_of, change, equal, nothing_learnt
from tiny.image_models import FLUX
from tiny.models import TINY_MODELS, TinyModel, output_of, tiny_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cache_dit
from cache_dit import Place, Request
from cache_dit.api import attachments_of
from cache_dit.caching.attach.places import modules_of
from cache_dit.caching.catalogue import IntervalConfig
from cache_dit.caching.config import CacheConfig, Kind
from cache_dit.caching.engine.records import StepRecord
from cache_dit.caching.models.rows import row_of
from cache_dit.errors import ConfigError
from cache_dit.report import summary
from cache_dit.report.flops import SDPA_MAPPING

ATTENTION = {Kind.SPATIAL, Kind.TEMPORAL, Kind.CROSS}
SOME = [
    tiny_model(name)
    for name in (
        "FluxTransformer2DModel",
        "SD3Transformer2DModel-dual_attention",
        "WanTransformer3DModel",
        "PixArtTransformer2DModel",
        "HunyuanVideoTransformer3DModel",
        "CogVideoXTransformer3DModel",
        "LatteTransformer3DModel",
        "LTXVideoTransformer3DModel",
        "ChromaTransformer2DModel",
        "CogView4Transformer2DModel",
    )
]
each_model = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.id)
some_models = pytest.mark.parametrize("tiny", SOME, ids=lambda tiny: tiny.id)


def each_place(*places: Place) -> Any:
    return pytest.mark.parametrize("place", places, ids=lambda place: place.name)


@functools.cache
def model_of(tiny: TinyModel) -> Any:
    return tiny.build()


def every_second(place: Place, **fields: Any) -> IntervalConfig:
    return IntervalConfig(place=place, interval=2, max_warmup_steps=2, enable_separate_cfg=False, **fields)


def records(model: Any) -> list[StepRecord]:
    latest = attachments_of(model)[0].session.latest
    assert latest is not None
    return latest.steps


def decisions(model: Any, segment: int = 0) -> str:
    return "".join("CS"[step.verdict.skip] for step in records(model) if step.segment == segment)


def skippable(model: Any) -> list[nn.Module]:
    """What is left out on a skipped step."""
    segments = attachments_of(model)[0].session.plan.segments
    return [module for part in segments for module in part.blocks[part.start : part.stop]]


# --- which modules are found ---


def found_in(tiny: TinyModel) -> dict[nn.Module, set[Kind]]:
    """The kinds of modules in every block."""
    row, model = row_of(getattr(diffusers, tiny.name)), model_of(tiny)
    assert row is not None
    paths = {module: path for path, module in model.named_modules()}
    blocks = [block for flow in row.lists for block in flow.members(model)]
    return {block: {one.kind for one in modules_of(block, f"{tiny.name}.{paths[block]}")} for block in blocks}


@each_model
def test_attention_and_feed_forward_modules_are_found_in_every_block(tiny: TinyModel) -> None:
    for block, kinds in found_in(tiny).items():
        assert kinds & ATTENTION
        # Its attention computes the feed-forward part too.
        assert Kind.MLP in kinds or type(block).__name__ == "Flux2SingleTransformerBlock"


def test_kinds_of_modules() -> None:
    rows = Counter(
        (tiny.name, kind) for tiny in TINY_MODELS for kind in set().union(*found_in(tiny).values())
    )
    count = Counter(kind for _, kind in rows)
    assert count[Kind.MLP] == len({tiny.name for tiny in TINY_MODELS})
    assert {name for name, kind in rows if kind is Kind.TEMPORAL} == {
        "LatteTransformer3DModel",
        "TransformerTemporalModel",
    }
    crossing = {name for name, kind in rows if kind is Kind.CROSS}
    assert {"WanTransformer3DModel", "PixArtTransformer2DModel", "LTXVideoTransformer3DModel"} < crossing
    assert {"T5FilmDecoder", "Kandinsky6Transformer3DModel", "HunyuanDiT2DModel"} < crossing
    # Their second attention is joint or of the picture alone.
    assert not crossing & {"SD3Transformer2DModel", "OmniGenTransformer2DModel", "FluxTransformer2DModel"}


def names_in(tiny: TinyModel, place: int) -> list[tuple[str, Kind]]:
    """Names and kinds of the modules that are found in one block of the first list."""
    model = model_of(tiny)
    block = getattr(model, tiny.block_lists[-1])[place]
    names = {module: name for name, module in block.named_modules()}
    return [(names[one.module], one.kind) for one in modules_of(block, "")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "FluxTransformer2DModel",
            [("proj_mlp", Kind.MLP), ("proj_out", Kind.MLP), ("attn", Kind.SPATIAL)],
        ),
        ("WanTransformer3DModel", [("attn1", Kind.SPATIAL), ("attn2", Kind.CROSS), ("ffn", Kind.MLP)]),
        (
            "SD3Transformer2DModel-dual_attention",
            [("attn", Kind.SPATIAL), ("attn2", Kind.SPATIAL), ("ff", Kind.MLP), ("ff_context", Kind.MLP)],
        ),
        ("Flux2Transformer2DModel", [("attn", Kind.SPATIAL)]),
        (
            "HiDreamImageTransformer2DModel",
            [("block.attn1", Kind.SPATIAL), ("block.ff_i", Kind.MLP)],
        ),
        (
            "T5FilmDecoder",
            [
                ("layer.0.attention", Kind.SPATIAL),
                ("layer.1.attention", Kind.CROSS),
                ("layer.2.DenseReluDense", Kind.MLP),
            ],
        ),
        (
            "PRXTransformer2DModel",
            [
                ("attention", Kind.SPATIAL),
                ("gate_proj", Kind.MLP),
                ("up_proj", Kind.MLP),
                ("down_proj", Kind.MLP),
            ],
        ),
        (
            "AceStepTransformer1DModel",
            [("self_attn", Kind.SPATIAL), ("cross_attn", Kind.CROSS), ("mlp", Kind.MLP)],
        ),
    ],
)
def test_modules_of_a_block(name: str, expected: list[tuple[str, Kind]]) -> None:
    assert names_in(tiny_model(name), 0) == expected


def test_nothing_found_is_an_error_with_the_class_of_the_blocks() -> None:
    model: Any = FLUX.build()
    with torch.no_grad():
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            block.strange = block._modules.pop("attn")
    with pytest.raises(ConfigError) as caught:
        cache_dit.enable_cache(model, every_second(Place.ATTENTION))
    for words in ("Place.ATTENTION", "FluxTransformerBlock, FluxSingleTransformerBlock", "Place.BLOCKS"):
        assert words in str(caught.value)


# --- computed and skipped ---


def check_place(tiny: TinyModel, config: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two computed steps, a skipped one, a computed one, and a skipped one whose forecast is wrong."""
    model = model_of(tiny)
    kinds = {name: type(module) for name, module in model.named_modules()}
    expected = [output_of(model, tiny.inputs(seed)) for seed in range(2)]
    with caching(model, config), Request(6):
        left_out = skippable(model)
        with calls_of(left_out) as called:
            for seed in (1, 0):
                assert equal(output_of(model, tiny.inputs(seed)), expected[seed])
        assert called, "nothing would be left out"
        with calls_of(left_out) as called:
            assert change(output_of(model, tiny.inputs(0)), expected[0]) < 1e-5
        assert not called
        assert equal(output_of(model, tiny.inputs(1)), expected[1])
        with monkeypatch.context() as patch:
            nothing_learnt(patch)
            assert change(output_of(model, tiny.inputs(1)), expected[1]) > 1e-2
        assert decisions(model) == "CCSCS"
    assert {name: type(module) for name, module in model.named_modules()} == kinds


@some_models
@each_place(Place.BLOCKS, Place.ATTENTION, Place.MLP)
def test_left_out_modules_do_not_run_and_are_not_missed(
    tiny: TinyModel, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_place(tiny, every_second(place), monkeypatch)


@each_model
@each_place(Place.SUBMODULES, Place.OUTPUT)
def test_on_all_rows(tiny: TinyModel, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    check_place(tiny, every_second(place), monkeypatch)


def test_first_and_last_blocks_are_computed_in_full() -> None:
    model = model_of(FLUX)
    config = every_second(Place.SUBMODULES, Fn_compute_blocks=2, Bn_compute_blocks=1)
    with caching(model, config):
        left_out = set(skippable(model))
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    for place, block in enumerate(blocks):
        assert left_out.isdisjoint(block.modules()) == (place < 2 or place == len(blocks) - 1)


# --- figures ---


def counted(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False, custom_mapping=SDPA_MAPPING) as counter:
        work()
    return int(counter.get_total_flops())


def run(model: Any, tiny: TinyModel, steps: int) -> None:
    with Request(steps):
        for seed in range(steps):
            output_of(model, tiny.inputs(seed))


@pytest.mark.parametrize("tiny", [SOME[place] for place in (0, 2, 6, 9)], ids=lambda tiny: tiny.id)
@each_place(Place.BLOCKS, Place.ATTENTION, Place.SUBMODULES, Place.OUTPUT)
def test_flops_saved_are_those_of_a_real_counter(tiny: TinyModel, place: Place) -> None:
    model = model_of(tiny)
    plain = 4 * counted(lambda: output_of(model, tiny.inputs(0)))
    with caching(model, every_second(place)):
        cached = counted(lambda: run(model, tiny, 4))
        (stats,) = summary(model, logging=False)
    assert stats.flops_saved is not None
    assert 0.0 < stats.flops_saved == pytest.approx(1.0 - cached / plain, abs=1e-9)
