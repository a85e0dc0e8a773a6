"""The kernels for the cache's own sums: their source run program by program, and where they are used."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny.models import FLUX
from tiny.runs import Denoising, decisions
from torch import Tensor

import cache_dit
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.caching.maths.change import relative_l1
from cache_dit.caching.maths.kernels import Kernels, chosen_kernels
from cache_dit.caching.maths.weights import weighted_sum
from cache_dit.errors import ConfigError
from cache_dit.kernels import choice, triton_kernels
from cache_dit.quantize import QuantType

CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=2
)
TAYLOR = TaylorSeerCalibratorConfig(taylorseer_order=2)


# --- a stand-in for Triton: each program of a grid in turn, pointers as a tensor and offsets ---


@dataclass(frozen=True)
class Pointer:
    memory: Tensor
    offset: Any = 0

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.memory, self.offset + more)

    @property
    def dtype(self) -> Any:
        return SimpleNamespace(element_ty=self.memory.dtype)


class Jitted:
    """What `triton.jit` makes of a function; `kernel[grid](...)` runs it."""

    def __init__(self, function: Callable[..., None], language: ModuleType) -> None:
        self.function, self.language = function, language

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            given = [Pointer(one.view(-1)) if isinstance(one, Tensor) else one for one in args]
            for program in range(grid[0]):
                self.language.program_id = lambda _axis, program=program: torch.tensor(program)  # type: ignore[attr-defined]
                self.function(*given, **constants)

        return launch


def load(pointer: Pointer, mask: Tensor, other: float) -> Tensor:
    index = torch.as_tensor(pointer.offset)
    inside = torch.where(mask, index, 0)
    return torch.where(mask, pointer.memory[inside], torch.tensor(other, dtype=pointer.memory.dtype))


def store(pointer: Pointer, value: Tensor, mask: Tensor | None = None) -> None:
    index = torch.as_tensor(pointer.offset)
    if mask is None:
        pointer.memory[index] = value
    else:
        pointer.memory[index[mask]] = value[mask]


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the kernels, over Triton (interpreted where there is no GPU) or over the stand-in."""
    if importlib.util.find_spec("triton"):
        if not torch.cuda.is_available():
            monkeypatch.setenv("TRITON_INTERPRET", "1")
        sys.modules.pop("cache_dit.kernels.triton_sums", None)
        yield importlib.import_module("cache_dit.kernels.triton_sums")
        sys.modules.pop("cache_dit.kernels.triton_sums", None)
        return
    language = ModuleType("triton.language")
    vars(language).update(
        float32=torch.float32,
        int64=torch.int64,
        constexpr=int,
        abs=torch.abs,
        arange=torch.arange,
        load=load,
        store=store,
        sum=lambda value, axis: value.sum(axis),
        zeros=lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    )
    triton = ModuleType("triton")
    vars(triton).update(
        language=language, jit=lambda function: Jitted(function, language), cdiv=lambda a, b: -(-a // b)
    )
    with monkeypatch.context() as while_imported:
        while_imported.setitem(sys.modules, "triton", triton)
        while_imported.setitem(sys.modules, "triton.language", language)
        sys.modules.pop("cache_dit.kernels.triton_sums", None)
        module = importlib.import_module("cache_dit.kernels.triton_sums")
    yield module
    sys.modules.pop("cache_dit.kernels.triton_sums", None)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (1024,), (1025,), (2, 700, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distance(sums: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    value, reference = random(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype)
    got = sums.distance_in_one_pass(value, reference)
    wanted = (value.double() - reference.double()).abs().sum(), reference.double().abs().sum()
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype is torch.float32
        assert one.shape == ()
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=0)
    again = sums.distance_in_one_pass(value, reference)
    assert [float(one) for one in again] == [float(one) for one in got]


def test_more_blocks_than_programs(sums: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "_PROGRAMS", 3)
    value, reference = random(10_000), random(10_000, seed=1)
    difference, norm = sums.distance_in_one_pass(value, reference)
    torch.testing.assert_close(difference, (value - reference).abs().sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(norm, reference.abs().sum(), rtol=1e-5, atol=0)


def test_half_precision_is_summed_in_float32(sums: Any) -> None:
    value = torch.full((5000,), 1.0, dtype=torch.bfloat16, device=DEVICE)
    difference, norm = sums.distance_in_one_pass(value * 3, value)
    assert (float(difference), float(norm)) == (10_000.0, 5000.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sum(sums: Any, count: int, dtype: torch.dtype) -> None:
    values = [random(3, 500, seed=seed, dtype=dtype) for seed in range(count)]
    weights = [3.0, -3.0, 1.5, -0.25][:count]
    kept = [value.clone() for value in values]
    got = sums.sum_in_one_pass(values, weights)
    assert got.dtype is dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(got, weighted_sum(values, weights), **tolerance)
    assert all(map(torch.equal, values, kept))


# --- where they are used ---


@pytest.fixture
def on_this_device(sums: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the kernels take tensors of a CPU, and note which were used."""
    used: list[str] = []
    monkeypatch.setattr(choice, "fits", choice.alike)
    monkeypatch.setattr("cache_dit.kernels.choice.find_spec", lambda name: name)

    def noted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            used.append(name)
            return plain(*args)

        return call

    for name in ("distance_in_one_pass", "sum_in_one_pass"):
        monkeypatch.setattr(sums, name, noted(name, getattr(sums, name)))
    return used


def test_the_cache_uses_them_while_asked(on_this_device: list[str]) -> None:
    model = cache_dit.enable_cache(FLUX.build(), CONFIG, TAYLOR)
    wanted = Denoising(model, 0).finish()
    steps = decisions(model)
    assert on_this_device == []
    with triton_kernels():
        got = Denoising(model, 0).finish()
    assert set(on_this_device) == {"distance_in_one_pass", "sum_in_one_pass"}
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert decisions(model) == steps
    used = len(on_this_device)
    Denoising(model, 0).finish()
    assert len(on_this_device) == used


def test_special_values_are_those_of_torch(on_this_device: list[str]) -> None:
    zero, one = torch.zeros(4), torch.ones(4)
    spoiled = torch.full((4,), float("nan"))
    with triton_kernels():
        assert relative_l1(zero, zero) == 0.0
        assert relative_l1(one, zero) == float("inf")
        assert relative_l1(spoiled, one) != relative_l1(spoiled, one)
        # A weight of 0 leaves its value out, even if that is not finite.
        assert torch.equal(weighted_sum([one, spoiled], [2.0, 0.0]), 2 * one)
    assert "sum_in_one_pass" in on_this_device


@pytest.mark.parametrize(
    "value",
    [torch.ones(4, 4).t(), torch.ones(4, 8)[:, ::2], torch.ones(4, 4, dtype=torch.float64)],
    ids=["transposed", "strided", "float64"],
)
def test_what_does_not_fit_is_left_to_torch(value: Tensor, on_this_device: list[str]) -> None:
    with triton_kernels():
        assert relative_l1(2 * value, value) == 1.0
        other = torch.ones_like(value, memory_format=torch.contiguous_format)
        assert relative_l1(value, other) == 0.0
        assert torch.equal(weighted_sum([value, value], [1.0, 1.0]), 2 * value)
        assert torch.equal(weighted_sum([other] * 5, [1.0] * 5), 5 * other)
    unfit = [name for name in on_this_device if value.dtype is torch.float64]
    assert unfit == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors are on a CPU here")
def test_tensors_of_a_cpu_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_dit.kernels.choice.find_spec", lambda name: name)
    with triton_kernels():
        assert isinstance(chosen_kernels.get(), Kernels)
        assert relative_l1(torch.tensor([3.0]), torch.tensor([2.0])) == 0.5
        assert weighted_sum([torch.tensor([3.0])], [2.0]).tolist() == [6.0]
    assert chosen_kernels.get() is None


def test_triton_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_dit.kernels.choice.find_spec", lambda name: None)
    with (
        pytest.raises(ConfigError, match=r"triton_kernels needs triton.*pip install triton"),
        triton_kernels(),
    ):
        pass
    assert chosen_kernels.get() is None


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which writes to a folder for the test and has its rows measured in this process."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "bench")
    made, rows = importlib.import_module("gpu"), importlib.import_module("gpu_row")
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)

    def run(command: list[str], limit: float) -> int:
        assert command[0] == sys.executable
        assert limit == 1800
        if "fast mask + FP8" in command:
            return -9  # killed before it could say anything
        with monkeypatch.context() as inside:
            inside.setattr(sys, "argv", command[1:])
            rows.main()
        return 0

    monkeypatch.setattr(made, "ended", run)
    return made


def test_a_row_that_takes_too_long_may_clean_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "bench")
    ended, told = importlib.import_module("gpu").ended, tmp_path / "told"
    assert ended([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3
    # A shell is there at once, and leaves its `wait` when it is asked to end.
    tidy = f"trap 'touch {told}; kill $!; exit' TERM; sleep 60 & wait"
    assert ended(["sh", "-c", tidy], 2) is None
    assert told.exists()
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    assert ended([sys.executable, "-c", deaf], 1, grace=0.5) is None


def test_the_gpu_script_runs_on_a_tiny_model(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stacked = {"taylor": True, "float8": True, "compiled": True, "attention": "x"}
    settings = (
        gpu.Setting(),
        gpu.Setting(mask="fast"),
        gpu.Setting(mask="fast", **stacked),
        gpu.Setting(mask="fast", float8=True),
        gpu.Setting(measured=True, offload=True),
        gpu.Setting(mask="slowest"),
    )
    monkeypatch.setattr(gpu, "SETTINGS", settings)
    monkeypatch.setattr("gpu_row.SETTINGS", settings)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--rounds", "1", "--write"])
    gpu.main()
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"gpu-\d{4}-\d\d-\d\d-dry-run\.md", path.name)
    text = path.read_text(encoding="utf-8")
    assert text.strip() in capsys.readouterr().out
    cells = {
        row[0]: row[1:]
        for row in (
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in text.splitlines()
            if line.startswith("| ")
        )
    }
    assert {one.label: cells[one.label][0].partition(":")[0] for one in settings} == {
        "uncached": "0",
        "fast mask": "3",
        "fast mask + Taylor + x + compile + FP8": "3",
        "fast mask + FP8": "ended with code -9",
        "measured, none skipped + offload": "0",
        "slowest mask": "ConfigError",
    }
    # What it added is told only where the same was measured without a cache.
    added = {label: row[-1] for label, row in cells.items() if len(row) == 7}
    assert added["uncached"] == added["measured, none skipped + offload"] == "-"
    assert float(added["fast mask"]) != 0
    assert {"gate signal", "sum of 2", "sum of 4"} <= set(cells)
    assert set(map(str, QuantType)) <= set(cells)


def test_the_gpu_script_asks_for_a_gpu(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="no GPU here; give --dry-run"):
        gpu.main()


@pytest.mark.parametrize(
    "preset", [cache_dit.presets.easycache(0.9), cache_dit.presets.tolerance(5.0)], ids=str
)
def test_gates_with_a_norm_of_their_own_decide_as_without_kernels(preset: Any) -> None:
    found = []
    for kernels in (None, Kernels(choice.torch_distance, choice.weighted_sum)):
        token = chosen_kernels.set(kernels)
        try:
            model = cache_dit.enable_cache(FLUX.build(), preset.with_options(num_inference_steps=12))
            Denoising(model, 0, 12).finish()
            (stats,) = cache_dit.summary(model, logging=False)
            found.append((decisions(model), list(stats.changes(0).values())))
        finally:
            chosen_kernels.reset(token)
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
