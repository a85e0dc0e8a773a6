"""Tensor parallelism on 2 and 4 ranks: every plan against one process, without and with the cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_harness import outcomes
from tiny.models import TINY_MODELS
from torch import nn

import cache_dit
from cache_dit.caching.models.rows import ROWS
from cache_dit.parallelism.tensor import TENSOR_PLANS, Blocks, plan_of
from cache_dit.parallelism.tensor.layers import Piece, places, share_of

TOLERANCE = 1e-5
CASES = "parallel_tensor_cases"
FLUX, FLUX_2, WAN, QWEN = (
    "FluxTransformer2DModel",
    "Flux2Transformer2DModel",
    "WanTransformer3DModel",
    "QwenImageTransformer2DModel",
)
PLANNED = [plan.name for plan in TENSOR_PLANS]
TINY = {tiny.name for tiny in TINY_MODELS}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


def two(shared: Path) -> dict[str, list[Any]]:
    return outcomes(CASES, 2, shared)


def four(shared: Path) -> dict[str, list[Any]]:
    return outcomes(CASES, 4, shared)


def values_of(case: list[Any]) -> list[Any]:
    """What the ranks returned, none of which may have raised."""
    raised = [value["raised"] for value in case if isinstance(value, dict) and "raised" in value]
    assert not raised, raised[0]
    return case


def check(case: list[Any]) -> None:
    """Every rank has the result and the decisions of one process, and the whole model again afterwards."""
    for value in values_of(case):
        assert value["error"] < TOLERANCE
        assert value["cached_error"] < TOLERANCE
        assert value["decisions"][0] == value["decisions"][1]
        assert value["decisions"] == case[0]["decisions"]
        assert value["local"] < value["whole"]
        assert value["restored"]
        assert value["same_output"]


@pytest.mark.parametrize("name", PLANNED)
def test_every_plan_on_two_ranks(name: str, shared: Path) -> None:
    check(two(shared)[f"plan/{name}"])


def test_some_steps_were_skipped(shared: Path) -> None:
    found = [value[0]["decisions"][0] for name, value in two(shared).items() if name.startswith("plan/")]
    assert sum("S" in taken for taken in found) >= len(found) // 2


@pytest.mark.parametrize("name", [FLUX, WAN, QWEN])
def test_four_ranks(name: str, shared: Path) -> None:
    check(four(shared)[f"four/{name}"])


@pytest.mark.parametrize("name", [FLUX, FLUX_2, WAN])
def test_three_heads_on_two_ranks(name: str, shared: Path) -> None:
    check(two(shared)[f"uneven/{name}"])


def test_five_heads_on_four_ranks(shared: Path) -> None:
    check(four(shared)["uneven/5"])


def test_through_enable_cache(shared: Path) -> None:
    check(two(shared)["enable_cache"])


@pytest.mark.parametrize("name", ["TP4", "TP2 x Ulysses2", "TP2 x Ring2", "TP2 x UAA2"])
def test_hybrids(name: str, shared: Path) -> None:
    ranks = four(shared)[f"hybrid/{name}"]
    check(ranks)
    assert all("S" in rank["decisions"][0] for rank in ranks)
    context = 1 if name == "TP4" else 2
    for rank in ranks:
        own, tokens = rank["tokens"]
        assert own == tokens // context
        assert rank["local"] * (4 // context) == rank["whole"]


def test_memory_is_divided(shared: Path) -> None:
    for before, after in values_of(two(shared)["bytes"]):
        assert before.keys() == after.keys()
        columns = {name for name in before if name.endswith(("to_q", "add_k_proj", "net.0.proj", "proj_mlp"))}
        assert columns
        assert all(2 * after[name] == before[name] for name in columns)
        # The bias of a row, which is added once, stays whole.
        rows = {name for name in before if name.endswith(("to_out.0", "to_add_out", "net.2", "proj_out"))}
        rows -= {"proj_out"}
        assert all(before[name] / 2 < after[name] < 0.6 * before[name] for name in rows)


def test_divided_then_quantized(shared: Path) -> None:
    for value in values_of(two(shared)["quantized"]):
        assert 0 < value["from_exact"] < 1.5 * value["whole_from_exact"] < 0.1
        assert value["rows_quantized"] != "Parameter"


def test_divided_then_compiled_in_one_graph(shared: Path) -> None:
    assert all(value["error"] < TOLERANCE for value in values_of(two(shared)["compiled"]))


def test_a_plan_of_ones_own_with_an_uneven_width(shared: Path) -> None:
    first, second = values_of(two(shared)["own plan"])
    assert max(first["error"], second["error"]) < 1e-6
    assert (first["widths"], second["widths"]) == ([10, 10], [11, 11])


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("too few heads", ["tp_size is 2", "transformer_blocks.0.attn has 1 heads", "tp_size=1"]),
        ("lora", ["carries a LoRA", "fuse_lora"]),
        ("fused", ["fused projections", "unfuse_qkv_projections()"]),
        ("adapter", ["has a Linear with weights of its own", "IP-Adapter", "unload it"]),
        ("offloaded", ["is offloaded", "then offload"]),
        ("quantized", ["transformer_blocks.1.attn.to_q", "enable it first, then quantize"]),
        ("unknown class", ["UnsupportedModelError", "no tensor-parallel plan for Linear", "TensorPlan("]),
        ("no such layer", ["names no layer of this FluxTransformer2DModel", "layers"]),
        ("divided already", ["divided over ranks already", "disable_cache"]),
        ("quantized since", ["was quantized or offloaded after it was divided", "load the model again"]),
    ],
)
def test_what_cannot_be_divided_is_refused(what: str, says: list[str], shared: Path) -> None:
    for found in values_of(two(shared)["refused"]):
        assert all(text in found[what] for text in says), found[what]


def test_every_plan_has_a_tiny_model_and_most_rows_have_a_plan() -> None:
    assert set(PLANNED) <= TINY
    assert len(PLANNED) == len(set(PLANNED)) >= 31
    assert len({row.name for row in ROWS} & set(PLANNED)) >= 70


@pytest.mark.parametrize("name", [FLUX, FLUX_2, QWEN, "QwenImage21Transformer2DModel"])
def test_plans_cover_those_of_diffusers(name: str) -> None:
    import diffusers

    (own,) = [plan for plan in TENSOR_PLANS if plan.name == name]
    named = {path for blocks in own.blocks for path in paths_of(blocks)}
    theirs = getattr(getattr(diffusers, name), "_tp_plan", None)
    if theirs is None:
        pytest.skip("this diffusers has no plan for the class")
    assert set(theirs) <= named


def paths_of(blocks: Blocks) -> list[str]:
    return [
        f"{blocks.path}.*." + ".".join(filter(None, (part.path, getattr(spec, "name", spec))))
        for part in blocks.parts
        for spec in (*part.columns, *part.rows)
    ]


def test_a_subclass_has_the_plan_of_its_base() -> None:
    Base = type("FluxTransformer2DModel", (nn.Module,), {})
    assert plan_of(type("Mine", (Base,), {})()).name == FLUX


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_of_all_ranks_make_the_whole(size: int) -> None:
    pieces = (Piece(12, 6), Piece(7, 7))
    whole = torch.arange(2 * 19).view(2, 19)
    found = sorted(
        column
        for rank in range(size)
        for place in places(pieces, rank, size)
        for column in range(place.start, place.stop)
    )
    assert found == list(range(19))
    shares = [share_of(whole, 1, pieces, rank, size) for rank in range(size)]
    assert sum(share.shape[1] for share in shares) == 19
    # Heads are never cut.
    assert all(
        (place.stop - place.start) % 2 == 0
        for rank in range(size)
        for place in places(pieces, rank, size)[:1]
    )


def test_the_plan_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "parallelism.md").read_text()
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "TensorPlan(" in text]
    names: dict[str, Any] = {"cache_dit": cache_dit}
    exec(compile(block, "docs/parallelism.md", "exec"), names)
    assert names["config"].tp_plan is names["plan"]
    assert names["plan"].blocks[0].parts[0].heads == "num_heads"
    assert f"has a plan for {len(PLANNED)} classes" in page
