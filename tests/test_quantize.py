"""Quantization: what becomes of layers, how near results stay, and what is refused beforehand."""

from __future__ import annotations

import functools
import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from tiny.models import FLUX
from tiny.pipelines import FLUX_TRUE_CFG
from tiny.runs import Denoising, decisions
from torch import Tensor, fx, nn

import cache_dit
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.compile import compile_repeated_blocks
from cache_dit.errors import ConfigError, ConfigTypeError, UnsupportedModelError
from cache_dit.quantize import QuantizeSummary, QuantType, quantize
from cache_dit.quantize import types as schemes

pytest.importorskip("torchao")
pytest.importorskip("bitsandbytes")

CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=2
)
TAYLOR = TaylorSeerCalibratorConfig(taylorseer_order=2)

# Relative L2 error of one Linear with random weights: a bound above what was measured (in comments).
ERRORS = {
    QuantType.FLOAT8_PER_ROW: 0.045,  # 0.037
    QuantType.FLOAT8_PER_TENSOR: 0.045,  # 0.037
    QuantType.FLOAT8_WEIGHT_ONLY: 0.032,  # 0.026
    QuantType.INT8_PER_ROW: 0.013,  # 0.009
    QuantType.INT8_PER_TENSOR: 0.016,  # 0.011
    QuantType.INT8_WEIGHT_ONLY: 0.008,  # 0.005
    QuantType.BNB_NF4: 0.11,  # 0.092
    QuantType.BNB_FP4: 0.14,  # 0.11
    QuantType.BNB_INT8: 0.008,  # 0.005
}
ON_A_CPU = [kind for kind in ERRORS if kind not in (QuantType.FLOAT8_PER_ROW, QuantType.FLOAT8_PER_TENSOR)]
NOT_ON_A_CPU = sorted(set(QuantType) - set(ON_A_CPU))


@pytest.fixture
def float8_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's own float8 products on a CPU stand for those of a GPU."""
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda _: None)
    for kind in (QuantType.FLOAT8_PER_ROW, QuantType.FLOAT8_PER_TENSOR):
        scheme = schemes.SCHEMES[kind]
        kept = {name: getattr(scheme, name) for name in scheme.__dataclass_fields__ if name != "hardware"}
        monkeypatch.setitem(schemes.SCHEMES, kind, schemes.Scheme(**kept))


class Net(nn.Module):
    """A module around one Linear, whose fourth row of weights is zero."""

    def __init__(self, rows: int = 384, columns: int = 256) -> None:
        super().__init__()
        self.inner = nn.Linear(columns, rows, dtype=torch.bfloat16)
        nn.init.normal_(self.inner.weight)
        with torch.no_grad():
            self.inner.weight[3] = 0

    def forward(self, value: Tensor) -> Tensor:
        result: Tensor = self.inner(value)
        return result


@torch.no_grad()
@pytest.mark.usefixtures("float8_everywhere")
@pytest.mark.parametrize("kind", ERRORS, ids=str)
def test_results_stay_near_and_zeros_stay_zeros(kind: QuantType) -> None:
    torch.manual_seed(0)
    net = Net()
    given = torch.randn(2, 40, 256, dtype=torch.bfloat16)
    given[0, 5] = 0  # a padding token
    wanted = net(given)
    seen: list[QuantizeSummary] = []
    assert quantize(net, kind, report=seen.append) is net
    got = net(given)
    assert got.dtype is wanted.dtype
    error = float((got - wanted).float().norm() / wanted.float().norm())
    assert ERRORS[kind] / 3 < error < ERRORS[kind]
    # NaN is what a scale of zero would leave, in the row of the weight and in the token.
    bias = net.inner.bias
    torch.testing.assert_close(got[..., 3], bias[3].expand(2, 40))
    torch.testing.assert_close(got[0, 5], bias)
    (summary,) = seen
    assert summary.quantized == ("inner",)
    assert summary.skipped == {}
    assert summary.bytes_before == (384 * 256 + 384) * 2
    bits = 4 if kind in (QuantType.BNB_NF4, QuantType.BNB_FP4) else 8
    least = 384 * 256 * bits // 8
    assert least < summary.bytes_after < 1.08 * least + 2 * 384


@pytest.mark.parametrize("kind", NOT_ON_A_CPU, ids=str)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_hardware_is_checked_before_anything_is_changed(kind: QuantType) -> None:
    net = Net()
    before = net.inner.weight
    with pytest.raises(
        ConfigError, match=rf"'{kind}', but no GPU is there; '\w+_weight_only' runs everywhere"
    ):
        quantize(net, kind)
    assert net.inner.weight is before


@pytest.mark.parametrize(
    ("capability", "complaint"),
    [((8, 0), "compute capability 8.0, under 8.9"), ((8, 9), None), ((9, 0), None)],
)
def test_float8_products_need_ada(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], complaint: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = schemes.float8_products()
    assert found is complaint if complaint is None else complaint in str(found)


def test_layers_that_a_type_cannot_take_are_left_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.ModuleDict(
        {"odd": nn.Linear(12, 16), "even": nn.Linear(16, 16), "x_embedder": nn.Linear(16, 16)}
    )
    quantize(net, "int8_per_row")
    text = capsys.readouterr().out
    assert text.startswith("ModuleDict: 1 of 3 Linear layers are int8_per_row, 3.0 kB -> 2.")
    assert "left: odd: is no multiple of 8 in both sizes" in text
    assert "left: x_embedder: excluded by 'embed'" in text
    assert type(net["odd"].weight) is nn.Parameter
    with pytest.raises(ConfigError, match="has a weight of type Int8Tensor, so it is quantized"):
        quantize(net, "int8_weight_only", exclude_layers=("odd", "embed"))


@pytest.mark.usefixtures("float8_everywhere")
def test_weights_that_torchao_would_take_for_a_block_are_left() -> None:
    net = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 256))
    quantize(net, "float8_per_tensor", report=None)
    assert type(net[0].weight) is nn.Parameter
    net(torch.randn(4, 128))
    with pytest.raises(ConfigError, match=r"torch.float32; needed is torch.bfloat16"):
        quantize(nn.Sequential(nn.Linear(32, 32)), "float8_per_row")


def test_layers_are_chosen_by_name_and_by_function() -> None:
    seen: list[QuantizeSummary] = []
    model = FLUX.build()
    quantize(
        model,
        "int8_weight_only",
        exclude_layers=["norm", "proj_out"],
        filter_fn=lambda linear, name: linear.in_features >= 16 and "single" in name,
        report=seen.append,
    )
    (summary,) = seen
    assert len(summary.quantized) > 3
    assert all(name.startswith("single_transformer_blocks") for name in summary.quantized)
    assert not any("norm" in name or "proj_out" in name for name in summary.quantized)
    assert {"excluded by 'norm'", "excluded by 'proj_out'", "excluded by filter_fn"} == set(
        summary.skipped.values()
    )


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"quant_type": "float8_per_rows"}, ConfigError, "Did you mean 'float8_per_row'"),
        ({"exclude_layers": ["nrom1"]}, ConfigError, r"exclude_layers\[0\] is 'nrom1'.*Did you mean 'norm1'"),
        ({"exclude_layers": "norm"}, ConfigTypeError, r"give a list: \['norm'\]"),
        ({"filter_fn": lambda *_: False}, ConfigError, "no Linear of FluxTransformer2DModel can take it"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], error: type[Exception], complaint: str) -> None:
    model = FLUX.build()
    with pytest.raises(error, match=complaint):
        quantize(model, **{"quant_type": "int8_weight_only", **options})
    with pytest.raises(UnsupportedModelError):
        quantize(object(), "int8_weight_only")
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs bitsandbytes; install it: pip install 'cache-dit\[quantize\]'"
    ):
        quantize(Net(), "bnb_nf4")


def test_offloaded_weights_are_refused() -> None:
    model: Any = FLUX.build()
    model.enable_group_offload("cpu", offload_type="leaf_level")
    with pytest.raises(ConfigError, match="call quantize before enable_group_offload"):
        quantize(model, "int8_weight_only")
    layer_by_layer = FLUX.build()
    cpu_offload(layer_by_layer, execution_device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="call quantize before enable_sequential_cpu_offload"):
        quantize(layer_by_layer, "int8_weight_only")


def test_older_names() -> None:
    assert QuantType("fp8_w8a8_dq") is QuantType.FLOAT8_PER_ROW
    assert QuantType("bitsandbytes_4bit") is QuantType.BNB_NF4


def test_function_and_package_have_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dit.quantize is quantize
    package = importlib.import_module("cache_dit.quantize")
    assert package.QuantType is QuantType
    for name in ("torchao", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, None)  # importing one would be an error
    for path in Path(str(package.__file__)).parent.glob("*.py"):
        runpy.run_path(str(path))


# --- beside the cache ---


def run(model: nn.Module, seed: int = 0) -> Tensor:
    return Denoising(model, seed).finish()


@functools.cache
def quantized_and_cached(kind: str) -> tuple[nn.Module, Tensor, str]:
    """A model that is quantized, then cached, the result of its run, and its decisions."""
    model = cache_dit.enable_cache(quantize(FLUX.build(), kind, report=None), CONFIG, TAYLOR)
    result = run(model)
    return model, result, decisions(model)


@pytest.mark.parametrize("kind", ["int8_per_row", "float8_weight_only", "bnb_nf4"])
def test_before_or_after_the_cache(kind: str) -> None:
    first, wanted, steps = quantized_and_cached(kind)
    second = quantize(cache_dit.enable_cache(FLUX.build(), CONFIG, TAYLOR), kind, report=None)
    torch.testing.assert_close(run(second), wanted)
    assert decisions(second) == steps
    assert {"C", "S"} <= set(steps[2:])
    uncached = Denoising(quantize(FLUX.build(), kind, report=None), 0, 1).finish()
    for model in (first, second):
        cache_dit.disable_cache(model)
        torch.testing.assert_close(Denoising(model, 0, 1).finish(), uncached)


def test_pipeline() -> None:
    tiny = FLUX_TRUE_CFG
    pipe = tiny.build()
    seen: list[QuantizeSummary] = []
    assert quantize(pipe, "int8_weight_only", report=seen.append) is pipe
    assert [summary.model for summary in seen] == ["FluxTransformer2DModel"]
    got, wanted = tiny.call(pipe, 0, 6), tiny.call(tiny.build(), 0, 6)
    assert not torch.equal(got, wanted)
    torch.testing.assert_close(got, wanted, atol=0.1, rtol=0.1)


def counting() -> tuple[list[fx.GraphModule], Callable[..., Any]]:
    graphs: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, _inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    return graphs, backend


@pytest.mark.parametrize("kind", ["int8_per_row", "float8_weight_only"])
def test_with_cache_and_compile(kind: str) -> None:
    torch.compiler.reset()
    _, wanted, steps = quantized_and_cached(kind)
    model: Any = cache_dit.enable_cache(quantize(FLUX.build(), kind, report=None), CONFIG, TAYLOR)
    graphs, backend = counting()
    model.compile_repeated_blocks(fullgraph=True, backend=backend)
    torch.testing.assert_close(run(model), wanted, rtol=1e-3, atol=1e-4)
    assert decisions(model) == steps
    made = len(graphs)
    assert made == 3
    run(model, 1)
    assert len(graphs) == made
    torch.compiler.reset()


class RowParallelLinear(nn.Linear):
    """Stands for a layer of tensor parallelism, which does more than a product."""

    def forward(self, value: Tensor) -> Tensor:
        return nn.functional.linear(value, self.weight) + 7.0


def test_layers_of_tensor_parallelism() -> None:
    net = nn.Sequential(RowParallelLinear(64, 32), nn.Linear(32, 64))
    given = torch.randn(4, 64)
    wanted = net[0](given)
    quantize(net, "int8_weight_only", report=None)
    assert type(net[0].weight) is not nn.Parameter
    torch.testing.assert_close(net[0](given), wanted, atol=0.05, rtol=0.05)

    # bitsandbytes would put a plain layer in its place, and what it adds would be lost.
    other = nn.Sequential(RowParallelLinear(64, 32), nn.Linear(32, 64))
    seen: list[QuantizeSummary] = []
    quantize(other, "bnb_nf4", report=seen.append)
    assert type(other[0]) is RowParallelLinear
    assert seen[0].quantized == ("1",)
    assert "of a class of its own, RowParallelLinear" in seen[0].skipped["0"]


def test_all_of_it_stacked() -> None:
    """What the README shows, with a backend that does not compile."""
    tiny = FLUX_TRUE_CFG
    reference = tiny.call(
        cache_dit.enable_cache(quantize(tiny.build(), "int8_weight_only", report=None), CONFIG), 0, 6
    )
    pipe = cache_dit.quantize(tiny.build(), "int8_weight_only", report=None)
    cache_dit.set_attn_backend(pipe, "native")
    with cache_dit.set_compile_configs():
        cache_dit.enable_cache(pipe, CONFIG)
        torch.compiler.reset()
        compile_repeated_blocks(pipe, backend="eager")
        torch.testing.assert_close(tiny.call(pipe, 0, 6), reference, rtol=1e-3, atol=1e-4)
    assert "S" in decisions(pipe)
    torch.compiler.reset()
