"""The calls that users make: on, off, again, by adapter, and every refusal with the model left as it was."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny.image_models import CHROMA, DIT, FLUX, QWEN_IMAGE
from tiny.models import TinyModel, output_of
from tiny.pipelines import (
    FLUX_PIPELINE,
    FLUX_TRUE_CFG,
    QWEN_IMAGE_PIPELINE,
    TINY_PIPELINES,
    WAN_PIPELINE,
    WAN_TWO_TRANSFORMERS,
    TinyPipeline,
)
from tiny.video_models import COGVIDEOX, WAN
from torch import Tensor, nn

import cache_dit
from cache_dit import (
    BlockAdapter,
    BlockAdapterRegister,
    CalibratorConfig,
    DBCacheConfig,
    ForwardPattern,
    ParamsModifier,
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
from cache_dit.errors import CacheDiTError, ConfigError, ConfigTypeError, PatternError, UnsupportedModelError

STEPS = 5
CONFIG = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=1.0)
OTHER = DBCacheConfig(Fn_compute_blocks=2, max_warmup_steps=3, residual_diff_threshold=1.0)
TAYLOR = TaylorSeerCalibratorConfig()
P0, P1, P2, P3, P4, P5 = ForwardPattern


def decisions(target: Any, which: int = 0, segment: int = 0) -> str:
    """The first branch of the last run, one letter a step."""
    latest = attachments_of(target)[which].session.latest
    if latest is None:
        return ""
    steps = latest.of(segment, latest.branches[0])
    return "".join("S" if step.verdict.skip else "C" for step in steps)


@functools.cache
def uncached(tiny: TinyPipeline) -> Tensor:
    return tiny.call(tiny.build(), 0, STEPS)


@functools.cache
def cached(tiny: TinyPipeline) -> Tensor:
    return tiny.call(enable_cache(tiny.build(), CONFIG, TAYLOR), 0, STEPS)


# --- pipelines ---


@pytest.mark.parametrize("tiny", TINY_PIPELINES, ids=lambda tiny: tiny.id)
def test_cached_runs_repeat_and_disabling_gives_the_pipeline_back(tiny: TinyPipeline) -> None:
    pipe = tiny.build()
    kind = type(pipe)
    assert enable_cache(pipe, CONFIG, TAYLOR) is pipe
    assert isinstance(pipe, kind)
    first = tiny.call(pipe, 0, STEPS)
    assert "S" in "".join(decisions(pipe, which) for which in range(len(tiny.transformers)))
    assert not torch.equal(first, uncached(tiny))
    assert torch.equal(tiny.call(pipe, 0, STEPS), first)
    assert disable_cache(pipe) is pipe
    assert type(pipe) is kind
    assert torch.equal(tiny.call(pipe, 0, STEPS), uncached(tiny))


def test_without_options_branches_decide_together_and_the_estimate_fills() -> None:
    (attached,) = attachments_of(enable_cache(FLUX_PIPELINE.build()))
    plan = attached.session.plan
    assert not plan.options.cfg_diff_compute_separate
    assert plan.estimates
    (attached,) = attachments_of(enable_cache(FLUX_PIPELINE.build(), DBCacheConfig(Fn_compute_blocks=1)))
    plan = attached.session.plan
    assert plan.options.cfg_diff_compute_separate
    assert not plan.estimates


def test_defaults_fit_short_lists() -> None:
    pipe = enable_cache(QWEN_IMAGE_PIPELINE.build())
    assert strify(pipe) == "DBCache_F3B0_W8I1M0MC0_R0.08_E0"
    assert torch.equal(QWEN_IMAGE_PIPELINE.call(pipe, 0, STEPS), uncached(QWEN_IMAGE_PIPELINE))


def test_disabling_what_is_not_cached_does_nothing() -> None:
    pipe = FLUX_PIPELINE.build()
    assert disable_cache(pipe) is pipe
    assert disable_cache(pipe.transformer) is pipe.transformer
    assert torch.equal(FLUX_PIPELINE.call(pipe, 0, STEPS), uncached(FLUX_PIPELINE))


def test_two_pipelines_share_one_transformer() -> None:
    first, second = FLUX_PIPELINE.build(), FLUX_PIPELINE.build()
    second.transformer = first.transformer
    for pipe in (first, second):
        enable_cache(pipe, CONFIG, TAYLOR)
    for pipe, tiny in ((first, FLUX_PIPELINE), (second, FLUX_TRUE_CFG), (first, FLUX_PIPELINE)):
        assert torch.equal(tiny.call(pipe, 0, STEPS), cached(tiny))
    disable_cache(first)
    assert torch.equal(FLUX_PIPELINE.call(second, 0, STEPS), uncached(FLUX_PIPELINE))


def test_enabling_again_reconfigures() -> None:
    pipe = enable_cache(FLUX_PIPELINE.build(), OTHER)
    assert decisions(pipe) == ""
    FLUX_PIPELINE.call(pipe, 0, STEPS)
    assert decisions(pipe) == "CCCSS"
    enable_cache(pipe, CONFIG, TAYLOR)
    assert strify(pipe) == "DBCache_F1B0_W2I1M0MC0_R1_T1O1"
    assert summary(pipe, logging=False) == [], "what another configuration did is not shown"
    assert torch.equal(FLUX_PIPELINE.call(pipe, 0, STEPS), cached(FLUX_PIPELINE))
    assert decisions(pipe) == "CCSSS"
    assert type(disable_cache(pipe)).__call__ is type(FLUX_PIPELINE.build()).__call__


def test_several_transformers_in_one_pipeline() -> None:
    pipe = enable_cache(WAN_TWO_TRANSFORMERS.build(), CONFIG)
    WAN_TWO_TRANSFORMERS.call(pipe, 0, 8)
    both = [decisions(pipe, which) for which in range(2)]
    assert [text[:3] for text in both] == ["CCS", "CCS"]
    assert sum(map(len, both)) == 8
    assert strify(pipe) == "+".join([strify(pipe.transformer)] * 2)


def test_one_of_several_transformers() -> None:
    pipe = WAN_TWO_TRANSFORMERS.build()
    enable_cache(pipe.transformer_2, CONFIG)
    WAN_TWO_TRANSFORMERS.call(pipe, 0, 8)
    assert [entry.model for entry in summary(pipe, logging=False)] == ["WanTransformer3DModel"]
    disable_cache(pipe)
    assert torch.equal(WAN_TWO_TRANSFORMERS.call(pipe, 0, STEPS), uncached(WAN_TWO_TRANSFORMERS))


# --- the forms of an adapter ---


def check_same_as_plain(tiny: TinyPipeline, adapter_of: Callable[[Any], BlockAdapter]) -> None:
    pipe = tiny.build()
    adapter = adapter_of(pipe)
    assert enable_cache(adapter, CONFIG, TAYLOR) is adapter
    assert torch.equal(tiny.call(pipe, 0, STEPS), cached(tiny))
    assert strify(adapter) == strify(pipe)
    assert decisions(adapter) == decisions(pipe)
    disable_cache(adapter)
    assert type(pipe) is type(tiny.build())
    assert torch.equal(tiny.call(pipe, 0, STEPS), uncached(tiny))


@pytest.mark.parametrize(
    "adapter_of",
    [
        pytest.param(lambda pipe: BlockAdapter(pipe=pipe), id="pipe"),
        pytest.param(lambda pipe: BlockAdapter(pipe=pipe, transformer=pipe.transformer), id="transformer"),
        pytest.param(lambda pipe: BlockAdapter(pipe=pipe, auto=True, forward_pattern=P1), id="auto"),
        pytest.param(
            lambda pipe: BlockAdapter(
                pipe=pipe,
                transformer=pipe.transformer,
                blocks=pipe.transformer.transformer_blocks,
                forward_pattern=P1,
            ),
            id="blocks-and-pattern",
        ),
        pytest.param(
            lambda pipe: BlockAdapter(
                pipe=pipe, blocks=list(pipe.transformer.transformer_blocks), forward_pattern=P1
            ),
            id="plain-list-of-blocks",
        ),
        pytest.param(
            lambda pipe: BlockAdapter(
                pipe=pipe,
                transformer=[pipe.transformer],
                blocks=[[pipe.transformer.transformer_blocks]],
                forward_pattern=[[P1]],
            ),
            id="lists-of-lists",
        ),
        pytest.param(cache_dit.get_adapter, id="get_adapter"),
    ],
)
def test_adapter_forms(adapter_of: Callable[[Any], BlockAdapter]) -> None:
    check_same_as_plain(QWEN_IMAGE_PIPELINE, adapter_of)


@pytest.mark.parametrize("patterns", [[P1, P1], P1], ids=["pattern-for-each", "pattern-for-all"])
def test_hybrid_lists(patterns: Any) -> None:
    check_same_as_plain(
        FLUX_PIPELINE,
        lambda pipe: BlockAdapter(
            pipe=pipe,
            transformer=pipe.transformer,
            blocks=[pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks],
            forward_pattern=patterns,
        ),
    )


def test_two_transformers_with_modifiers_and_separate_cfg() -> None:
    pipe = WAN_TWO_TRANSFORMERS.build()
    adapter = BlockAdapter(
        pipe=pipe,
        transformer=[pipe.transformer, pipe.transformer_2],
        blocks=[pipe.transformer.blocks, pipe.transformer_2.blocks],
        forward_pattern=[P2, P2],
        params_modifiers=[
            ParamsModifier(cache_config=DBCacheConfig().reset(max_warmup_steps=2, max_cached_steps=1)),
            ParamsModifier(
                cache_config=DBCacheConfig().reset(max_warmup_steps=1), calibrator_config=CalibratorConfig()
            ),
        ],
        has_separate_cfg=True,
    )
    enable_cache(adapter, OTHER, TAYLOR)
    WAN_TWO_TRANSFORMERS.call(pipe, 0, 10)
    first, second = (decisions(pipe, which) for which in range(2))
    assert first == "CCS" + "C" * (len(first) - 3)
    assert second == "C" + "S" * (len(second) - 1)
    assert len(first + second) == 10
    assert strify(adapter) == "DBCache_F2B0_W2I1M1MC0_R1_CFG1_T1O1+DBCache_F2B0_W1I1M0MC0_R1_CFG1_T0O0"


def test_modifiers_of_the_call_go_before_those_of_the_adapter() -> None:
    pipe = FLUX_PIPELINE.build()
    modifiers = [
        ParamsModifier(cache_config=DBCacheConfig().reset(max_warmup_steps=steps)) for steps in (3, 4)
    ]
    enable_cache(BlockAdapter(pipe=pipe, params_modifiers=modifiers[0]), CONFIG)
    FLUX_PIPELINE.call(pipe, 0, STEPS)
    assert decisions(pipe) == "CCCSS"
    enable_cache(BlockAdapter(pipe=pipe, params_modifiers=modifiers[0]), CONFIG, params_modifiers=modifiers)
    FLUX_PIPELINE.call(pipe, 0, STEPS)
    assert [decisions(pipe, segment=number) for number in range(2)] == ["CCCSS", "CCCCS"]


def test_modifiers_for_each_list_of_the_documents() -> None:
    pipe = FLUX_PIPELINE.build()
    adapter = BlockAdapter(
        pipe=pipe,
        transformer=pipe.transformer,
        blocks=[pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks],
        forward_pattern=[P1, P1],
    )
    modifiers = [
        ParamsModifier(cache_config=DBCacheConfig().reset(Fn_compute_blocks=3, residual_diff_threshold=0.0)),
        ParamsModifier(cache_config=DBCacheConfig().reset(Fn_compute_blocks=1, residual_diff_threshold=1.0)),
    ]
    enable_cache(adapter, CONFIG, params_modifiers=modifiers)
    FLUX_PIPELINE.call(pipe, 0, STEPS)
    assert [decisions(pipe, segment=number) for number in range(2)] == ["CCCCC", "CCSSS"]
    assert strify(pipe) == "DBCache_F3B0_W2I1M0MC0_R0_T0O0+DBCache_F1B0_W2I1M0MC0_R1_T0O0"


# --- a transformer that nobody knows ---


class ForeignBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return text + self.text(text), image + self.image(image) + self.text(text).mean(1, keepdim=True)


class NamedBlock(ForeignBlock):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(hidden_states, encoder_hidden_states)


class ForeignTransformer(nn.Module):
    def __init__(self, block: type[ForeignBlock] = ForeignBlock) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(4))

    def forward(self, image: Tensor, text: Tensor, timestep: float) -> Tensor:
        for layer in self.layers:
            text, image = layer(image, text)
        return image * timestep


class ForeignPipeline:
    """No class of diffusers, and without a scheduler."""

    def __init__(self, block: type[ForeignBlock] = ForeignBlock) -> None:
        torch.manual_seed(0)
        self.transformer = ForeignTransformer(block)

    @torch.no_grad()
    def __call__(self, steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        image, text = torch.randn(1, 4, 8, generator=generator), torch.randn(1, 3, 8, generator=generator)
        for step in range(steps):
            image = image - 0.1 * self.transformer(image, text, timestep=1 - step / steps)
        return image


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        pytest.param(NamedBlock, lambda pipe: {"auto": True}, id="auto"),
        pytest.param(ForeignBlock, lambda pipe: {"blocks": pipe.transformer.layers}, id="blocks"),
        pytest.param(
            ForeignBlock,
            lambda pipe: {"transformer": pipe.transformer, "blocks": pipe.transformer.layers},
            id="all-said",
        ),
    ],
)
def test_foreign_pipeline(block: type[ForeignBlock], parts: Callable[[Any], dict[str, Any]]) -> None:
    pipe = ForeignPipeline(block)
    expected = pipe(STEPS)
    enable_cache(BlockAdapter(pipe=pipe, forward_pattern=P1, **parts(pipe)), CONFIG)
    runs = [pipe(STEPS) for _ in range(2)]
    assert decisions(pipe) == "CCSSS"
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], expected)
    assert [entry.model for entry in summary(pipe, logging=False)] == ["ForeignTransformer"]
    disable_cache(pipe)
    assert type(pipe) is ForeignPipeline
    assert type(pipe.transformer) is ForeignTransformer
    assert torch.equal(pipe(STEPS), expected)


def test_auto_finds_nothing_where_the_arguments_have_other_names() -> None:
    pipe = ForeignPipeline()
    with pytest.raises(UnsupportedModelError, match=r"auto found no block list in ForeignTransformer"):
        enable_cache(BlockAdapter(pipe=pipe, forward_pattern=P1, auto=True), CONFIG)
    assert type(pipe) is ForeignPipeline


def test_the_message_for_an_unknown_class_can_be_pasted() -> None:
    pipe = ForeignPipeline()
    for target in (pipe, pipe.transformer):
        with pytest.raises(UnsupportedModelError, match="ForeignTransformer is not known") as caught:
            enable_cache(target)
        code = str(caught.value).split("Declare its blocks:\n")[1]
        lines = [line.removeprefix("    ") for line in code.splitlines()]
        exec("\n".join(lines), {"cache_dit": cache_dit, "transformer": pipe.transformer})
        assert decisions(pipe) == ""
        disable_cache(pipe)


def test_the_nearest_known_class_is_named() -> None:
    unknown = type("FluxTransformer3DModel", (ForeignTransformer,), {})()
    with pytest.raises(UnsupportedModelError, match="nearest known class is FluxTransformer2DModel"):
        enable_cache(unknown)


# --- registered families ---


@pytest.fixture
def family() -> Iterator[str]:
    name = "ForeignPipe"

    @BlockAdapterRegister.register(name)
    def adapter(pipe: Any, **options: Any) -> BlockAdapter:
        return BlockAdapter(
            pipe=pipe,
            transformer=pipe.transformer,
            blocks=pipe.transformer.layers,
            forward_pattern=P1,
            **options,
        )

    yield name
    del BlockAdapterRegister._families[name]


def test_registered_family(family: str) -> None:
    pipe = ForeignPipeline()
    expected = pipe(STEPS)
    assert BlockAdapterRegister.is_supported(pipe)
    assert cache_dit.get_adapter(pipe, has_separate_cfg=False).has_separate_cfg is False
    enable_cache(pipe, CONFIG)
    pipe(STEPS)
    assert decisions(pipe) == decisions(pipe.transformer) == "CCSSS"
    refresh_context(pipe.transformer, num_inference_steps=3)
    disable_cache(pipe)
    assert type(pipe) is ForeignPipeline
    assert torch.equal(pipe(STEPS), expected)


def test_a_family_is_registered_once(family: str) -> None:
    with pytest.raises(ConfigError, match=f"'{family}' is registered already"):
        BlockAdapterRegister.register(family)(BlockAdapter)


def test_what_is_supported() -> None:
    pipe = FLUX_PIPELINE.build()
    assert BlockAdapterRegister.is_supported(pipe)
    assert BlockAdapterRegister.is_supported(pipe.transformer)
    assert cache_dit.get_adapter(pipe).pipe is pipe
    assert cache_dit.get_adapter(pipe.transformer).transformer is pipe.transformer
    for unknown in (ForeignPipeline(), ForeignTransformer(), 5):
        assert not BlockAdapterRegister.is_supported(unknown)
        with pytest.raises(UnsupportedModelError, match=type(unknown).__name__):
            cache_dit.get_adapter(unknown)


# --- a transformer without a pipeline ---


def loop(model: Any, steps: int, tiny: TinyModel = QWEN_IMAGE) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] = ()
    for seed in range(steps):
        outputs += output_of(model, tiny.inputs(seed))
    return outputs


def test_transformer_only() -> None:
    model = QWEN_IMAGE.build()
    adapter = BlockAdapter(transformer=model, blocks=model.transformer_blocks, forward_pattern=P1)
    enable_cache(adapter, dataclasses.replace(CONFIG, num_inference_steps=STEPS))
    first = loop(model, STEPS)
    assert decisions(adapter) == decisions(model) == "CCSSS"
    second = loop(model, STEPS)
    assert decisions(model) == "CCSSS"
    assert all(map(torch.equal, first, second))


def test_what_is_kept_is_freed_at_the_end_of_a_run() -> None:
    model = enable_cache(QWEN_IMAGE.build(), CONFIG)
    kept = []
    with Request(3) as request:
        for seed in range(3):
            output_of(model, QWEN_IMAGE.inputs(seed))
            (state,) = request.states.values()
            kept.append(len(state.branches))
    assert decisions(model) == "CCS"
    assert kept == [1, 1, 0]


def test_refresh_context_begins_a_run_of_another_length() -> None:
    model = enable_cache(QWEN_IMAGE.build(), dataclasses.replace(CONFIG, num_inference_steps=4))
    first = loop(model, 4)
    loop(model, 2)
    refresh_context(model, num_inference_steps=6)
    assert summary(model, logging=False) == []
    longer = loop(model, 6)
    assert decisions(model) == "CCSSSS"
    assert all(map(torch.equal, longer[:4], first))
    refresh_context(model, num_inference_steps=3)
    assert all(map(torch.equal, loop(model, 3), first))
    assert decisions(model) == "CCS"


def test_refresh_context_takes_a_whole_or_a_partial_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    model = enable_cache(QWEN_IMAGE.build(), CONFIG)
    refresh_context(model, cache_config=DBCacheConfig().reset(max_cached_steps=1), num_inference_steps=4)
    assert capsys.readouterr().out == ""
    loop(model, 4)
    assert decisions(model) == "CCSC"
    refresh_context(model, cache_config=OTHER, calibrator_config=TAYLOR, verbose=True)
    printed = capsys.readouterr().out
    assert printed == "QwenImageTransformer2DModel: DBCache_F2B0_W3I1M0MC0_R1_T1O1\n"
    loop(model, 4)
    assert decisions(model) == "CCCS"


def test_refresh_context_keeps_what_is_set_for_each_list() -> None:
    modifiers = [
        ParamsModifier(cache_config=DBCacheConfig().reset(Fn_compute_blocks=number)) for number in (2, 3)
    ]
    model = enable_cache(FLUX.build(), CONFIG, params_modifiers=modifiers)
    refresh_context(model, cache_config=DBCacheConfig().reset(max_warmup_steps=1))
    assert strify(model) == "DBCache_F2B0_W1I1M0MC0_R1_T0O0+DBCache_F3B0_W1I1M0MC0_R1_T0O0"


def test_refresh_context_needs_a_cache() -> None:
    with pytest.raises(
        ConfigError, match=r"FluxTransformer2DModel is not cached; call cache_dit.enable_cache"
    ):
        refresh_context(FLUX.build(), num_inference_steps=4)


def test_strify_of_everything() -> None:
    pipe = enable_cache(FLUX_PIPELINE.build(), CONFIG, TAYLOR)
    FLUX_PIPELINE.call(pipe, 0, STEPS)
    name = "DBCache_F1B0_W2I1M0MC0_R1_T1O1"
    assert strify(pipe) == strify(pipe.transformer) == strify(BlockAdapter(pipe=pipe)) == name
    stats = summary(pipe, logging=False)
    assert strify(stats) == strify(stats[0]) == f"{name}_S3"


# --- bad input ---


def untouched(model: nn.Module) -> Any:
    """Everything that caching may touch: classes and attributes of all modules."""
    return {name: (type(part), vars(part).copy()) for name, part in model.named_modules()}


def check_refused(
    tiny: TinyModel,
    act: Callable[[Any], Any],
    error: type[CacheDiTError],
    words: tuple[str, ...],
    python_error: type[Exception] = ValueError,
) -> None:
    model = tiny.build()
    before, expected = untouched(model), output_of(model, tiny.inputs(0))
    with pytest.raises(error) as caught:
        act(model)
    assert type(caught.value) is error
    assert isinstance(caught.value, python_error)
    for word in words:
        assert word in str(caught.value)
    after = untouched(model)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name][0] is after[name][0]
        assert before[name][1].keys() == after[name][1].keys()
    assert all(map(torch.equal, output_of(model, tiny.inputs(0)), expected))


def config(**fields: Any) -> Callable[[Any], Any]:
    return lambda model: enable_cache(model, DBCacheConfig(**fields))


def adapter(**fields: Any) -> Callable[[Any], Any]:
    """An adapter of the model; a field that is a function is asked for its value with the model."""

    def act(model: Any) -> Any:
        parts = {
            name: value(model) if callable(value) and not isinstance(value, type) else value
            for name, value in fields.items()
        }
        return enable_cache(BlockAdapter(**{"transformer": model} | parts), CONFIG)

    return act


def both_lists(model: Any) -> list[nn.ModuleList]:
    return [model.transformer_blocks, model.single_transformer_blocks]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        pytest.param(
            config(Fn_compute_blocks=6),
            ("Fn_compute_blocks is 6", "transformer_blocks of FluxTransformer2DModel has 6", "from 1 to 5"),
            id="Fn",
        ),
        pytest.param(
            config(Fn_compute_blocks=8),
            ("Fn_compute_blocks is 8", "has 6 blocks", "from 1 to 5"),
            id="Fn-default-given",
        ),
        pytest.param(
            config(Fn_compute_blocks=1, Bn_compute_blocks=5),
            ("Bn_compute_blocks is 5", "single_transformer_blocks of FluxTransformer2DModel has 5", "0 to 4"),
            id="Bn",
        ),
        pytest.param(
            lambda model: enable_cache(
                model, CONFIG, params_modifiers=[ParamsModifier(), ParamsModifier(cache_config=OTHER)] * 2
            ),
            ("params_modifiers has 4 entries", "2 block lists in 1 transformers", "one for each list"),
            id="too-many-modifiers",
        ),
        pytest.param(
            lambda model: enable_cache(
                model,
                CONFIG,
                params_modifiers=[
                    ParamsModifier(),
                    ParamsModifier(
                        cache_config=DBCacheConfig().reset(Fn_compute_blocks=4, Bn_compute_blocks=2)
                    ),
                ],
            ),
            (
                "Bn_compute_blocks is 2",
                "single_transformer_blocks",
                "5 blocks and Fn_compute_blocks is 4",
                "0 to 0",
            ),
            id="Fn-and-Bn-of-the-second-list",
        ),
        pytest.param(
            adapter(blocks=both_lists, forward_pattern=[P1] * 3),
            ("forward_pattern has 3 entries", "2 block lists of FluxTransformer2DModel", "one for all"),
            id="too-many-patterns",
        ),
        pytest.param(
            adapter(blocks=5, forward_pattern=P1), ("blocks is of type int", "give a ModuleList"), id="blocks"
        ),
        pytest.param(
            adapter(blocks=lambda model: nn.ModuleList(), forward_pattern=P1),
            ("blocks is of type ModuleList", "at least one block"),
            id="no-blocks",
        ),
        pytest.param(
            adapter(blocks=lambda model: [model.transformer_blocks] * 2, forward_pattern=P1),
            ("blocks names a block twice", "every block list once"),
            id="a-list-twice",
        ),
        pytest.param(
            adapter(blocks=lambda model: FLUX.build().transformer_blocks, forward_pattern=P1),
            ("FluxTransformerBlock is no part of FluxTransformer2DModel", "of the transformer that is given"),
            id="blocks-of-another-model",
        ),
        pytest.param(
            adapter(blocks=both_lists, forward_pattern="Pattern_1"),
            ("forward_pattern is 'Pattern_1'", "ForwardPattern.Pattern_1"),
            id="pattern-as-text",
        ),
        pytest.param(adapter(blocks=both_lists), ("forward_pattern is None", "give one of"), id="no-pattern"),
        pytest.param(
            adapter(transformer=5, blocks=both_lists, forward_pattern=P1),
            ("transformer is of type int", "nn.Module"),
            id="transformer-of-no-kind",
        ),
        pytest.param(
            adapter(transformer=lambda model: [model, model], blocks=both_lists, forward_pattern=[P1]),
            ("forward_pattern has 1 entries but transformer has 2", "one entry for each"),
            id="entries-for-transformers",
        ),
        pytest.param(
            lambda model: summary(model),
            ("FluxTransformer2DModel is not cached", "enable_cache"),
            id="summary",
        ),
        pytest.param(lambda model: strify(model), ("is not cached", "enable_cache"), id="strify"),
    ],
)
def test_values_that_do_not_fit_the_model(act: Callable[[Any], Any], words: tuple[str, ...]) -> None:
    check_refused(FLUX, act, ConfigError, words)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda model: enable_cache(model, cache_confg=CONFIG), ("'cache_confg'", "mean 'cache_config'?")),
        (lambda model: enable_cache(model, zzz=1), ("'zzz'", "Known are: cache_config, calibrator_config")),
        (
            lambda model: enable_cache(model, Fn_compute_blocks=1),
            ("'Fn_compute_blocks'", "give cache_config=DBCacheConfig(Fn_compute_blocks=1)"),
        ),
        (
            lambda model: enable_cache(model, CONFIG, taylorseer_order=2),
            ("'taylorseer_order'", "calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=2)"),
        ),
        (
            lambda model: enable_cache(model, TAYLOR),
            ("cache_config is of type TaylorSeer", "CacheConfig"),
        ),
        (
            lambda model: enable_cache(model, DBCacheConfig),
            ("cache_config is the class DBCacheConfig; give an instance",),
        ),
        (lambda model: enable_cache(model, {}), ("cache_config is of type dict", "give a CacheConfig")),
        (lambda model: enable_cache(model, CONFIG, CONFIG), ("calibrator_config is of type DBCacheConfig",)),
        (lambda model: enable_cache(model, params_modifiers=5), ("params_modifiers is of type int",)),
        (
            lambda model: enable_cache(model, params_modifiers=[CONFIG]),
            ("params_modifiers is of type DBCache",),
        ),
        (lambda model: enable_cache(model, params_modifiers=[[5]]), ("params_modifiers is of type int",)),
        (lambda model: ParamsModifier(cache_config=TAYLOR), ("cache_config is of type TaylorSeer",)),
        (lambda model: ParamsModifier(calibrator_config=CONFIG), ("calibrator_config is of type DBCache",)),
        (
            lambda model: enable_cache(model, CalibratorConfig().reset(enable_calibrator=True)),
            ("no option 'enable_calibrator'",),
        ),
    ],
)
def test_wrong_types_and_misspelt_options(act: Callable[[Any], Any], words: tuple[str, ...]) -> None:
    check_refused(FLUX, act, ConfigTypeError, words, TypeError)


@pytest.mark.parametrize("target", [None, 5, "flux", [], object(), nn.Module, ForeignPipeline])
@pytest.mark.parametrize("function", [enable_cache, disable_cache, summary, strify, refresh_context])
def test_objects_of_no_kind(function: Callable[[Any], Any], target: Any) -> None:
    if function is strify and target == []:
        return
    with pytest.raises(UnsupportedModelError, match=f"An object of type {type(target).__name__} is no"):
        function(target)


def test_more_last_than_first_blocks_where_the_model_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(rows._BY_NAME[DIT.name], last_within_first=True)
    monkeypatch.setitem(rows._BY_NAME, DIT.name, row)
    check_refused(
        DIT,
        config(Fn_compute_blocks=1, Bn_compute_blocks=2),
        ConfigError,
        ("Bn_compute_blocks is 2 and Fn_compute_blocks 1", DIT.name, "from 0 to 1"),
    )
    enable_cache(DIT.build(), DBCacheConfig(Fn_compute_blocks=2, Bn_compute_blocks=2))


def test_a_refused_configuration_leaves_the_one_in_force() -> None:
    pipe = enable_cache(FLUX_PIPELINE.build(), CONFIG, TAYLOR)
    for act in (
        lambda: enable_cache(pipe, DBCacheConfig(Fn_compute_blocks=6)),
        lambda: refresh_context(pipe, cache_config=DBCacheConfig().reset(Fn_compute_blocks=6)),
        lambda: refresh_context(pipe, num_inference_steps=0),
    ):
        with pytest.raises(ConfigError):
            act()
        assert strify(pipe) == "DBCache_F1B0_W2I1M0MC0_R1_T1O1"
        assert torch.equal(FLUX_PIPELINE.call(pipe, 0, STEPS), cached(FLUX_PIPELINE))


def test_one_refused_transformer_leaves_the_other_alone() -> None:
    pipe = WAN_TWO_TRANSFORMERS.build()
    before = [untouched(model).keys() for model in (pipe.transformer, pipe.transformer_2)]
    with pytest.raises(ConfigError, match="blocks of WanTransformer3DModel has 4 blocks"):
        enable_cache(pipe, DBCacheConfig(Fn_compute_blocks=5))
    assert [untouched(model).keys() for model in (pipe.transformer, pipe.transformer_2)] == before
    assert type(pipe.transformer) is type(WAN.build())
    assert torch.equal(WAN_TWO_TRANSFORMERS.call(pipe, 0, STEPS), uncached(WAN_TWO_TRANSFORMERS))


def test_mask_of_another_length_than_the_run() -> None:
    mask = [1, 0, 1, 0]
    pipe = enable_cache(WAN_PIPELINE.build(), dataclasses.replace(CONFIG, steps_computation_mask=mask))
    with pytest.raises(
        ConfigError, match=r"has 4 entries but the run has 5 steps; give cache_dit.steps_mask"
    ):
        WAN_PIPELINE.call(pipe, 0, STEPS)
    WAN_PIPELINE.call(pipe, 0, 4)
    assert decisions(pipe) == "CSCS"


def test_mask_of_another_length_than_the_request() -> None:
    model = enable_cache(DIT.build(), dataclasses.replace(CONFIG, steps_computation_mask=[1, 0]))
    with Request(3), pytest.raises(ConfigError, match="has 2 entries but the run has 3 steps"):
        output_of(model, DIT.inputs(0))


def test_mask_of_the_second_list_is_held_against_the_run_too() -> None:
    modifiers = [
        ParamsModifier(),
        ParamsModifier(cache_config=DBCacheConfig().reset(steps_computation_mask=[1, 0])),
    ]
    model = enable_cache(FLUX.build(), CONFIG, params_modifiers=modifiers)
    with Request(3), pytest.raises(ConfigError, match="has 2 entries but the run has 3 steps"):
        output_of(model, FLUX.inputs(0))


# --- wrong patterns ---


def run_with(pattern: Any, blocks: Callable[[Any], Any], tiny: TinyModel) -> Callable[[Any], Any]:
    def act(model: Any) -> None:
        enable_cache(BlockAdapter(transformer=model, blocks=blocks(model), forward_pattern=pattern), CONFIG)
        output_of(model, tiny.inputs(0))

    return act


def first_list(model: Any) -> Any:
    return model.get_submodule("blocks" if hasattr(model, "blocks") else "transformer_blocks")


@pytest.mark.parametrize(
    ("tiny", "blocks", "pattern", "words"),
    [
        pytest.param(
            CHROMA, lambda model: model.single_transformer_blocks, P0, ("cannot have Pattern_0",), id="enable"
        ),
        pytest.param(
            CHROMA,
            both_lists,
            [P1, P1],
            ("ChromaSingleTransformerBlock takes (hidden_states", "no second stream"),
            id="enable-second-list",
        ),
        pytest.param(FLUX, first_list, P0, ("transformer_blocks", "give ForwardPattern.Pattern_1"), id="E-H"),
        pytest.param(FLUX, first_list, P4, ("give ForwardPattern.Pattern_1",), id="E-H-as-side-output"),
        pytest.param(FLUX, first_list, P5, ("give ForwardPattern.Pattern_1",), id="E-H-as-side-output-first"),
        pytest.param(
            FLUX, first_list, P3, ("a tuple of 2", "Pattern_0, Pattern_1, Pattern_4 or Pattern_5"), id="tuple"
        ),
        pytest.param(
            FLUX, both_lists, [P1, P3], ("single_transformer_blocks", "a tuple of 2"), id="of-older-diffusers"
        ),
        pytest.param(
            FLUX, both_lists, [P1, P0], ("single_transformer_blocks", "Pattern_1"), id="second-list"
        ),
        pytest.param(COGVIDEOX, first_list, P1, ("give ForwardPattern.Pattern_0",), id="H-E"),
        pytest.param(WAN, first_list, P0, ("one Tensor", "Pattern_2 or Pattern_3"), id="one-tensor"),
        pytest.param(DIT, first_list, P4, ("one Tensor", "Pattern_2 or Pattern_3"), id="one-tensor-and-side"),
    ],
)
def test_wrong_pattern_is_named_and_the_model_given_back(
    tiny: TinyModel,
    blocks: Callable[[Any], Any],
    pattern: Any,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(rows._BY_NAME, tiny.name)
    check_refused(tiny, run_with(pattern, blocks, tiny), PatternError, words)


def test_wrong_pattern_in_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(rows._BY_NAME, FLUX.name)
    pipe = FLUX_PIPELINE.build()
    enable_cache(BlockAdapter(pipe=pipe, auto=True, forward_pattern=P0), CONFIG)
    with pytest.raises(PatternError, match=r"give ForwardPattern.Pattern_1"):
        FLUX_PIPELINE.call(pipe, 0, STEPS)
    assert torch.equal(FLUX_PIPELINE.call(pipe, 0, STEPS), uncached(FLUX_PIPELINE))


def test_wrong_pattern_is_seen_where_one_block_alone_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(rows._BY_NAME, FLUX.name)
    model = FLUX.build()
    blocks = model.transformer_blocks
    enable_cache(
        BlockAdapter(transformer=model, blocks=blocks, forward_pattern=ForwardPattern.Pattern_0),
        DBCacheConfig(Fn_compute_blocks=len(blocks) - 1, residual_diff_threshold=0.0),
    )
    with pytest.raises(PatternError, match=r"give ForwardPattern.Pattern_1"):
        output_of(model, FLUX.inputs(0))


def test_a_pattern_without_blocks_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(rows._BY_NAME, QWEN_IMAGE.name)
    model = QWEN_IMAGE.build()
    enable_cache(BlockAdapter(transformer=model, forward_pattern=ForwardPattern.Pattern_0))
    with pytest.raises(PatternError, match=r"give ForwardPattern.Pattern_1"):
        output_of(model, QWEN_IMAGE.inputs(0))


@pytest.mark.parametrize(
    ("tiny", "blocks", "pattern", "words"),
    [
        pytest.param(
            FLUX,
            both_lists,
            [P1, P3],
            r"single_transformer_blocks .* as Pattern_3 H -> H, but its blocks "
            r"return \(encoder_hidden_states, hidden_states\); that is used",
            id="of-older-diffusers",
        ),
        pytest.param(
            CHROMA,
            both_lists,
            [P1, P0],
            r"single_transformer_blocks .* return hidden_states;",
            id="one-tensor",
        ),
        pytest.param(
            QWEN_IMAGE,
            lambda model: None,
            P0,
            r"transformer_blocks of QwenImageTransformer2DModel was declared as Pattern_0",
            id="without-blocks",
        ),
    ],
)
def test_a_class_that_is_known_is_known_better_than_declared(
    tiny: TinyModel, blocks: Callable[[Any], Any], pattern: Any, words: str
) -> None:
    model = tiny.build()
    adapter = BlockAdapter(transformer=model, blocks=blocks(model), forward_pattern=pattern)
    with pytest.warns(UserWarning, match=words) as caught:
        enable_cache(adapter, CONFIG, TAYLOR)
    assert caught[0].filename == __file__
    declared, known = loop(model, STEPS, tiny), loop(enable_cache(tiny.build(), CONFIG, TAYLOR), STEPS, tiny)
    assert all(map(torch.equal, declared, known))
    assert decisions(model) == "CCSSS"


def test_what_counts_for_the_whole_transformer_cannot_differ_between_lists() -> None:
    model = FLUX.build()
    second = ParamsModifier(cache_config=DBCacheConfig().reset(num_inference_steps=9))
    with pytest.raises(ConfigError, match=r"num_inference_steps is None .* and 9 for another"):
        enable_cache(model, params_modifiers=[ParamsModifier(), second])
    assert type(model) is type(FLUX.build())
