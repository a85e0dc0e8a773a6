"""Offloading beside the cache: a skipped block loads nothing, whatever came first."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, CpuOffload
from diffusers.hooks.group_offloading import ModuleGroup
from tiny.models import FLUX
from tiny.pipelines import FLUX_TRUE_CFG
from tiny.runs import Denoising, decisions
from tiny.versions import since
from torch import Tensor, nn

import cache_dit
from cache_dit import DBCacheConfig
from cache_dit.compile import compile_repeated_blocks
from cache_dit.errors import ConfigError
from cache_dit.offload import check_offload
from cache_dit.quantize import quantize
from cache_dit.stats import Problem
from cache_dit.stats.flops import forward_flops

CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=2
)
BLOCKS = 11  # of the tiny Flux, in two lists


class Loads:
    """Which modules had weights loaded, and whether any module ran without."""

    def __init__(self) -> None:
        self.loaded: Counter[nn.Module] = Counter()
        self.present: set[nn.Module] = set()
        self.ran_without: list[nn.Module] = []

    def since(self, before: Counter[nn.Module], members: Callable[[nn.Module], bool]) -> int:
        """Loads of some modules after `before` was taken."""
        return sum(count for module, count in (self.loaded - before).items() if members(module))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    made = Loads()
    load, drop = ModuleGroup.onload_, ModuleGroup.offload_

    def onload_(group: ModuleGroup) -> None:
        made.loaded.update(group.modules)
        made.present.update(group.modules)
        load(group)

    def offload_(group: ModuleGroup) -> None:
        made.present.difference_update(group.modules)
        drop(group)

    monkeypatch.setattr(ModuleGroup, "onload_", onload_)
    monkeypatch.setattr(ModuleGroup, "offload_", offload_)
    return made


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [*model.transformer_blocks, *model.single_transformer_blocks]  # type: ignore[misc]


def needs_no_accelerator() -> None:
    since("0.42.1", "offloading of groups without an accelerator")


def by_blocks(model: Any, _folder: Path) -> None:
    needs_no_accelerator()
    model.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=1)


def by_leaves(model: Any, _folder: Path) -> None:
    needs_no_accelerator()
    model.enable_group_offload("cpu", offload_type="leaf_level")


def to_disk(model: Any, folder: Path) -> None:
    needs_no_accelerator()
    model.enable_group_offload(
        "cpu", offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(folder)
    )


def steps_of(model: nn.Module, loads: Loads) -> tuple[Tensor, list[int]]:
    """The result of a run, and how many loads belonged to blocks in each step."""
    inside = {part for block in blocks_of(model) for part in block.modules()}
    denoising, counts = Denoising(model, 0), []
    while denoising.step < denoising.steps:
        before = loads.loaded.copy()
        denoising.advance()
        counts.append(loads.since(before, inside.__contains__))
    return denoising.latents, counts


@pytest.mark.parametrize("offload", [by_blocks, by_leaves, to_disk])
@pytest.mark.parametrize("cached_first", [True, False])
def test_skipped_blocks_load_nothing(
    offload: Callable[[Any, Path], None], cached_first: bool, loads: Loads, tmp_path: Path
) -> None:
    wanted = Denoising(cache_dit.enable_cache(FLUX.build(), CONFIG), 0).finish()
    model = FLUX.build()
    if cached_first:
        cache_dit.enable_cache(model, CONFIG)
    offload(model, tmp_path)
    if not cached_first:
        cache_dit.enable_cache(model, CONFIG)
    result, counts = steps_of(model, loads)
    assert torch.equal(result, wanted)
    check_offload(model)

    steps = decisions(model)
    assert {"C", "S"} <= set(steps[2:])
    of_first = {part for part in blocks_of(model)[0].modules() if part in loads.loaded}
    one = len(of_first)  # a block has one group, or one for each of its leaves
    assert one == 1 or offload is by_leaves
    full = max(counts)
    assert full >= BLOCKS
    assert counts == [full if step == "C" else one for step in steps]
    if offload is to_disk:
        assert len(list(tmp_path.glob("*.safetensors"))) >= BLOCKS


@contextmanager
def counted_hooks(monkeypatch: pytest.MonkeyPatch, kind: type) -> Iterator[Counter[nn.Module]]:
    """How often hooks of accelerate were asked to bring weights."""
    calls: Counter[nn.Module] = Counter()
    plain = kind.pre_forward  # type: ignore[attr-defined]

    def pre_forward(hook: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if getattr(hook, "offload", True):
            calls[module] += 1
        return plain(hook, module, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "pre_forward", pre_forward)
        yield calls


@pytest.mark.parametrize("cached_first", [True, False])
def test_sequential_offload(cached_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `enable_sequential_cpu_offload` does to every model of a pipeline."""
    wanted = Denoising(cache_dit.enable_cache(FLUX.build(), CONFIG), 0).finish()
    model: Any = FLUX.build()
    first = model.transformer_blocks[0].attn.to_q
    last = model.single_transformer_blocks[-1].proj_out
    with counted_hooks(monkeypatch, AlignDevicesHook) as calls:
        if cached_first:
            cache_dit.enable_cache(model, CONFIG)
        cpu_offload(model, execution_device=torch.device("cpu"))
        if not cached_first:
            cache_dit.enable_cache(model, CONFIG)
        assert torch.equal(Denoising(model, 0).finish(), wanted)
    assert calls[first] == 6
    assert calls[last] == decisions(model).count("C") < 6


@pytest.mark.parametrize("cached_first", [True, False])
def test_model_offload_loads_the_transformer_once_a_picture(
    cached_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = FLUX_TRUE_CFG
    wanted = tiny.call(cache_dit.enable_cache(tiny.build(), CONFIG), 0, 6)
    pipe = tiny.build()
    with counted_hooks(monkeypatch, CpuOffload) as calls:
        if cached_first:
            cache_dit.enable_cache(pipe, CONFIG)
        pipe.enable_model_cpu_offload(device="cpu")
        if not cached_first:
            cache_dit.enable_cache(pipe, CONFIG)
        assert torch.equal(tiny.call(pipe, 0, 6), wanted)
    # The hook asks before every forward; weights that are there stay.
    assert calls[pipe.transformer] == 12
    assert "S" in decisions(pipe)


@pytest.mark.parametrize(
    ("first", "last", "in_group", "fails"),
    [
        (1, 0, 1, False),
        (1, 1, 1, False),
        (1, 0, 3, False),
        (2, 0, 3, False),
        (1, 1, 3, True),
        (3, 1, 3, True),
    ],
)
@pytest.mark.parametrize("cached_first", [True, False])
def test_a_group_that_is_cut_is_found(
    first: int, last: int, in_group: int, fails: bool, cached_first: bool, loads: Loads
) -> None:
    needs_no_accelerator()
    config = CONFIG.updated(DBCacheConfig().reset(Fn_compute_blocks=first, Bn_compute_blocks=last))
    model: Any = FLUX.build()
    if cached_first:
        cache_dit.enable_cache(model, config)
    model.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=in_group)
    if not cached_first:
        cache_dit.enable_cache(model, config)
    for block in blocks_of(model):
        inner = next(block.children())
        inner.register_forward_pre_hook(
            lambda *_, block=block: loads.ran_without.append(block) if block not in loads.present else None
        )
    Denoising(model, 0).finish()
    # On a CPU weights are at hand even so; on a GPU this is where it would fail.
    assert bool(loads.ran_without) is fails
    found = [one.text for one in cache_dit.diagnose(model, logging=False) if one.problem is Problem.OFFLOADED]
    if fails:
        with pytest.raises(
            ConfigError, match=r"block 10 of .* shares an offloading group.*num_blocks_per_group=1"
        ) as error:
            check_offload(model)
        assert str(error.value) == f"In FluxTransformer2DModel {found[0]}"
    else:
        check_offload(model)
        assert found == []


@pytest.mark.parametrize("compiled_first", [True, False])
def test_compiled_weights_that_cannot_be_moved_are_found(compiled_first: bool) -> None:
    pytest.importorskip("torchao")
    model: Any = quantize(FLUX.build(), "int8_weight_only", report=None)
    if compiled_first:
        compile_repeated_blocks(model, backend="eager", fullgraph=False)
    by_blocks(model, Path())
    check = functools.partial(check_offload, model)
    if not compiled_first:
        check()
        compile_repeated_blocks(model, backend="eager", fullgraph=False)
    with pytest.raises(ConfigError, match=r"quantized by torchao.*Leave one of the three out"):
        check()
    # As soon as torch can move them this one says that the check is to go.
    with pytest.raises(RuntimeError, match="swap"):
        Denoising(model, 0, 2).finish()
    torch.compiler.reset()


def sequentially(model: Any, _folder: Path) -> None:
    cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("offload", [by_blocks, by_leaves, sequentially])
def test_telling_of_a_run_leaves_its_weights_where_they_are(
    offload: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    plain, model = FLUX.build(), FLUX.build()
    wanted = Denoising(cache_dit.enable_cache(plain, CONFIG), 0).finish()
    flops = forward_flops(plain, (), FLUX.inputs(0))
    assert flops is not None
    cache_dit.enable_cache(model, CONFIG)
    offload(model, tmp_path)
    hooked = [vars(module).get("forward") for module in model.modules()]
    denoising = Denoising(model, 0)
    for _ in range(3):
        denoising.advance()
    found = forward_flops(model, (), FLUX.inputs(0))
    assert found is not None
    assert found[model] == flops[plain] > 0
    cache_dit.summary(model, logging=False)
    cache_dit.diagnose(model, logging=False)
    assert [vars(module).get("forward") for module in model.modules()] == hooked
    assert {type(parameter.data) for parameter in model.parameters()} == {Tensor}
    assert torch.equal(denoising.finish(), wanted)
