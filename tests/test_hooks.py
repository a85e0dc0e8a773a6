"""Whatever else holds on to the model: hooks, adapters, copies, pickles, other classes, autograd."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.hooks import HookRegistry, apply_group_offloading
from diffusers.hooks import ModelHook as DiffusersHook
from diffusers.models.transformers.transformer_flux import FluxTransformerBlock
from peft import LoraConfig
from tiny.models import FLUX, output_of
from tiny.pipelines import FLUX_TRUE_CFG
from tiny.runs import Denoising, decisions
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import cache_dit
from cache_dit import CacheDiTError, CalibratorConfig, DBCacheConfig, Request, TaylorSeerCalibratorConfig
from cache_dit.api import attachments_of
from cache_dit.caching.maths.gate import Reason

CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=2
)
ALWAYS = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=1.0)
TAYLOR = TaylorSeerCalibratorConfig(taylorseer_order=2)


def cached(target: Any, config: DBCacheConfig = CONFIG) -> Any:
    return cache_dit.enable_cache(target, config, TAYLOR)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [block for path in FLUX.block_lists for block in model.get_submodule(path)]


def run(model: nn.Module) -> Tensor:
    return Denoising(model, 0).finish()


@functools.cache
def cached_result() -> Tensor:
    model = cached(FLUX.build())
    result = run(model)
    assert {"C", "S"} <= set(decisions(model)[2:])
    return result


@functools.cache
def plain_result() -> Tensor:
    return run(FLUX.build())


def footprint(model: nn.Module) -> dict[str, tuple[type, set[str]]]:
    """Class and attributes of every module."""
    return {name: (type(module), set(vars(module))) for name, module in model.named_modules()}


def add_lora(model: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "proj_mlp"], init_lora_weights=False))


def remove_lora(model: Any) -> None:
    model.unload_lora()


def on_all(put: Callable[[nn.Module], Any]) -> Callable[[nn.Module], None]:
    def put_on_all(model: nn.Module) -> None:
        for module in (model, *blocks_of(model)):
            put(module)

    return put_on_all


class Noted(DiffusersHook):
    """A hook of diffusers that changes nothing."""


def offload_groups(model: nn.Module) -> None:
    cpu = torch.device("cpu")
    apply_group_offloading(model, cpu, cpu, offload_type="block_level", num_blocks_per_group=1)


def remove_group_offloading(model: nn.Module) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(model)
    for name in ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading"):
        registry.remove_hook(name, recurse=True)


@dataclass(frozen=True)
class Guest:
    """Something else that is put onto a model and taken off again."""

    add: Callable[[nn.Module], None]
    remove: Callable[[nn.Module], None]
    changes_result: bool = False


GUESTS = {
    "LoRA": Guest(add_lora, remove_lora, changes_result=True),
    "accelerate hooks": Guest(
        on_all(lambda module: add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))),
        on_all(remove_hook_from_module),
    ),
    "diffusers hooks": Guest(
        on_all(lambda m: HookRegistry.check_if_exists_or_initialize(m).register_hook(Noted(), "noted")),
        on_all(lambda m: HookRegistry.check_if_exists_or_initialize(m).remove_hook("noted")),
    ),
    "group offloading": Guest(offload_groups, remove_group_offloading),
}


@pytest.mark.parametrize("guest", GUESTS.values(), ids=GUESTS)
@pytest.mark.parametrize("first_in", [True, False])
@pytest.mark.parametrize("first_out", [True, False])
def test_guests_come_and_go(guest: Guest, first_in: bool, first_out: bool) -> None:
    control = FLUX.build()
    keys = list(control.state_dict())
    guest.add(control)
    keys_with_guest = list(control.state_dict())
    plain_with_guest = run(control)
    cached(control)
    cached_with_guest = run(control)
    assert "S" in decisions(control)
    assert torch.equal(cached_with_guest, cached_result()) is not guest.changes_result
    cache_dit.disable_cache(control)
    guest.remove(control)
    after_guest = footprint(control)

    model = FLUX.build()
    for add in (guest.add, cached) if first_in else (cached, guest.add):
        add(model)
    assert list(model.state_dict()) == keys_with_guest
    assert torch.equal(run(model), cached_with_guest)
    if first_out:
        guest.remove(model)
        assert torch.equal(run(model), cached_result())
        cache_dit.disable_cache(model)
    else:
        cache_dit.disable_cache(model)
        assert torch.equal(run(model), plain_with_guest)
        guest.remove(model)
    assert footprint(model) == after_guest
    assert list(model.state_dict()) == keys
    assert torch.equal(run(model), plain_result())


def test_lora_weights_are_loaded_and_saved_while_attached(tmp_path: Path) -> None:
    donor = FLUX.build()
    add_lora(donor)
    donor.save_lora_adapter(tmp_path, "default")
    donor_result = run(cached(donor))

    model = cached(FLUX.build())
    model.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    assert torch.equal(run(model), donor_result)
    model.fuse_lora()
    assert not torch.equal(run(model), cached_result())
    model.unfuse_lora()
    model.unload_lora()
    assert type(model) is not FluxTransformer2DModel
    cache_dit.disable_cache(model)
    assert footprint(model).keys() == footprint(FLUX.build()).keys()
    assert torch.allclose(run(model), plain_result(), atol=1e-4)


@pytest.mark.parametrize("first_in", [True, False])
@pytest.mark.parametrize("first_out", [True, False])
def test_model_cpu_offload(first_in: bool, first_out: bool) -> None:
    tiny = FLUX_TRUE_CFG
    plain = tiny.call(tiny.build(), 0, 6)
    reference = tiny.call(cached(tiny.build()), 0, 6)
    pipe = tiny.build()

    def offload(pipe: Any) -> None:
        pipe.enable_model_cpu_offload(device="cpu")

    for add in (offload, cached) if first_in else (cached, offload):
        add(pipe)
    assert torch.equal(tiny.call(pipe, 0, 6), reference)
    assert "S" in decisions(pipe)
    if first_out:
        pipe.remove_all_hooks()
        assert torch.equal(tiny.call(pipe, 0, 6), reference)
        cache_dit.disable_cache(pipe)
    else:
        cache_dit.disable_cache(pipe)
        assert torch.equal(tiny.call(pipe, 0, 6), plain)
        pipe.remove_all_hooks()
    assert type(pipe) is FluxPipeline
    assert type(pipe.transformer) is FluxTransformer2DModel
    assert torch.equal(tiny.call(pipe, 0, 6), plain)


# --- hooks on blocks ---


class Counter:
    """Counts the calls of one block through hooks of one kind."""

    def __init__(self) -> None:
        self.calls = 0

    def count(self, *_: Any) -> None:
        self.calls += 1


def count_with_torch(block: nn.Module, counter: Counter) -> None:
    block.register_forward_hook(counter.count)


def count_with_accelerate(block: nn.Module, counter: Counter) -> None:
    class Counting(ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            counter.count()
            return args, kwargs

    add_hook_to_module(block, Counting())


def count_with_diffusers(block: nn.Module, counter: Counter) -> None:
    class Counting(DiffusersHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            counter.count()
            return args, kwargs

    HookRegistry.check_if_exists_or_initialize(block).register_hook(Counting(), "counting")


@pytest.mark.parametrize("count_with", [count_with_torch, count_with_accelerate, count_with_diffusers])
@pytest.mark.parametrize("first_in", [True, False])
def test_hooks_of_skipped_blocks_do_not_run(
    count_with: Callable[[nn.Module, Counter], None], first_in: bool
) -> None:
    model = FLUX.build()
    blocks = blocks_of(model)
    counters = [Counter() for _ in blocks]
    if not first_in:
        cached(model)
    for block, counter in zip(blocks, counters, strict=True):
        count_with(block, counter)
    if first_in:
        cached(model)
    assert torch.equal(run(model), cached_result())
    computed = decisions(model).count("C")
    assert 2 < computed < 6
    assert [counter.calls for counter in counters] == [6] + [computed] * (len(blocks) - 1)


def test_what_a_forward_hook_returns_reaches_the_result() -> None:
    model = cached(FLUX.build())
    model.single_transformer_blocks[2].register_forward_hook(
        lambda _module, _args, output: tuple(1.1 * stream for stream in output)
    )
    hooked = run(model)
    assert not torch.equal(hooked, cached_result())
    cache_dit.disable_cache(model)
    cached(model)
    assert torch.equal(run(model), hooked)


# --- copies ---


def assert_plain(model: nn.Module) -> None:
    assert footprint(model) == footprint(FLUX.build())


def pickled(thing: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copy_of_an_attached_model_is_plain_and_independent(duplicate: Callable[[Any], Any]) -> None:
    model = cached(FLUX.build())
    half = Denoising(model, 0)
    for _ in range(3):
        half.advance()
    twin = duplicate(model)
    assert_plain(twin)
    assert torch.equal(run(twin), plain_result())
    # The original goes on as if nothing had been; the copy can be cached for itself.
    assert torch.equal(half.finish(), cached_result())
    cached(twin)
    assert torch.equal(run(twin), cached_result())
    cache_dit.disable_cache(model)
    assert_plain(model)
    assert torch.equal(run(twin), cached_result())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copy_of_an_attached_block_is_plain(duplicate: Callable[[Any], Any]) -> None:
    block = FLUX.build().transformer_blocks[3]
    model = cached(FLUX.build())
    assert type(duplicate(model.transformer_blocks[3])) is type(block)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_copy_of_an_attached_pipeline_is_plain(duplicate: Callable[[Any], Any]) -> None:
    tiny = FLUX_TRUE_CFG
    plain = tiny.call(tiny.build(), 0, 6)
    pipe = cached(tiny.build())
    reference = tiny.call(pipe, 0, 6)
    twin = duplicate(pipe)
    assert type(twin) is FluxPipeline
    shared = twin.transformer is pipe.transformer
    assert shared is (duplicate is copy.copy)
    assert torch.equal(tiny.call(twin, 0, 6), reference if shared else plain)
    assert torch.equal(tiny.call(pipe, 0, 6), reference)


def test_saving_an_attached_model(tmp_path: Path) -> None:
    model = cached(FLUX.build())
    model.save_pretrained(tmp_path)
    loaded = FluxTransformer2DModel.from_pretrained(tmp_path)
    assert_plain(loaded)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "FluxTransformer2DModel"
    assert torch.equal(run(loaded), plain_result())


# --- what users do to a model ---


def test_model_is_moved_and_switched_while_attached() -> None:
    model = cached(FLUX.build())
    assert model.train() is model
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in model.eval().modules())
    assert model.requires_grad_(False) is model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.to("cpu", torch.float64) is model
    assert model.dtype is torch.float64

    def run64(model: nn.Module) -> Tensor:
        denoising = Denoising(model, 0)
        denoising.to(torch.float64)
        return denoising.finish()

    result = run64(model)
    assert result.dtype is torch.float64
    assert "S" in decisions(model)
    assert torch.equal(result, run64(cached(FLUX.build().to(torch.float64))))


@pytest.mark.parametrize("part", ["the model", "a block"])
def test_class_exchanged_on_top_is_named(part: str) -> None:
    model = cached(FLUX.build())
    target = model if part == "the model" else model.transformer_blocks[3]
    below = type(target)
    target.__class__ = type(f"Sharded{below.__name__}", (below,), {})
    with pytest.raises(CacheDiTError, match=rf"Sharded{below.__name__} was wrapped by something else"):
        cache_dit.disable_cache(model)
    with pytest.raises(CacheDiTError, match="undo that first"):
        cached(model)
    assert torch.equal(run(model), cached_result())
    target.__class__ = below
    cache_dit.disable_cache(model)
    assert_plain(model)


def test_class_exchanged_before_stays() -> None:
    model = FLUX.build()
    targets = (model, *blocks_of(model))
    for target in targets:
        target.__class__ = type(f"Sharded{type(target).__name__}", (type(target),), {})
    kinds = [type(target) for target in targets]
    cached(model)
    assert torch.equal(run(model), cached_result())
    cache_dit.disable_cache(model)
    assert [type(target) for target in targets] == kinds
    assert torch.equal(run(model), plain_result())


@pytest.mark.parametrize("kind", [FluxPipeline, FluxTransformer2DModel, FluxTransformerBlock])
def test_a_class_patched_later_is_seen(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = FLUX_TRUE_CFG
    tiny.call(cached(tiny.build()), 0, 4)
    called, plain = [], kind.__call__

    @functools.wraps(plain)
    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(type(self))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", patched)
    tiny.call(cached(tiny.build()), 0, 4)
    assert called
    assert all(issubclass(each, kind) for each in called)


# --- autograd ---

each_calibrator = pytest.mark.parametrize(
    "calibrator",
    [
        kind(calibrator_cache_type=cache_type, **options)
        for kind, options in ((CalibratorConfig, {}), (TaylorSeerCalibratorConfig, {"taylorseer_order": 2}))
        for cache_type in ("residual", "hidden_states")
    ],
    ids=lambda calibrator: f"{calibrator.strify()}-{calibrator.calibrator_cache_type}",
)


def kept_tensors(model: nn.Module, request: Request) -> Iterator[Tensor]:
    state = request.states[attachments_of(model)[0].session]
    for branch in state.branches.values():
        for segment in branch.segments:
            yield from (leaf for leaf in tree_leaves(segment.tensors()) if isinstance(leaf, Tensor))


@each_calibrator
def test_gradients_flow_and_nothing_of_the_graph_is_kept(calibrator: CalibratorConfig) -> None:
    # Step by step: computed, computed, skipped, computed, skipped.
    mask = [1, 1, 0, 1, 0]
    config = ALWAYS.updated(DBCacheConfig().reset(steps_computation_mask=mask, residual_diff_threshold=1.0))
    model: Any = cache_dit.enable_cache(FLUX.build(), config, calibrator)
    request = Request()
    losses = []
    for step in range(len(mask)):
        with request:
            losses.append(model(**FLUX.inputs(step), return_dict=False)[0].square().mean())
        kept = list(kept_tensors(model, request))
        assert kept or step == 0
        assert not any(tensor.requires_grad for tensor in kept)
        assert all(tensor.grad_fn is None for tensor in kept)
    assert decisions(model) == "CCSCS"

    plain = FLUX.build()
    skipped = {name for name, _ in model.named_parameters() if "blocks" in name}
    skipped -= {name for name in skipped if name.startswith("transformer_blocks.0.")}
    # At the end, after the kept tensors have been updated in place.
    for step, loss in enumerate(losses):
        grads = gradients(model, loss)
        if mask[step]:
            expected = gradients(plain, plain(**FLUX.inputs(step), return_dict=False)[0].square().mean())
            assert grads.keys() == expected.keys()
            assert all(torch.equal(grads[name], expected[name]) for name in grads)
        else:
            assert not skipped & grads.keys()
            # The change is added to what enters the segment; a forecast output hangs on nothing before it.
            through = calibrator.calibrator_cache_type == "residual"
            assert ("transformer_blocks.0.ff.net.2.weight" in grads) is through
            assert ("x_embedder.weight" in grads) is through
            assert "proj_out.weight" in grads


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "enable_grad": torch.enable_grad}


@each_calibrator
def test_modes_alternate_between_runs(calibrator: CalibratorConfig) -> None:
    model: Any = cache_dit.enable_cache(FLUX.build(), CONFIG, calibrator)
    reference = forwards(model, [torch.no_grad] * 5)
    assert "S" in decisions(model)
    for mode in (torch.inference_mode, torch.enable_grad, torch.inference_mode, torch.no_grad):
        for output, expected in zip(forwards(model, [mode] * 5), reference, strict=True):
            assert torch.equal(output, expected)


@each_calibrator
@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(MODES, 2)))
def test_modes_change_within_a_run(calibrator: CalibratorConfig, before: str, after: str) -> None:
    model: Any = cache_dit.enable_cache(FLUX.build(), ALWAYS, calibrator)
    forwards(model, [MODES[before]] * 3 + [MODES[after]] * 2 + [MODES[before]] * 2)
    record = attachments_of(model)[0].session.latest
    changed = "inference_mode" in (before, after)
    assert decisions(model) == ("CCSCSCS" if changed else "CCSSSSS")
    reasons = [step.verdict.reason for step in record.of(0, "")]
    assert (reasons.count(Reason.RESHAPED) == 2) is changed


def forwards(model: Any, modes: list[Any]) -> list[Tensor]:
    """A run whose inputs hardly change, each forward in a mode of its own."""
    inputs = FLUX.inputs(0)
    outputs = []
    for step, mode in enumerate(modes):
        with mode():
            changing = {
                "hidden_states": inputs["hidden_states"] * (1 - 0.05 * step),
                "timestep": inputs["timestep"] - 0.05 * step,
            }
            outputs.append(model(**inputs | changing, return_dict=False)[0])
    return outputs


def test_outputs_of_an_attached_model_are_those_of_the_plain_one() -> None:
    model = FLUX.build()
    expected = output_of(model, FLUX.inputs(0))
    cached(model)
    assert all(map(torch.equal, output_of(model, FLUX.inputs(0)), expected))
