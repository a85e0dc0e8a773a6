"""Transformers that nobody declared: found by watching one forward, said by hand, or patched first.

Those of diffusers are watched too, with their rows hidden: they must be seen as their rows say.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny.image_models import FLUX
from tiny.models import TINY_MODELS, TinyModel, output_of
from tiny.unknown_models import (
    COUNT,
    WIDTH,
    AnyArguments,
    Attention,
    Chain,
    Comfy,
    Counting,
    DictBlock,
    DictOutput,
    DictState,
    Direct,
    Drawing,
    Early,
    Growing,
    HalfWay,
    Keywords,
    Language,
    ListOutput,
    Mixed,
    Model,
    Nested,
    NothingBeside,
    OneTuple,
    Parallel,
    PlainBlock,
    Popping,
    Positional,
    Rebinding,
    Recycling,
    Refining,
    Residuals,
    Skipping,
    Splitting,
    Turns,
    Twins,
    Writing,
)
from torch import Tensor, nn

import cache_dit
from cache_dit import (
    BlockAdapter,
    BlockAdapterRegister,
    DBCacheConfig,
    ForwardPattern,
    ParamsModifier,
    PatchFunctor,
    Request,
    TaylorSeerCalibratorConfig,
    disable_cache,
    enable_cache,
    refresh_context,
    strify,
    summary,
)
from cache_dit.api import attachments_of
from cache_dit.caching.models import rows
from cache_dit.errors import ConfigError, ConfigTypeError, PatternError, UnsupportedModelError

P0, P1, P2, P3, P4, P5 = ForwardPattern
CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0, enable_separate_cfg=False
)
COMPUTED = dataclasses.replace(CONFIG, residual_diff_threshold=0.0)
TAYLOR = TaylorSeerCalibratorConfig()


# --- what can be found ---

List = tuple[str, tuple[str | None, ...], str]


@dataclass(frozen=True)
class Style:
    """A model, the lists that watching it finds (path, streams, main stream), and the patterns that fit."""

    kind: type[Model]
    lists: tuple[List, ...]
    patterns: tuple[ForwardPattern, ...] = ()


STYLES = [
    Style(Positional, (("layers", ("txt", "img"), "img"),), (P1,)),
    Style(Keywords, (("layers", ("latent", "context"), "latent"),)),
    Style(
        Comfy,
        (("double_blocks", ("img", "txt"), "img"), ("single_blocks", ("x",), "x")),
        (P0, P3),
    ),
    Style(Language, (("layers", ("hidden", "residual"), "hidden"),)),
    Style(Rebinding, (("layers", ("x",), "x"),), (P3,)),
    Style(Splitting, (("layers", ("x",), "x"),), (P2,)),
    Style(AnyArguments, (("layers", ("args",), "args"),), (P3,)),
    Style(OneTuple, (("layers", ("x",), "x"),)),
    Style(ListOutput, (("layers", ("img", "txt"), "img"),), (P0,)),
    Style(Attention, (("layers", ("x", None), "x"),), (P4,)),
    Style(NothingBeside, (("layers", (None, "x"), "x"),), (P5,)),
    Style(Nested, (("decoder.trunk", ("x",), "x"),), (P3,)),
    Style(Chain, (("trunk", ("x",), "x"),), (P3,)),
    Style(Turns, (("space/time", ("x",), "x"),)),
    Style(Refining, (("layers", ("x",), "x"),), (P3,)),
    Style(Residuals, (("layers", ("x",), "x"),)),
    Style(DictOutput, (("layers", ("x",), "x"),), (P3,)),
    Style(Drawing, (("layers", ("x",), "x"),), (P3,)),
]
each_style = pytest.mark.parametrize("style", STYLES, ids=lambda style: style.kind.__name__)
each_pattern = pytest.mark.parametrize(
    "style", [style for style in STYLES if style.patterns], ids=lambda style: style.kind.__name__
)


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(2, length, WIDTH, generator=generator) for length in (6, 3))
    return image, text, torch.full((2,), 1 - seed / 10)


@torch.no_grad()
def call(model: nn.Module, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    output = model(*inputs(seed))
    return output["sample"] if isinstance(output, dict) else output


def decisions(target: Any, which: int = 0, segment: int = 0) -> str:
    latest = attachments_of(target)[which].session.latest
    assert latest is not None
    return "".join("S" if step.verdict.skip else "C" for step in latest.of(segment, latest.branches[0]))


def repeat(model: nn.Module, *seeds: int) -> list[Tensor]:
    with Request(len(seeds)):
        return [call(model, seed) for seed in seeds]


def found(model: nn.Module) -> tuple[List, ...]:
    (attached,) = attachments_of(model)
    return tuple((flow.label, flow.continues, flow.main) for flow in attached.lists.flows)


def auto(model: nn.Module) -> BlockAdapter:
    return BlockAdapter(transformer=model, auto=True)


def by_hand(model: nn.Module, style: Style) -> BlockAdapter:
    lists: list[Any] = [model.get_submodule(path) for path, _, _ in style.lists]
    one = len(lists) == 1
    return BlockAdapter(
        transformer=model, blocks=lists[0] if one else lists, forward_pattern=list(style.patterns)
    )


def state_of(model: nn.Module) -> Any:
    """Everything that caching or a patch may touch: the classes and attributes of all modules."""
    return {
        name: (type(part), {key: id(value) for key, value in vars(part).items()}, list(part.state_dict()))
        for name, part in model.named_modules()
    }


def check_exact(model: nn.Module, adapter: BlockAdapter) -> None:
    """All computed: the same bits. A repeated input: what was skipped is replaced by what it was."""
    before = state_of(model)
    expected = [call(model, seed) for seed in range(3)]
    enable_cache(adapter, COMPUTED)
    assert all(torch.equal(call(model, seed), expected[seed]) for seed in range(3))
    assert decisions(model) == "CCC"
    enable_cache(adapter, CONFIG)
    computed, repeated, moved = repeat(model, 1, 1, 2)
    assert decisions(model) == "CSS"
    assert torch.equal(computed, expected[1])
    assert torch.allclose(repeated, expected[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(moved, expected[2], rtol=1e-4, atol=1e-5), "something was skipped"
    disable_cache(adapter)
    assert state_of(model) == before
    assert all(torch.equal(call(model, seed), expected[seed]) for seed in range(3))


@each_style
def test_watched_models_are_exact(style: Style) -> None:
    model = style.kind()
    check_exact(model, auto(model))


@each_style
def test_what_is_found(style: Style) -> None:
    model = style.kind()
    enable_cache(auto(model), CONFIG)
    call(model)
    assert found(model) == style.lists


@each_pattern
def test_models_said_by_hand_are_exact(style: Style) -> None:
    model = style.kind()
    check_exact(model, by_hand(model, style))


@each_pattern
def test_a_fitting_pattern_says_what_is_found(style: Style) -> None:
    model = style.kind()
    enable_cache(by_hand(model, style), CONFIG)
    assert found(model) == style.lists


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.id)
def test_models_of_diffusers_are_seen_as_their_rows_say(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build()
    expected = output_of(model, tiny.inputs(0))
    row = rows.row_of(type(model))
    assert row is not None
    declared = {flow.label: flow for flow in row.lists if flow.members(model)}
    monkeypatch.setattr(rows, "_BY_NAME", {})
    enable_cache(auto(model), CONFIG)
    with Request(2):
        computed, repeated = (output_of(model, tiny.inputs(0)) for _ in range(2))
    assert decisions(model) == "CS"
    for first, second, plain in zip(computed, repeated, expected, strict=True):
        assert torch.equal(first, plain)
        assert torch.allclose(second, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
    seen = {flow.label: flow for flow in attachments_of(model)[0].lists.flows}
    both = seen.keys() & declared.keys()
    # The refiners of this one weigh more than its other blocks.
    assert both or tiny.name == "ZImageControlNetModel"
    for path in both:
        # Some models keep an output that they do not use, so more is forecast block by block than must be.
        careful = seen[path].each_counts
        assert careful or not declared[path].each_counts
        assert dataclasses.replace(declared[path], each_counts=careful, made_of=None) == seen[path]


# --- before and during the first forward ---


def test_before_the_first_forward() -> None:
    model = Positional()
    before = state_of(model)
    adapter = enable_cache(auto(model), CONFIG, TAYLOR)
    assert summary(adapter, logging=False) == summary(model, logging=False) == []
    assert strify(adapter) == "DBCache_F1B0_W1I1M0MC0_R1_CFG0_T1O1"
    copied = copy.deepcopy(model)
    assert type(copied) is Positional
    assert torch.equal(call(copied), call(disable_cache(model)))
    assert state_of(model) == before


def test_defaults_fit_the_lists_that_are_found() -> None:
    model = Nested()
    model.unused = nn.ModuleList(PlainBlock() for _ in range(2))
    enable_cache(auto(model))
    call(model)
    assert strify(model) == "DBCache_F2B0_W8I1M0MC0_R0.08_E0"
    assert [entry.lists for entry in summary(model, logging=False)] == [("decoder.trunk",)]


def test_refreshed_before_the_first_forward() -> None:
    model = Positional()
    enable_cache(auto(model), CONFIG)
    refresh_context(model, num_inference_steps=4, cache_config=DBCacheConfig().reset(max_warmup_steps=2))
    for seed in range(4):
        call(model, seed)
    assert decisions(model) == "CCSS"
    assert strify(model) == "DBCache_F1B0_W2I1M0MC0_R1_CFG0_T0O0"


def test_an_option_that_does_not_fit_is_told_in_the_first_forward() -> None:
    model = Positional()
    enable_cache(auto(model), DBCacheConfig(Fn_compute_blocks=9))
    with pytest.raises(ConfigError, match="Fn_compute_blocks is 9 but layers of Positional has 4 blocks"):
        call(model)
    refresh_context(model, cache_config=CONFIG)
    repeat(model, 0, 0)
    assert decisions(model) == "CS"


def test_modifiers_of_lists_that_are_found_later() -> None:
    model = Comfy()
    modifiers = [
        ParamsModifier(cache_config=DBCacheConfig().reset(max_warmup_steps=steps)) for steps in (1, 3)
    ]
    enable_cache(auto(model), CONFIG, params_modifiers=modifiers)
    repeat(model, 0, 0, 0, 0)
    assert [decisions(model, segment=number) for number in range(2)] == ["CSSS", "CCCS"]
    enable_cache(auto(model), CONFIG, params_modifiers=[*modifiers, modifiers[0]])
    with pytest.raises(ConfigError, match="params_modifiers has 3 entries but there are 2 block lists in 1"):
        call(model)


def test_the_arguments_are_there_for_the_second_time() -> None:
    plain, model = Popping(), Popping()
    enable_cache(auto(model), COMPUTED)
    image, text, timestep = inputs(0)
    with torch.no_grad():
        assert torch.equal(model([image], text, timestep), plain([image], text, timestep))


def test_two_threads_in_the_first_forward() -> None:
    model, outputs = Positional(), {}
    expected = {seed: call(model, seed) for seed in range(2)}
    enable_cache(auto(model), COMPUTED)
    both = threading.Barrier(2)

    def work(seed: int) -> None:
        both.wait()
        with torch.no_grad():
            outputs[seed] = model(*inputs(seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(outputs[seed], expected[seed]) for seed in range(2))
    assert found(model) == (("layers", ("txt", "img"), "img"),)


def test_an_error_in_the_first_forward_leaves_it_to_come() -> None:
    model = Positional()
    enable_cache(auto(model), CONFIG)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.zeros(1, 2, 3), torch.zeros(1, 2, WIDTH), torch.zeros(1))
    repeat(model, 0, 0)
    assert decisions(model) == "CS"


def test_inference_mode() -> None:
    model = Language()
    expected = call(model)
    enable_cache(auto(model), CONFIG)
    with torch.inference_mode():
        outputs = repeat(model, 0, 0)
    assert decisions(model) == "CS"
    assert torch.equal(outputs[0], expected)
    assert torch.allclose(outputs[1], expected, rtol=1e-5, atol=1e-6)


def test_gradients_flow_through_the_forward_after_the_watched_one() -> None:
    plain, model = Positional(), Positional()
    enable_cache(auto(model), COMPUTED)
    for one in (plain, model):
        one(*inputs(0)).sum().backward()
    assert torch.equal(plain.embed.weight.grad, model.embed.weight.grad)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "blocks"])
def test_compiled_models(whole: bool) -> None:
    torch.compiler.reset()
    model = Positional()
    expected = call(model)
    if not whole:
        for layer in model.layers:
            layer.compile(fullgraph=True, backend="eager")
    target = torch.compile(model, backend="eager") if whole else model
    enable_cache(auto(target), CONFIG)
    outputs = repeat(target, 0, 0)
    assert decisions(model) == "CS"
    for output in outputs:
        assert torch.allclose(output, expected, rtol=1e-5, atol=1e-6)


class Pipeline:
    """No class of diffusers."""

    def __init__(self, kind: type[Model] = Positional) -> None:
        self.transformer = kind()

    @torch.no_grad()
    def __call__(self, steps: int) -> Tensor:
        image, text, _ = inputs(0)
        for step in range(steps):
            image = image - 0.1 * self.transformer(image, text, torch.full((2,), 1 - step / steps))
        return image


def test_pipeline() -> None:
    pipe = Pipeline()
    expected = pipe(5)
    adapter = enable_cache(BlockAdapter(pipe=pipe, auto=True), CONFIG, TAYLOR)
    runs = [pipe(5) for _ in range(2)]
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], expected)
    assert decisions(pipe) == decisions(adapter) == "CSSSS"
    assert summary(pipe, logging=False)[0].total_steps == 5
    disable_cache(pipe)
    assert type(pipe) is Pipeline
    assert type(pipe.transformer) is Positional
    assert torch.equal(pipe(5), expected)


def test_chosen_lists_are_watched_too() -> None:
    model = Comfy()
    enable_cache(BlockAdapter(transformer=model, blocks=model.single_blocks, auto=True), CONFIG)
    call(model)
    assert found(model) == (("single_blocks", ("x",), "x"),)


# --- what cannot be found ---


def sentence(kind: type[Model], seen: str, pattern: str = "Pattern_3") -> str:
    return f"""auto found no block list in {kind.__name__} that can be cached. Its first forward showed:
{seen}
A patch_functor can change what stands in the way, see cache_dit.PatchFunctor; where you know the streams, \
say them. Declare its blocks:
    cache_dit.enable_cache(
        cache_dit.BlockAdapter(
            transformer=transformer,
            blocks=transformer.layers,
            forward_pattern=cache_dit.ForwardPattern.{pattern},  # see its docstring
        )
    )"""


@pytest.mark.parametrize(
    ("kind", "seen", "pattern"),
    [
        (
            DictState,
            "    layers, 4 x DictBlock(state): a block returns an object of type dict, no Tensor or tuple",
            P1,
        ),
        (Recycling, "    layers, 4 x PlainBlock(x, vec): they run more than once in a forward", P3),
        (Direct, "    layers, 4 x PlainBlock(x, vec): not run by the forward", P1),
        (Writing, "    layers, 4 x WritingBlock(x, vec): a block writes into its argument x", P3),
        (
            Twins,
            "    layers, 4 x TwinBlock(left, right, vec): output 0 may continue left or right, which have "
            "one shape",
            P1,
        ),
        (Growing, "    layers, 4 x GrowingBlock(x, vec): x changes its shape from block to block", P3),
        (
            HalfWay,
            "    layers, 4 x HalfWayBlock(x, y, vec): output 1 is an argument of some of them only",
            P1,
        ),
        (Skipping, "    layers, 4 x PlainBlock(x, vec): block 2 ran where block 1 was expected", P3),
        (Early, "    layers, 4 x PlainBlock(x, vec): 2 of them ran in the forward", P3),
        (
            Parallel,
            "    layers, 4 x PlainBlock(x, vec): no output of a block is an argument of the next one",
            P3,
        ),
        (
            Mixed,
            "    layers, 4 x MixedBlock(x, vec): the blocks differ in how many values they return",
            P1,
        ),
        (
            Counting,
            "    layers, 4 x CountingBlock(ids): ids, which an output continues, holds no floating point "
            "numbers",
            P3,
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_stands_in_the_way_is_told(kind: type[Model], seen: str, pattern: ForwardPattern) -> None:
    model = kind()
    before, expected = state_of(model), call(model)
    enable_cache(auto(model), CONFIG)
    with pytest.raises(UnsupportedModelError) as caught:
        call(model)
    assert str(caught.value) == sentence(kind, seen, pattern.name)
    assert state_of(model) == before
    assert torch.equal(call(model), expected)


def test_a_model_without_lists() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        enable_cache(auto(nn.Sequential(nn.Linear(2, 2), nn.SiLU())))
    assert str(caught.value) == (
        "auto found no block list in Sequential: no ModuleList or Sequential of two or more blocks that take "
        "the same arguments. Name the lists with BlockAdapter(blocks=...)."
    )


# --- said by hand ---


@pytest.mark.parametrize(
    ("kind", "parts", "right"),
    [
        pytest.param(Positional, lambda model: {"blocks": model.layers}, P1, id="blocks"),
        pytest.param(Positional, lambda model: {"blocks_name": "layers"}, P1, id="name"),
        pytest.param(Nested, lambda model: {"blocks_name": "decoder.trunk"}, P3, id="path"),
        pytest.param(Chain, lambda model: {"blocks_name": ["trunk"]}, P2, id="sequential"),
        pytest.param(
            Comfy, lambda model: {"blocks_name": ["double_blocks", "single_blocks"]}, [P0, P3], id="names"
        ),
        pytest.param(
            Positional,
            lambda model: {"blocks": [model.layers], "blocks_name": ["layers"]},
            [P1],
            id="blocks-and-their-name",
        ),
        pytest.param(
            Positional,
            lambda model: {"transformer": [model], "blocks_name": [["layers"]]},
            [[P1]],
            id="several-transformers",
        ),
    ],
)
def test_forms_of_an_adapter(kind: type[Model], parts: Callable[[Any], dict[str, Any]], right: Any) -> None:
    model = kind()
    check_exact(model, BlockAdapter(**{"transformer": model} | parts(model), forward_pattern=right))


def test_two_transformers_one_of_them_watched() -> None:
    first, second = Positional(), Comfy()
    adapter = BlockAdapter(
        transformer=[first, second],
        blocks_name=["layers", None],
        forward_pattern=[P1, None],
        params_modifiers=[
            ParamsModifier(cache_config=DBCacheConfig().reset(max_warmup_steps=steps)) for steps in (2, 3)
        ],
        auto=True,
    )
    enable_cache(adapter, CONFIG)
    for model in (first, second):
        repeat(model, 0, 0, 0, 0)
    assert [decisions(adapter, which) for which in range(2)] == ["CCSS", "CCCS"]
    disable_cache(adapter)
    assert (type(first), type(second)) == (Positional, Comfy)


def test_separate_cfg() -> None:
    model = Positional()
    adapter = BlockAdapter(transformer=model, auto=True, has_separate_cfg=True)
    enable_cache(adapter, dataclasses.replace(CONFIG, enable_separate_cfg=None))
    repeat(model, 0, 1, 0, 1)
    assert [(step.branch, step.step) for step in summary(model, logging=False)[0].steps] == [
        ("cond", 0),
        ("uncond", 0),
        ("cond", 1),
        ("uncond", 1),
    ]


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        (
            Comfy,
            "double_block",
            "BlockAdapter: blocks_name is 'double_block' but Comfy has no list of blocks there. Did you mean "
            "'double_blocks'?",
        ),
        (
            Comfy,
            "zzz",
            "BlockAdapter: blocks_name is 'zzz' but Comfy has no list of blocks there. Its lists are "
            "double_blocks, single_blocks.",
        ),
        (
            Positional,
            "head",
            "BlockAdapter: blocks_name is 'head' but Positional has no list of blocks there. Its lists are "
            "layers.",
        ),
        (
            Positional,
            5,
            "BlockAdapter: blocks_name is of type int; give the path of a list of blocks, or several.",
        ),
    ],
)
def test_wrong_names_of_blocks(kind: type[Model], names: Any, message: str) -> None:
    model = kind()
    with pytest.raises(ConfigError) as caught:
        enable_cache(BlockAdapter(transformer=model, blocks_name=names, forward_pattern=P1))
    assert str(caught.value) == message


def test_blocks_and_their_name_must_agree() -> None:
    model = Comfy()
    with pytest.raises(ConfigError, match="blocks are not those at blocks_name 'single_blocks'; give one of"):
        enable_cache(
            BlockAdapter(
                transformer=model,
                blocks=model.double_blocks,
                blocks_name="single_blocks",
                forward_pattern=P0,
            )
        )


@pytest.mark.parametrize(
    ("kind", "pattern", "message"),
    [
        (
            Positional,
            P0,
            "layers: outputs were declared to continue (img, txt) but the first forward shows (txt, img); "
            "give ForwardPattern.Pattern_1.",
        ),
        (
            ListOutput,
            P1,
            "layers: outputs were declared to continue (txt, img) but the first forward shows (img, txt); "
            "give ForwardPattern.Pattern_0.",
        ),
        (
            Attention,
            P5,
            "layers: outputs were declared to continue (a side output, x) but the first forward shows "
            "(x, a side output); give ForwardPattern.Pattern_4.",
        ),
        (
            Language,
            P0,
            "layers: outputs were declared to continue (positions, hidden) but the first forward shows "
            "(hidden, residual); leave forward_pattern out, with auto=True.",
        ),
        (
            Writing,
            P3,
            "layers: a block writes into its argument x, so what entered is lost and no change can be "
            "measured; let it return a new tensor, see cache_dit.PatchFunctor.",
        ),
        (
            OneTuple,
            P3,
            "layers: blocks were declared to return (x) but OneTupleBlock returned a tuple of 1; give "
            "ForwardPattern.Pattern_0, Pattern_1, Pattern_4 or Pattern_5.",
        ),
        (
            Splitting,
            P4,
            "layers: blocks were declared to return (x, a side output) but PlainBlock returned one Tensor; "
            "give ForwardPattern.Pattern_2 or Pattern_3.",
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_wrong_pattern_is_named_with_the_right_one(
    kind: type[Model], pattern: ForwardPattern, message: str
) -> None:
    model = kind()
    before, expected = state_of(model), call(model)
    enable_cache(BlockAdapter(transformer=model, blocks_name="layers", forward_pattern=pattern), CONFIG)
    with pytest.raises(PatternError) as caught:
        call(model)
    assert str(caught.value) == message
    assert state_of(model) == before
    assert torch.equal(call(model), expected)


@pytest.mark.parametrize("own", ["model", "block"])
def test_a_class_derived_from_a_known_one_is_as_declared(own: str) -> None:
    """Its author may have changed what a block returns, so only the first forward can tell."""
    model = FLUX.build()
    for part in [model] if own == "model" else model.transformer_blocks:
        part.__class__ = type(type(part).__name__ + "Mine", (type(part),), {"__module__": "mine"})
    adapter = BlockAdapter(transformer=model, blocks=model.transformer_blocks, forward_pattern=P0)
    enable_cache(adapter, CONFIG)
    with pytest.raises(PatternError, match=r"give ForwardPattern.Pattern_1"):
        output_of(model, FLUX.inputs(0))


# --- registered families ---


@pytest.fixture
def families() -> Iterator[dict[str, Any]]:
    before = dict(BlockAdapterRegister._families)
    yield BlockAdapterRegister._families
    BlockAdapterRegister._families.clear()
    BlockAdapterRegister._families.update(before)


def test_a_family_of_pipelines_is_not_asked_about_transformers(families: dict[str, Any]) -> None:
    @BlockAdapterRegister.register("Pipe")
    def adapter(pipe: Any, **kwargs: Any) -> BlockAdapter:
        return BlockAdapter(pipe=pipe, transformer=pipe.transformer, blocks_name="layers", forward_pattern=P1)

    transformer = type("PipelineTransformer", (Positional,), {})()
    assert not BlockAdapterRegister.is_supported(transformer)
    with pytest.raises(UnsupportedModelError, match="PipelineTransformer is not known"):
        enable_cache(transformer)
    pipe = enable_cache(Pipeline(), CONFIG)
    pipe(3)
    assert decisions(pipe) == "CSS"


def test_a_family_may_be_a_transformer(families: dict[str, Any]) -> None:
    @BlockAdapterRegister.register("Positional")
    def adapter(transformer: nn.Module, **kwargs: Any) -> BlockAdapter:
        return BlockAdapter(transformer=transformer, blocks_name="layers", forward_pattern=P1, **kwargs)

    model = Positional()
    assert BlockAdapterRegister.is_supported(model)
    assert not BlockAdapterRegister.is_supported(type("PositionalToo", (Positional,), {})())
    assert cache_dit.get_adapter(model, has_separate_cfg=True).has_separate_cfg is True
    enable_cache(model, CONFIG)
    repeat(model, 0, 0)
    assert decisions(model) == "CS"
    assert type(disable_cache(model)) is Positional


# --- patch functors ---


class CallsBlocks(PatchFunctor):
    """Lets `Direct` call its blocks as modules."""

    def apply(self, transformer: nn.Module, **kwargs: Any) -> nn.Module:
        assert type(transformer) is Direct
        vars(transformer)["run"] = types.MethodType(Model.run, transformer)
        return transformer


class Pass(nn.Module):
    """One block in one pass; the block belongs to the model alone, so that no weight has two names."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        vars(self)["_block"] = block

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        return self._block(x, vec)


class OneListForAllPasses(PatchFunctor):
    """Lets `Recycling`, which goes through its blocks twice, go once through a list of twice the length."""

    def apply(self, transformer: nn.Module, **kwargs: Any) -> nn.Module:
        assert isinstance(transformer, Recycling)

        def run(self: Any, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
            for step in self.passes:
                image = step(image, vec)
            return image

        transformer.passes = nn.ModuleList(Pass(block) for _ in range(2) for block in transformer.layers)
        vars(transformer)["run"] = types.MethodType(run, transformer)
        return transformer


class StreamsAsTensors(PatchFunctor):
    """Lets `DictState` give its blocks tensors, by another class for each block."""

    def apply(self, transformer: nn.Module, **kwargs: Any) -> nn.Module:
        class TensorBlock(DictBlock):
            def forward(self, image: Tensor, text: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
                return self.mix(image, text, vec)

        def run(self: Any, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
            for layer in self.layers:
                image, text = layer(image, text, vec)
            return image

        for layer in transformer.layers:  # type: ignore[union-attr]
            layer.__class__ = TensorBlock
        vars(transformer)["run"] = types.MethodType(run, transformer)
        return transformer


PATCHED = [
    pytest.param(Direct, CallsBlocks(), "layers", P3, id="called-as-modules"),
    pytest.param(Recycling, OneListForAllPasses(), "passes", P3, id="one-list-for-all-passes"),
    pytest.param(DictState, StreamsAsTensors(), "layers", P0, id="tensors"),
]


@pytest.mark.parametrize(("kind", "functor", "path", "pattern"), PATCHED)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "watched"])
def test_patched_models_are_exact(
    kind: type[Model], functor: PatchFunctor, path: str, pattern: ForwardPattern, declared: bool
) -> None:
    model = kind()
    said: dict[str, Any] = {"forward_pattern": pattern} if declared else {"auto": True}
    check_exact(model, BlockAdapter(transformer=model, blocks_name=path, patch_functor=functor, **said))


def patched(model: nn.Module, functor: PatchFunctor, **parts: Any) -> BlockAdapter:
    return BlockAdapter(
        transformer=model,
        patch_functor=functor,
        **{"blocks_name": "layers", "forward_pattern": P3} | parts,
    )


def test_a_patch_stays_until_caching_is_disabled() -> None:
    model = Direct()
    before = state_of(model)
    enable_cache(patched(model, CallsBlocks()), CONFIG)
    refresh_context(model, num_inference_steps=3)
    repeat(model, 0, 0)
    assert decisions(model) == "CS"
    enable_cache(BlockAdapter(transformer=model, blocks=model.layers, forward_pattern=P3), CONFIG)
    repeat(model, 0, 0, 0)
    assert decisions(model) == "CSS"
    disable_cache(model)
    assert state_of(model) == before


def test_what_was_changed_since_is_left() -> None:
    model = Direct()
    enable_cache(patched(model, CallsBlocks()), CONFIG)
    mine = types.MethodType(Model.run, model)
    vars(model)["run"] = mine
    model.layers[0].one = nn.Linear(WIDTH, WIDTH)
    disable_cache(model)
    assert vars(model)["run"] is mine


class Failing(CallsBlocks):
    def apply(self, transformer: nn.Module, **kwargs: Any) -> nn.Module:
        super().apply(transformer)
        raise RuntimeError("no")


class Copying(CallsBlocks):
    def apply(self, transformer: nn.Module, **kwargs: Any) -> nn.Module:
        return copy.deepcopy(super().apply(transformer))


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        pytest.param(lambda model: enable_cache(patched(model, Failing())), RuntimeError, "no", id="raises"),
        pytest.param(
            lambda model: enable_cache(patched(model, Copying())),
            ConfigError,
            "Copying.apply returned an object of type Direct; change the Direct that it was given and return "
            "that.",
            id="returns-a-copy",
        ),
        pytest.param(
            lambda model: enable_cache(patched(model, CallsBlocks()), DBCacheConfig(Fn_compute_blocks=COUNT)),
            ConfigError,
            "Fn_compute_blocks is 4 but layers of Direct has 4 blocks; give a value from 1 to 3.",
            id="option",
        ),
        pytest.param(
            lambda model: enable_cache(patched(model, CallsBlocks(), blocks_name="zzz")),
            ConfigError,
            "BlockAdapter: blocks_name is 'zzz' but Direct has no list of blocks there. Its lists "
            "are layers.",
            id="blocks_name",
        ),
        pytest.param(
            lambda model: enable_cache(patched(model, CallsBlocks)),  # type: ignore[arg-type]
            ConfigTypeError,
            "patch_functor is the class CallsBlocks; give an instance of it.",
            id="a-class",
        ),
    ],
)
def test_what_fails_leaves_no_patch(act: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    model = Direct()
    before = state_of(model)
    with pytest.raises(error) as caught:
        act(model)
    assert str(caught.value) == message
    assert state_of(model) == before


def test_a_patch_comes_before_caching() -> None:
    model = Positional()
    adapter = BlockAdapter(transformer=model, blocks=model.layers, forward_pattern=P1)
    enable_cache(adapter, CONFIG)
    with pytest.raises(ConfigError) as caught:
        enable_cache(dataclasses.replace(adapter, patch_functor=CallsBlocks()), CONFIG)
    assert str(caught.value) == (
        "BlockAdapter: patch_functor is a CallsBlocks but Positional is cached already without it; call "
        "cache_dit.disable_cache first."
    )
    repeat(model, 0, 0)
    assert decisions(model) == "CS"


def test_a_wrong_pattern_of_a_patched_model_leaves_no_patch() -> None:
    model = DictState()
    before = state_of(model)
    enable_cache(patched(model, StreamsAsTensors(), forward_pattern=P1), CONFIG)
    with pytest.raises(PatternError, match=r"give ForwardPattern.Pattern_0"):
        call(model)
    assert state_of(model) == before


def test_a_functor_must_say_what_it_does() -> None:
    with pytest.raises(TypeError, match="abstract"):
        PatchFunctor()  # type: ignore[abstract]


class _Delta(nn.Module):
    """The loop adds what the blocks return to a stream that they never return."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.SiLU()) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x * 2)
        return x


def test_a_stream_that_blocks_do_not_return_is_found_out() -> None:
    torch.manual_seed(0)
    model, x = _Delta(), torch.randn(1, 3, 8)
    expected = model(x)
    cache_dit.enable_cache(BlockAdapter(transformer=model, auto=True))
    with pytest.raises(UnsupportedModelError, match=r"auto found layers in _Delta, .* differs by \d+%"):
        model(x)
    # It is as it was.
    assert type(model) is _Delta
    assert torch.equal(model(x), expected)
