"""Text encoders, VAEs and ControlNets on several ranks: the results of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parallel_harness import outcomes

from cache_dit.parallelism.modules import TILED_VAES

CASES = "parallel_modules_cases"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


def values(shared: Path, size: int, name: str) -> list[Any]:
    case = outcomes(CASES, size, shared)[name]
    raised = [value["raised"] for value in case if "raised" in value]
    assert not raised, raised[0]
    return case


@pytest.mark.parametrize("name", TILED_VAES)
def test_tiles_are_shared_out_exactly(name: str, shared: Path) -> None:
    check_tiles(values(shared, 2, f"vae/{name}"))


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan"])
def test_tiles_on_four_ranks(name: str, shared: Path) -> None:
    check_tiles(values(shared, 4, f"vae/{name}"))


def check_tiles(ranks: list[Any]) -> None:
    alone = ranks[0]["alone"]
    assert min(alone.values()) >= len(ranks)
    for which, count in alone.items():
        # No call is made twice, and no rank makes most of them.
        assert sum(rank["shared"][which] for rank in ranks) == count
        assert max(rank["shared"][which] for rank in ranks) <= count / len(ranks) + alone[which] / 4
    assert all(rank["equal"] and rank["undone"] for rank in ranks)


@pytest.mark.parametrize("name", ["T5", "Qwen3", "CLIP"])
def test_text_encoders_are_spread_exactly_and_put_back(name: str, shared: Path) -> None:
    for rank in values(shared, 2, f"encoder/{name}"):
        assert rank["equal"]
        assert rank["restored"]
        assert all(share < 0.6 for share in rank["shares"])


def test_a_pipeline_with_all_of_them(shared: Path) -> None:
    for rank in values(shared, 2, "pipeline"):
        assert rank["error"] < 1e-5
        assert rank["divided"]
        assert rank["undone"]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no such component", ["names 'vea'", "Did you mean 'vae'?", "controlnet"]),
        ("no layers", ["names a Linear", "no list of layers", "leave it out"]),
        ("tiling off", ["its tiling is off", "vae.enable_tiling()"]),
        ("controlnet without a size", ["FluxControlNetModel", "none of them is given"]),
        ("unknown vae", ["cannot be shared out", "AutoencoderKLWan"]),
    ],
)
def test_what_cannot_be_spread_is_refused(what: str, says: list[str], shared: Path) -> None:
    for rank in values(shared, 2, "refused"):
        assert all(text in rank[what] for text in says), rank[what]
