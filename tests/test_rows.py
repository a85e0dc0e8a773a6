"""What every model row must prove, over all tiny models and all extra inputs that their forwards take.

On a repeated input a skipped step must give what the computed step gave: the right quantity is put back in
the right place, whatever the model does between its blocks.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny.flux_2_3_models import FLUX2_KV, flux2_cached, flux2_extract
from tiny.image_models_2 import QWEN_IMAGE21
from tiny.models import TINY_MODELS, Inputs, TinyModel, output_of, tiny_model
from torch import Tensor, nn

import cache_dit
from cache_dit import (
    CacheConfig,
    CalibratorConfig,
    DBCacheConfig,
    ParamsModifier,
    Request,
    TaylorSeerCalibratorConfig,
)
from cache_dit.api import attachments_of
from cache_dit.caching.catalogue import DBPruneConfig
from cache_dit.caching.engine.plan import Segment
from cache_dit.caching.engine.records import StepRecord
from cache_dit.caching.engine.state import SegmentState
from cache_dit.caching.forecasters.reuse import Reuse
from cache_dit.caching.maths.gate import Reason
from cache_dit.caching.models.row import BlockList, Row, modules_at
from cache_dit.caching.models.rows import ROWS, row_of
from cache_dit.errors import ConfigError

Outputs = tuple[Tensor, ...]

REPEATED = {"residual_diff_threshold": 1.0, "enable_separate_cfg": False}
TWO_LISTS = [tiny for tiny in TINY_MODELS if len(tiny.block_lists) == 2]
CASES = [
    pytest.param(tiny, variant, id=f"{tiny.id}-{variant}" if variant else tiny.id)
    for tiny in TINY_MODELS
    for variant in ("", *tiny.variants)
]

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_model = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.id)
each_two_lists = pytest.mark.parametrize("tiny", TWO_LISTS, ids=lambda tiny: tiny.id)
each_bypassed = pytest.mark.parametrize(
    "tiny", [tiny for tiny in TINY_MODELS if tiny.bypassed is not None], ids=lambda tiny: tiny.id
)
MUTING = {row.name for row in ROWS if row.muted}
each_muted = pytest.mark.parametrize(
    "tiny", [tiny for tiny in TINY_MODELS if tiny.name in MUTING], ids=lambda tiny: tiny.id
)
each_case = pytest.mark.parametrize(("tiny", "variant"), CASES)


@functools.cache
def model_of(tiny: TinyModel) -> Any:
    return tiny.build()


def inputs_of(tiny: TinyModel, variant: str, seed: int = 0) -> Inputs:
    return (tiny.variants[variant] if variant else tiny.inputs)(seed)


@functools.cache
def reference(tiny: TinyModel, variant: str, seed: int = 0) -> Outputs:
    return output_of(model_of(tiny), inputs_of(tiny, variant, seed))


def row_for(tiny: TinyModel) -> Row:
    row = row_of(getattr(diffusers, tiny.name))
    assert row is not None
    return row


@contextlib.contextmanager
def caching(
    model: Any,
    cache: dict[str, Any] | CacheConfig,
    calibrator: CalibratorConfig | None = None,
    each: Sequence[Any] = (),
) -> Iterator[None]:
    """Cache with one decision, or with `each` changing the config of one list after the other."""
    modifiers = [ParamsModifier(cache_config=DBCacheConfig().reset(**own)) for own in each] or None
    config = cache if isinstance(cache, CacheConfig) else DBCacheConfig(**cache)
    cache_dit.enable_cache(model, config, calibrator, params_modifiers=modifiers)
    try:
        yield
    finally:
        cache_dit.disable_cache(model)


def change(outputs: Outputs, other: Outputs) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(outputs, other, strict=True))


def equal(outputs: Outputs, other: Outputs) -> bool:
    return len(outputs) == len(other) and all(map(torch.equal, outputs, other))


def records(model: Any, segment: int = 0) -> list[StepRecord]:
    latest = attachments_of(model)[0].session.latest
    assert latest is not None
    return [step for step in latest.steps if step.segment == segment]


def flows_of(tiny: TinyModel) -> tuple[BlockList, ...]:
    """The lists of the row that the model has."""
    return tuple(flow for flow in row_for(tiny).lists if flow.members(model_of(tiny)))


def length_of(tiny: TinyModel, number: int) -> int:
    """Blocks in a list, or pairs of blocks, as they are counted in the configuration."""
    flow = flows_of(tiny)[number]
    return len(flow.members(model_of(tiny))) // flow.period


def segments_of(model: Any) -> tuple[Segment, ...]:
    return attachments_of(model)[0].session.plan.segments


def deciding(model: Any) -> list[int]:
    """The segments that take a decision of their own: the first of each list, or of all together."""
    return [number for number, segment in enumerate(segments_of(model)) if segment.policy is not None]


def decisions(model: Any, segment: int = 0) -> str:
    return "".join("S" if step.verdict.skip else "C" for step in records(model, segment))


def nothing_learnt(patch: pytest.MonkeyPatch) -> None:
    """Skipped segments change nothing, and give zeros for side outputs."""

    def with_sides(state: SegmentState, index: int, values: tuple[Any, ...]) -> tuple[Any, ...]:
        slots, kept = state.segment.ports.slots, plain(state, index, values)
        return tuple(
            torch.zeros_like(value) if port is None and value is not None else value
            for port, value in zip(slots, kept, strict=True)
        )

    plain = SegmentState.with_sides
    patch.setattr(SegmentState, "with_sides", with_sides)
    patch.setattr(Reuse, "predict", lambda _, state, at: torch.zeros_like(state))


def uncalled(kwargs: Inputs) -> set[int]:
    """Blocks left out: for SD3 those that the caller names, for Wan Animate 2 one without a prompt."""
    return {9} if kwargs.get("is_uncondtion") else set(kwargs.get("skip_layers", ()))


# --- everything computed ---


@each_case
def test_threshold_zero_is_bit_identical(tiny: TinyModel, variant: str) -> None:
    model, expected = model_of(tiny), [reference(tiny, variant, seed) for seed in range(2)]
    with caching(model, {"residual_diff_threshold": 0, "Fn_compute_blocks": 1}), Request():
        for seed in range(2):
            assert equal(output_of(model, inputs_of(tiny, variant, seed)), expected[seed])
        assert decisions(model) == "CC"


@each_case
def test_measured_but_never_skipped_is_bit_identical(tiny: TinyModel, variant: str) -> None:
    model, expected = model_of(tiny), [reference(tiny, variant, seed) for seed in range(2)]
    options = REPEATED | {"residual_diff_threshold": 1e-9, "Fn_compute_blocks": 1, "max_warmup_steps": 0}
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=2, calibrator_cache_type="hidden_states")
    with caching(model, options, calibrator), Request():
        for seed in range(2):
            assert equal(output_of(model, inputs_of(tiny, variant, seed)), expected[seed])
        verdict = records(model)[1].verdict
    if 0 in uncalled(inputs_of(tiny, variant)):
        assert verdict.reason is Reason.NO_HISTORY
    else:
        assert verdict.reason is Reason.CHANGED
        assert verdict.change is not None
        assert verdict.change > 1e-4


# --- skipped on a repeated input ---


def check_skipped(
    tiny: TinyModel, variant: str, options: dict[str, Any], calibrator: CalibratorConfig, warmup: int
) -> None:
    model, kwargs, expected = model_of(tiny), inputs_of(tiny, variant), reference(tiny, variant)
    last = length_of(tiny, -1) - 1 - options["Bn_compute_blocks"]
    with caching(model, REPEATED | options | {"max_warmup_steps": warmup}, calibrator):
        with Request(warmup + 2):
            for _ in range(warmup + 2):
                assert change(output_of(model, kwargs), expected) < 1e-5
        # A segment whose last block is not called cannot be skipped: nothing would be delivered.
        skipped = "C" if last in uncalled(kwargs) else "S"
        for number in range(len(segments_of(model))):
            assert decisions(model, number) == "C" * warmup + skipped * 2


@each_case
@pytest.mark.parametrize("tail", [0, 1])
def test_reused_change(tiny: TinyModel, variant: str, tail: int) -> None:
    options = {"Fn_compute_blocks": 1, "Bn_compute_blocks": tail}
    check_skipped(tiny, variant, options, CalibratorConfig(), warmup=1)


@each_case
def test_forecast_output(tiny: TinyModel, variant: str) -> None:
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=2, calibrator_cache_type="hidden_states")
    check_skipped(tiny, variant, {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1}, calibrator, warmup=3)


@each_model
@pytest.mark.parametrize(
    ("calibrator", "warmup"),
    [
        pytest.param(CalibratorConfig(calibrator_cache_type="hidden_states"), 1, id="reuse-hidden_states"),
        pytest.param(TaylorSeerCalibratorConfig(), 2, id="taylor1-residual"),
        pytest.param(TaylorSeerCalibratorConfig(taylorseer_order=2), 3, id="taylor2-residual"),
        pytest.param(
            TaylorSeerCalibratorConfig(calibrator_cache_type="hidden_states"), 2, id="taylor1-hidden_states"
        ),
    ],
)
def test_every_forecast(tiny: TinyModel, calibrator: CalibratorConfig, warmup: int) -> None:
    check_skipped(tiny, "", {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0}, calibrator, warmup)


@each_case
def test_static_mask_skips_the_first_blocks_too(tiny: TinyModel, variant: str) -> None:
    model, kwargs = model_of(tiny), inputs_of(tiny, variant)
    options: dict[str, Any] = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "enable_separate_cfg": False}
    options |= {"steps_computation_mask": [1, 0], "steps_computation_policy": "static"}
    expected = reference(tiny, variant)
    called: list[int] = []
    with caching(model, options):
        blocks = flows_of(tiny)[0].members(model)
        handle = blocks[0].register_forward_hook(lambda *_: called.append(1))
        with Request(2):
            outputs = [output_of(model, kwargs) for _ in range(2)]
        handle.remove()
        assert decisions(model) == "CS"
    read_later = row_for(tiny).last_within_first
    assert len(called) == (0 if 0 in uncalled(kwargs) else 2 if read_later else 1)
    assert max(change(output, expected) for output in outputs) < 1e-5


@each_case
def test_every_block_alone(tiny: TinyModel, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a segment of its own; on plain inputs with the control that no change in its place is noticed."""
    model, kwargs, expected = model_of(tiny), inputs_of(tiny, variant), reference(tiny, variant)
    off = {"residual_diff_threshold": 0.0, "Fn_compute_blocks": 1, "Bn_compute_blocks": 0}
    for number, path in enumerate(tiny.block_lists):
        count = length_of(tiny, number)
        # Where the last blocks read what the first ones leave, a block of the first half cannot be alone.
        first = count // 2 if row_for(tiny).last_within_first else 1
        for index in range(first, count):
            each = [off] * len(tiny.block_lists)
            each[number] = {
                "residual_diff_threshold": 1.0,
                "Fn_compute_blocks": index,
                "Bn_compute_blocks": count - 1 - index,
            }
            with caching(model, REPEATED | {"max_warmup_steps": 1}, each=each), Request(3):
                assert equal(output_of(model, kwargs), expected)
                assert change(output_of(model, kwargs), expected) < 1e-5, f"{path}[{index}]"
                skipped = "C" if index in uncalled(kwargs) else "S"
                for other, segment in enumerate(segments_of(model)):
                    assert decisions(model, other) == ("C" + skipped if segment.paths == (path,) else "CC")
                if not variant:
                    with monkeypatch.context() as patch:
                        nothing_learnt(patch)
                        moved = change(output_of(model, kwargs), expected)
                    assert moved > 1e-2, f"{path}[{index}] moves the output by {moved:.1e} only"


@each_case
def test_control_no_change_moves_the_output(
    tiny: TinyModel, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kwargs, expected = model_of(tiny), inputs_of(tiny, variant), reference(tiny, variant)
    nothing_learnt(monkeypatch)
    options = REPEATED | {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "max_warmup_steps": 1}
    with caching(model, options), Request(2):
        output_of(model, kwargs)
        assert change(output_of(model, kwargs), expected) > 1e-2
        assert decisions(model) == "CS"


@each_muted
def test_muted_modules_do_not_run_between_skipped_blocks(tiny: TinyModel) -> None:
    model = model_of(tiny)
    options: dict[str, Any] = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "enable_separate_cfg": False}
    options |= {"steps_computation_mask": [1, 0], "steps_computation_policy": "static"}
    calls: list[int] = []
    with caching(model, options), Request(2):
        muted = [module for path in row_for(tiny).muted for module in modules_at(model, path)]
        handles = [module.register_forward_hook(lambda *_: calls.append(1)) for module in muted]
        output_of(model, tiny.inputs(0))
        computed = len(calls)
        output_of(model, tiny.inputs(0))
        for handle in handles:
            handle.remove()
        assert decisions(model) == "CS"
    # What follows the last block adds to the forecast, so it runs in any case.
    assert computed > 1
    assert len(calls) - computed <= 1


def test_last_blocks_that_read_from_first_ones_are_not_computed_without_them() -> None:
    row = next(row for row in ROWS if row.last_within_first)
    tiny = next(tiny for tiny in TINY_MODELS if tiny.name == row.name)
    with pytest.raises(ConfigError, match="Bn_compute_blocks from 0 to 1"):
        cache_dit.enable_cache(model_of(tiny), DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=2))


# --- forwards that are no steps ---


@each_bypassed
def test_forwards_that_are_no_steps_are_neither_skipped_nor_counted(tiny: TinyModel) -> None:
    assert tiny.bypassed is not None
    model, bypassed = model_of(tiny), tiny.bypassed
    expected, plain = output_of(model, bypassed(0)), reference(tiny, "")
    with caching(model, REPEATED | {"Fn_compute_blocks": 1, "max_warmup_steps": 1}), Request(3):
        for _ in range(3):
            assert equal(output_of(model, bypassed(0)), expected)
            assert change(output_of(model, tiny.inputs(0)), plain) < 1e-5
            assert equal(output_of(model, bypassed(0)), expected)
        assert decisions(model) == "CSS"


def test_a_step_that_fills_a_kv_cache_for_the_next_ones_is_computed_and_counted() -> None:
    """In Qwen-Image 2.1 it is the first step; afterwards the image is the only stream that is left."""
    model = model_of(QWEN_IMAGE21)
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    def run() -> list[Outputs]:
        inputs = QWEN_IMAGE21.inputs(0) | {"kv_cache": QwenImage21KVCache(len(model.transformer_blocks))}
        modes = ("extract", "cached", "cached", "cached")
        return [output_of(model, inputs | {"kv_cache_mode": mode}) for mode in modes]

    expected = run()
    options = {"Fn_compute_blocks": 1, "enable_separate_cfg": False, "steps_computation_mask": [0, 0, 0, 1]}
    with caching(model, options | {"steps_computation_policy": "static"}), Request(4):
        for output, other in zip(run(), expected, strict=True):
            assert change(output, other) < 1e-5
        assert decisions(model) == "CCSC"
        assert records(model)[1].verdict.reason is Reason.RESHAPED


def test_a_first_step_that_fills_a_kv_cache_is_a_step() -> None:
    model = model_of(FLUX2_KV)
    with torch.no_grad():
        first, kv_cache = model(**flux2_extract(0), return_dict=False)
    expected = output_of(model, flux2_cached(1, kv_cache))
    with caching(model, REPEATED | {"Fn_compute_blocks": 1, "max_warmup_steps": 0}), Request(4):
        with torch.no_grad():
            output, kv_cache = model(**flux2_extract(0), return_dict=False)
        assert torch.equal(output, first)
        for _ in range(3):
            assert change(output_of(model, flux2_cached(1, kv_cache)), expected) < 1e-5
        assert decisions(model) == "CCSS"
        assert records(model)[1].verdict.reason is Reason.SWITCHED


# --- data flow ---


class Probe:
    """What the blocks of one list received by name, and returned, in one forward."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self.calls: list[tuple[dict[str, Any], Any]] = []
        self._handles = [block.register_forward_hook(self._note, with_kwargs=True) for block in blocks]

    def _note(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        received = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
        self.calls.append((received, output))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def continued(self) -> dict[int, set[str]]:
        """Output slot -> the arguments of the following block in which the same object arrived."""
        seen: dict[int, set[str]] = defaultdict(set)
        for (_, output), (received, _) in zip(self.calls, self.calls[1:], strict=False):
            for slot, value in enumerate(output if isinstance(output, tuple) else (output,)):
                seen[slot] |= {
                    name for name, got in received.items() if isinstance(got, Tensor) and got is value
                }
        return seen

    def mostly_arrives(self, slot: int, name: str) -> bool:
        """Whether the argument holds at least half of that output; a model may exchange the rest."""
        for (_, output), (received, _) in zip(self.calls, self.calls[1:], strict=False):
            value = output[slot] if isinstance(output, tuple) else output
            if value is received[name]:
                continue
            if value.shape != received[name].shape or float((value == received[name]).float().mean()) < 0.5:
                return False
        return True


@each_case
def test_observed_data_flow_agrees_with_the_row(tiny: TinyModel, variant: str) -> None:
    model = model_of(tiny)
    flows = flows_of(tiny)
    probes = [Probe(flow.members(model)) for flow in flows]
    output_of(model, inputs_of(tiny, variant))
    for flow, probe in zip(flows, probes, strict=True):
        probe.remove()
        outputs = [output for _, output in probe.calls]
        assert all(
            isinstance(output, Tensor) if flow.bare else len(output) == len(flow.continues)
            for output in outputs
        )
        for slot, declared in enumerate(flow.continues):
            seen = probe.continued()[slot]
            assert seen <= {declared}
            # What is reshaped on its way from list to list is not the same object.
            hidden = declared is None or flow.along is not None or probe.mostly_arrives(slot, declared)
            assert seen or variant or hidden, f"{flow.label}: output {slot} is not seen to arrive anywhere"


# --- every block decides by itself ---


def prunable(tiny: TinyModel, kept: Iterable[int]) -> list[nn.Module]:
    """All but the first block and those kept; of a pair the first: the layout is one at both its ends."""
    starts = [flow.members(model_of(tiny))[:: flow.period] for flow in flows_of(tiny)]
    every = [(number, index) for number, blocks in enumerate(starts) for index, _ in enumerate(blocks)]
    return [starts[number][index] for number, index in every[1:] if index not in kept]


@contextlib.contextmanager
def calls_of(modules: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """Those that are computed meanwhile, in order."""
    called: list[nn.Module] = []
    handles = [module.register_forward_hook(lambda module, *_: called.append(module)) for module in modules]
    yield called
    for handle in handles:
        handle.remove()


@each_case
@pytest.mark.parametrize("threshold", [0.0, 1e-9])
def test_never_pruned_is_bit_identical(tiny: TinyModel, variant: str, threshold: float) -> None:
    model, expected = model_of(tiny), [reference(tiny, variant, seed) for seed in range(2)]
    options = REPEATED | {"Fn_compute_blocks": 1, "max_warmup_steps": 0, "residual_diff_threshold": threshold}
    with caching(model, DBPruneConfig(**options)), Request(2):
        for seed in range(2):
            assert equal(output_of(model, inputs_of(tiny, variant, seed)), expected[seed])


@each_case
@pytest.mark.parametrize("kept", [(), tuple(range(0, 99, 2))], ids=["every", "every-second"])
def test_pruned_blocks(
    tiny: TinyModel, variant: str, kept: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not run, all others do, and on a repeated input nobody notices, but for the control."""
    model, kwargs, expected = model_of(tiny), inputs_of(tiny, variant), reference(tiny, variant)
    options = REPEATED | {"residual_diff_threshold": 0.9, "Fn_compute_blocks": 1, "max_warmup_steps": 1}
    kinds = [type(part) for part in model.modules()]
    pruned, runs = set(prunable(tiny, kept)), []
    listed = [block for flow in flows_of(tiny) for block in flow.members(model)]
    with caching(model, DBPruneConfig(**options, non_prune_block_ids=kept)), Request(3):
        for _ in range(2):
            with calls_of(listed) as called:
                assert change(output_of(model, kwargs), expected) < 1e-5
            runs.append(called)
        skipped = sum(step.verdict.skip for number in deciding(model) for step in records(model, number))
        assert skipped == len(pruned.intersection(runs[0])) == len(runs[0]) - len(runs[1]) > 0
        assert runs[1] == [block for block in runs[0] if block not in pruned]
        nothing_learnt(monkeypatch)
        assert change(output_of(model, kwargs), expected) > 1e-2
    assert [type(part) for part in model.modules()] == kinds


# --- the model afterwards and meanwhile ---


@each_model
def test_disabling_leaves_no_trace(tiny: TinyModel) -> None:
    model = tiny.build()
    kinds = {name: type(module) for name, module in model.named_modules()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    with caching(model, REPEATED | {"Fn_compute_blocks": 1, "max_warmup_steps": 1}):
        assert list(model.state_dict()) == keys
        assert isinstance(model, getattr(diffusers, tiny.name))
        assert inspect.signature(type(model).forward) == inspect.signature(kinds[""].forward)
        assert inspect.signature(type(model)) == inspect.signature(kinds[""])
        assert {name: type(module).__name__ for name, module in model.named_modules()} == {
            name: kind.__name__ for name, kind in kinds.items()
        }
        with Request(2):
            for _ in range(2):
                output_of(model, tiny.inputs(0))
            assert decisions(model) == "CS"
        assert list(model.state_dict()) == keys
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert list(model.state_dict()) == keys
    for seed in range(2):
        assert equal(output_of(model, tiny.inputs(seed)), reference(tiny, "", seed))


# Chroma imports its position embedding from where diffusers itself no longer wants it.
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@each_model
def test_saved_copied_or_pickled_while_cached_is_a_plain_model(tiny: TinyModel, tmp_path: Path) -> None:
    model, kind = tiny.build(), getattr(diffusers, tiny.name)
    kinds = [type(part) for part in model.modules()]
    options = REPEATED | {"Fn_compute_blocks": 1, "max_warmup_steps": 1}
    with caching(model, options), Request(3):
        for _ in range(2):
            output_of(model, tiny.inputs(0))
        model.save_pretrained(tmp_path)
        plain = [kind.from_pretrained(tmp_path), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        tiny.prepare(plain[0])
        for other in plain:
            assert type(other) is kind
            assert vars(other).keys() == vars(model).keys() - {"_cache_dit_attachment"}
            assert [type(part) for part in other.modules()] == kinds
            assert equal(output_of(other.eval(), tiny.inputs(1)), reference(tiny, "", 1))
        output_of(model, tiny.inputs(0))
        assert decisions(model) == "CSS", "the original is cached as before"


# --- two block lists ---


@each_two_lists
def test_one_decision_for_both_lists_by_default(tiny: TinyModel) -> None:
    model = model_of(tiny)
    with caching(model, REPEATED | {"Fn_compute_blocks": 2, "max_warmup_steps": 1}), Request(3):
        for _ in range(3):
            output_of(model, tiny.inputs(0))
        leading, *following = segments_of(model)
        assert decisions(model) == "CSS"
        for number, _ in enumerate(following, 1):
            assert decisions(model, number) == "CSS"
            assert {step.verdict.reason for step in records(model, number)} == {Reason.FOLLOWS}
        assert (leading.paths == tiny.block_lists) == row_for(tiny).joined
        assert bool(following) != row_for(tiny).joined


@each_two_lists
@pytest.mark.parametrize(("first", "second"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_modifiers_separate_the_decisions(tiny: TinyModel, first: float, second: float) -> None:
    model, expected = model_of(tiny), reference(tiny, "")
    each = [{"residual_diff_threshold": first}, {"residual_diff_threshold": second, "Fn_compute_blocks": 2}]
    with caching(model, REPEATED | {"Fn_compute_blocks": 1, "max_warmup_steps": 1}, each=each), Request(3):
        for _ in range(3):
            assert change(output_of(model, tiny.inputs(0)), expected) < 1e-5
        assert [decisions(model, number) for number in deciding(model)] == [
            "CSS" if threshold else "CCC" for threshold in (first, second)
        ]


@each_two_lists
def test_separate_lists_measure_their_own_first_blocks(tiny: TinyModel) -> None:
    model = model_of(tiny)
    options = REPEATED | {"residual_diff_threshold": 1e-9, "Fn_compute_blocks": 1, "max_warmup_steps": 0}
    changes = []
    for each in ([{}, {}], [{}, {"Fn_compute_blocks": 3}]):
        with caching(model, options, each=each), Request(2):
            for seed in range(2):
                output_of(model, tiny.inputs(seed))
            changes.append([records(model, number)[1].verdict.change for number in deciding(model)])
    assert changes[0][0] == changes[1][0]
    assert len({changes[0][0], changes[0][1], changes[1][1]}) == 3


# --- the tables ---


def test_every_row_has_a_tiny_model_and_every_tiny_model_a_row() -> None:
    assert {row.name for row in ROWS} == {tiny.name for tiny in TINY_MODELS}
    assert len({row.name for row in ROWS}) == len(ROWS)


@each_row
def test_names_of_the_row_exist_in_diffusers(row: Row) -> None:
    kind = getattr(diffusers, row.name)
    parameters = inspect.signature(kind.forward).parameters
    assert row.timestep in parameters or (row.timestep is None and "timestep" not in parameters)
    repeated = {
        type(block).__name__
        for tiny in TINY_MODELS
        if tiny.name == row.name
        for flow in row.lists
        for block in flow.members(model_of(tiny))
    }
    # Where diffusers names the blocks to compile, they are ours (and some that only run once, in a few).
    assert repeated
    assert not getattr(kind, "_repeated_blocks", None) or repeated & set(kind._repeated_blocks)


@each_model
def test_lists_of_the_row_are_those_of_the_model(tiny: TinyModel) -> None:
    assert tuple(flow.label for flow in flows_of(tiny)) == tiny.block_lists


@each_row
def test_every_list_of_the_row_is_that_of_a_tiny_model(row: Row) -> None:
    models = [model_of(tiny) for tiny in TINY_MODELS if tiny.name == row.name]
    assert all(any(flow.members(model) for model in models) for flow in row.lists)


def test_a_list_may_be_bounded_from_its_end() -> None:
    tiny = tiny_model("MotifVideoTransformer3DModel")
    model: Any = tiny.build()
    _, *single = row_for(tiny).lists
    for decoding, lengths in ((4, [5, 4]), (0, [9, 0])):
        model.register_to_config(num_decoder_layers=decoding)
        assert [len(flow.members(model)) for flow in single] == lengths
