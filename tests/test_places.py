"""What a skipped step leaves out: the blocks one by one, modules inside of them, or the whole transformer."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffusers
import pytest
import torch
from test_rows import caching, calls_of, change, equal, nothing_learnt
from tiny.image_models import FLUX
from tiny.models import TINY_MODELS, TinyModel, output_of, tiny_model
from tiny.runs import Denoising, small_flux
from tiny.versions import needs_all
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import cache_dit
from cache_dit import (
    CalibratorConfig,
    DBCacheConfig,
    ParamsModifier,
    Place,
    Request,
    TaylorSeerCalibratorConfig,
)
from cache_dit.api import attachments_of
from cache_dit.caching.attach.places import has_norm, modules_of
from cache_dit.caching.catalogue import (
    DBPruneConfig,
    DeltaDiTConfig,
    DiCacheConfig,
    EasyCacheConfig,
    IntervalConfig,
    MagCacheConfig,
    PABConfig,
    SeaCacheConfig,
    SpeCaConfig,
    TeaCacheConfig,
)
from cache_dit.caching.config import CacheConfig, Kind
from cache_dit.caching.engine.forward import SegmentRun
from cache_dit.caching.engine.records import StepRecord
from cache_dit.caching.gates.teacache import TeaCacheGate
from cache_dit.caching.maths.gate import Reason
from cache_dit.caching.models.rows import row_of
from cache_dit.demo.model import PROMPTS, generate, load_pipeline
from cache_dit.errors import ConfigError
from cache_dit.stats import summary
from cache_dit.stats.flops import SDPA_MAPPING

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
    needs_all()
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


def test_summary_names_kinds_of_modules_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(FLUX)
    with caching(model, every_second(Place.SUBMODULES)):
        run(model, FLUX, 4)
        (stats,) = summary(model, details=True)
    assert stats.lists == (
        "transformer_blocks.*.attn",
        "transformer_blocks.*.ff",
        "transformer_blocks.*.ff_context",
        "single_transformer_blocks.*.attn",
        "single_transformer_blocks.*.proj_mlp",
        "single_transformer_blocks.*.proj_out",
    )
    assert stats.cached_steps == [2]
    assert stats.pruned is None
    assert "pruned" not in capsys.readouterr().out


def test_pruned_blocks_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(FLUX)
    config = DBPruneConfig(
        Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.5, non_prune_block_ids=[2, 4]
    )
    with caching(model, dataclasses.replace(config, enable_separate_cfg=False)):
        with Request(3):
            for seed in (0, 0, 1):
                output_of(model, FLUX.inputs(seed))
        (stats,) = summary(model)
        assert cache_dit.diagnose(model, logging=False) == []
    # Of 6 double and 5 single blocks, but for the first one and those kept; none of them on the last step.
    blocks = [index for index in range(1, 6) if index not in (2, 4)] + [0, 1, 3]
    assert stats.pruned == (len(blocks), 3 * len(blocks))
    assert f"{len(blocks)} of {3 * len(blocks)} blocks pruned" in capsys.readouterr().out
    assert stats.cached_steps == [1]


# --- what looks at the forward ---


def segments_of(model: Any) -> Any:
    return attachments_of(model)[0].session.plan.segments


def outputs(model: Any, tiny: TinyModel, seeds: Sequence[int]) -> list[tuple[Tensor, ...]]:
    with Request(len(seeds)):
        return [output_of(model, tiny.inputs(seed)) for seed in seeds]


@pytest.mark.parametrize("tiny", [*SOME[:3], *SOME[6:9]], ids=lambda tiny: tiny.id)
def test_a_draft_is_checked_on_a_late_block_and_taken_back(tiny: TinyModel) -> None:
    model, seeds = model_of(tiny), range(6)
    expected = outputs(model, tiny, seeds)
    options = {"max_warmup_steps": 2, "unchecked_drafts": 0, "decay": 1.0, "enable_separate_cfg": False}
    calibrator = TaylorSeerCalibratorConfig()
    with caching(model, SpeCaConfig(tolerance=1e-6, **options), calibrator):
        checked = segments_of(model)[-1]
        with calls_of([checked.blocks[checked.stop]]) as called:
            made = outputs(model, tiny, seeds)
        assert decisions(model) == "CCCCCC"
        assert {step.verdict.reason for step in records(model) if step.step > 1} <= {
            Reason.REJECTED,
            Reason.FOLLOWS,
        }
    # Once for the draft and once for the step.
    assert len(called) == 2 + 4 * 2
    assert all(map(equal, made, expected))
    with caching(model, SpeCaConfig(tolerance=1e6, **options), calibrator):
        with calls_of([checked.blocks[checked.stop]]) as called:
            made = outputs(model, tiny, seeds)
        assert decisions(model) == "CCSSSS"
    assert len(called) == 6
    assert not any(map(equal, made[2:], expected[2:]))


def test_a_repeated_input_passes_the_check() -> None:
    model, options = model_of(FLUX), {"max_warmup_steps": 1, "enable_separate_cfg": False}
    with caching(model, SpeCaConfig(tolerance=0.01, unchecked_drafts=0, **options)):
        outputs(model, FLUX, [0, 0, 0, 0])
        assert decisions(model) == "CSSS"
        outputs(model, FLUX, [0, 0, 1, 1])
        assert decisions(model) == "CSCS"


@pytest.mark.parametrize("place", [Place.OUTPUT, Place.SUBMODULES])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SpeCaConfig(), "SpeCa looks at blocks that are always computed"),
        (DBCacheConfig(Fn_compute_blocks=1), "DBCache decides by the change of the main stream"),
        (TeaCacheConfig(), "TeaCache decides by the main stream that enters the first block"),
        (DiCacheConfig(), "DiCache decides by a `Probe`"),
    ],
)
def test_methods_that_need_blocks_say_so(config: CacheConfig, place: Place, words: str) -> None:
    model = FLUX.build()
    with pytest.raises(ConfigError, match=words):
        cache_dit.enable_cache(model, dataclasses.replace(config, place=place))


def test_what_goes_by_the_output_keeps_the_output() -> None:
    config = EasyCacheConfig(place=Place.MIDDLE)
    with pytest.raises(ConfigError, match=r"Place.MIDDLE but EasyCache goes by the output .* Place.OUTPUT"):
        cache_dit.enable_cache(FLUX.build(), config)


@pytest.mark.parametrize("compiled_first", [True, False])
def test_compiled_blocks_break_at_the_modules_that_are_skipped(compiled_first: bool) -> None:
    expected = Denoising(cache_dit.enable_cache(small_flux(), every_second(Place.MLP)), 0).finish()
    for whole in (False, True):
        torch.compiler.reset()
        model: Any = small_flux()
        if not compiled_first:
            cache_dit.enable_cache(model, every_second(Place.MLP))
        model.compile_repeated_blocks(fullgraph=whole, backend="eager")
        if compiled_first:
            cache_dit.enable_cache(model, every_second(Place.MLP))
        if whole:
            with pytest.raises(ConfigError, match=r"Place.MLP .* fullgraph=False"):
                Denoising(model, 0).finish()
        else:
            torch.testing.assert_close(Denoising(model, 0).finish(), expected)
            assert decisions(model) == "CCSCSC"
    torch.compiler.reset()


def test_one_output_for_all_lists() -> None:
    modifiers = [ParamsModifier(), ParamsModifier(cache_config=DBCacheConfig().reset(place=Place.OUTPUT))]
    with pytest.raises(ConfigError, match="one output for all of them"):
        cache_dit.enable_cache(FLUX.build(), params_modifiers=modifiers)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("WanTransformer3DModel", {"attn1": "CCCSCSCSCS", "attn2": "CCSSSSCSSS", "ffn": "CCSCSSCSSC"}),
        ("LatteTransformer3DModel", {"attn1": "CCCSCSCSCS", "attn2": "CCSSSSCSSS", "ff": "CCSCSSCSSC"}),
        ("FluxTransformer2DModel", {"attn": "CCCSCSCSCS", "ff": "CCSCSSCSSC", "ff_context": "CCSCSSCSSC"}),
    ],
)
def test_kinds_of_modules_are_broadcast_over_ranges_of_their_own(name: str, expected: dict[str, str]) -> None:
    tiny = tiny_model(name)
    model: Any = model_of(tiny)
    with caching(model, PABConfig(place=Place.SUBMODULES, mlp=3, enable_separate_cfg=False)):
        # Noise levels of 0.95, 0.86, 0.77 and so on, of which those under 0.8 are in the window.
        outputs(model, tiny, range(10))
        blocks = model.get_submodule(tiny.block_lists[0].partition("/")[0])
        for number, segment in enumerate(segments_of(model)):
            for child, steps in expected.items():
                if segment.blocks[0] is getattr(blocks[1], child, None):
                    assert decisions(model, number) == steps
        if name == "LatteTransformer3DModel":
            inside = segments_of(model)[-2].blocks[0]
            assert inside is model.temporal_transformer_blocks[-1].attn1
            assert decisions(model, len(segments_of(model)) - 2) == "CCSSCSSSCS"


def test_rear_blocks_are_skipped_first_and_front_blocks_later() -> None:
    tiny = tiny_model("WanTransformer3DModel")
    model: Any = model_of(tiny)
    expected = output_of(model, tiny.inputs(0))
    config = DeltaDiTConfig(Fn_compute_blocks=1, blocks=0.4, enable_separate_cfg=False)
    with caching(model, config), Request(8):
        ran = []
        for _ in range(8):
            with calls_of(model.blocks) as called:
                assert change(output_of(model, tiny.inputs(0)), expected) < 1e-5
            ran.append("".join(str(place) for place, block in enumerate(model.blocks) if block in called))
    # Of blocks 1 to 5 the last two on every other step of the first half, then the first two.
    assert ran == ["012345", "0123", "012345", "0123", "0345", "012345", "0345", "012345"]


# --- what is kept ---


def kept(calibrator: CalibratorConfig, place: Place = Place.MIDDLE) -> tuple[str, int]:
    """Decisions of a run of three computed steps and every third one, and the bytes that it kept."""
    tiny = tiny_model("WanTransformer3DModel")
    model = model_of(tiny)
    config = IntervalConfig(place=place, interval=3, max_warmup_steps=3, enable_separate_cfg=False)
    with caching(model, config, calibrator):
        outputs(model, tiny, range(10))
        latest = attachments_of(model)[0].session.latest
        assert latest is not None
        return decisions(model), latest.state_bytes


def taylor(**fields: Any) -> TaylorSeerCalibratorConfig:
    return TaylorSeerCalibratorConfig(taylorseer_order=2, **fields)


@pytest.mark.parametrize("place", [Place.MIDDLE, Place.SUBMODULES, Place.OUTPUT])
def test_half_the_bytes_in_half_precision(place: Place) -> None:
    steps, full = kept(taylor(), place)
    assert kept(taylor(cache_dtype=torch.bfloat16), place) == (steps, full // 2)
    assert steps == "CCCSSCSSCS"


@pytest.mark.parametrize("place", [Place.MIDDLE, Place.SUBMODULES])
def test_memory_budget_lowers_the_order(place: Place) -> None:
    steps, full = kept(taylor(), place)
    once = full // 3
    for budget, expected in (
        (full, full),
        (full - 1, 2 * once),
        (2 * once, 2 * once),
        (2 * once - 1, once),
        (once, once),
    ):
        assert kept(taylor(memory_budget=budget), place) == (steps, expected)
    with pytest.raises(ConfigError, match=f"memory_budget is {once - 1} bytes, .* takes {once}; give"):
        kept(taylor(memory_budget=once - 1), place)


@pytest.mark.parametrize("place", [Place.MIDDLE, Place.OUTPUT, Place.MLP])
def test_forecasts_along_the_noise_level_are_exact_where_steps_are_uneven(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moves evenly with the noise level, on an uneven schedule."""
    model, sigmas = model_of(FLUX), (1.0, 0.95, 0.7, 0.6, 0.2, 0.0)
    times: list[float] = []
    plain = SegmentRun.__post_init__

    def noted(self: SegmentRun) -> None:
        plain(self)
        times.append(self._at.time)

    monkeypatch.setattr(SegmentRun, "__post_init__", noted)
    with caching(model, every_second(place), taylor(forecast_axis="sigma")):
        count = len(segments_of(model))
        with Request(5, sigmas=sigmas):
            for _ in range(5):
                output_of(model, FLUX.inputs(0))
    assert times[::count] == [1.0 - sigma for sigma in sigmas[:5]]


# --- other requests ---


@pytest.mark.parametrize("threads", [False, True], ids=["interleaved", "threads"])
@pytest.mark.parametrize("place", [Place.OUTPUT, Place.SUBMODULES])
def test_requests_do_not_mix(place: Place, threads: bool) -> None:
    config, calibrator = every_second(place), TaylorSeerCalibratorConfig()

    def images(model: Any) -> list[Denoising]:
        return [Denoising(model, seed, 6, request=Request(6), batch=1) for seed in range(2)]

    alone = [one.finish() for one in images(cache_dit.enable_cache(small_flux(), config, calibrator))]
    plain = images(small_flux())[0].finish()
    assert not torch.equal(alone[0], plain)
    together = images(cache_dit.enable_cache(small_flux(), config, calibrator))
    if threads:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Denoising.finish, together))
    else:
        for _ in range(6):
            for one in together:
                one.advance()
    assert [torch.equal(one.latents, other) for one, other in zip(together, alone, strict=True)] == [True] * 2


# --- the modulated input ---


MODULATED = {
    "AuraFlowTransformer2DModel",
    "BriaFiboTransformer2DModel",
    "BriaTransformer2DModel",
    "FluxControlNetModel",
    "FluxControlNetModel-union",
    "FluxTransformer2DModel",
    "HunyuanDiT2DControlNetModel",
    "HunyuanDiT2DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanImageTransformer2DModel-refiner",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "LongCatImageTransformer2DModel",
    "Lumina2Transformer2DModel",
    "LuminaNextDiT2DModel",
    "MochiTransformer3DModel",
    "MotifVideoTransformer3DModel",
    "OvisImageTransformer2DModel",
    "SD3ControlNetModel",
    "SD3ControlNetModel-single",
    "SD3Transformer2DModel",
    "SD3Transformer2DModel-dual_attention",
}


@pytest.mark.parametrize(
    "tiny", [tiny for tiny in TINY_MODELS if tiny.id in MODULATED], ids=lambda tiny: tiny.id
)
def test_the_modulated_input_is_what_the_first_block_makes_itself(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, looked_at, made = model_of(tiny), [], []
    measure = TeaCacheGate.measure

    def noted(self: TeaCacheGate, state: Any, at: Any, signal: Tensor) -> float | None:
        looked_at.append(signal)
        return measure(self, state, at, signal)

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        made.append(output[0] if isinstance(output, tuple) else output)

    monkeypatch.setattr(TeaCacheGate, "measure", noted)
    with caching(model, TeaCacheConfig(rel_l1_thresh=1e-9, enable_separate_cfg=False)):
        handle = segments_of(model)[0].blocks[0].norm1.register_forward_hook(keep)
        outputs(model, tiny, [0, 1, 2, 3])
        handle.remove()
    # Made for the gate and then by the block itself, but for the last step, of which nobody needs it.
    assert [torch.equal(gates, own) for gates, own in itertools.pairwise(made)][:6:2] == [True] * 3
    assert len(made) == 7
    assert all(map(torch.equal, looked_at, made[2:6:2]))
    assert len(looked_at) == 2


def test_models_whose_modulated_input_is_known() -> None:
    needs_all()
    known = {tiny.id for tiny in TINY_MODELS if has_norm(first_block(tiny))}
    assert known == MODULATED
    with pytest.raises(ConfigError, match="which is not known of WanTransformer3DModel; give another"):
        cache_dit.enable_cache(tiny_model("WanTransformer3DModel").build(), TeaCacheConfig())


def first_block(tiny: TinyModel) -> nn.Module:
    row, model = row_of(getattr(diffusers, tiny.name)), model_of(tiny)
    assert row is not None
    return next(flow.members(model)[0] for flow in row.lists if flow.members(model))


@pytest.mark.parametrize(
    "config",
    [
        TeaCacheConfig(rel_l1_thresh=0.15),
        SeaCacheConfig(),
        EasyCacheConfig(threshold=0.2, max_warmup_steps=2),
        MagCacheConfig(ratios=[1.0] + [0.97] * 9),
        DiCacheConfig(threshold=0.2),
    ],
    ids=lambda config: config.method,
)
def test_adaptive_methods_skip_some_steps_of_the_demo_model(config: CacheConfig) -> None:
    pipe = load_pipeline()
    with caching(pipe, config):
        generate(pipe, PROMPTS[0], steps=10, cfg=1.0)
        steps = decisions(pipe)
    assert len(steps) == 10
    # Neither none, nor as many as there may be.
    assert 2 <= steps.count("S") <= 6
