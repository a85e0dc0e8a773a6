"""Context parallelism on 2 and 4 ranks under gloo, against one process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import diffusers
import pytest
from parallel_control_cases import MODES as CONTROL_MODES
from parallel_control_cases import OFTEN, PAIRS
from parallel_harness import outcomes
from parallel_plan_cases import (
    FAMILIES,
    HEADS,
    MASKED,
    MODELS,
    MODES,
    OVERLAPPED,
    PLANNED,
    REFUSED,
    UNEVEN,
)
from tiny.control_pipelines import CONTROL_PIPELINES
from tiny.models import TINY_MODELS

from cache_dit.errors import ConfigError, ConfigTypeError
from cache_dit.parallelism import ParallelismBackend, ParallelismConfig
from cache_dit.parallelism.context.plans import CONTEXT_PLANS

TOLERANCE = 1e-5
Results = dict[int, dict[str, list[Any]]]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What every rank returned in each case, by the number of ranks."""
    base = tmp_path_factory.getbasetemp()
    # All workers of one session share what is computed.
    folder: Path = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return {size: outcomes("parallel_worker_context", size, folder) for size in (2, 4)}


def everywhere(results: Results, size: int, case: str, part: str | None = None) -> Any:
    """What all ranks returned, or a part of it; they must agree."""
    first, *others = results[size][case]
    assert not (isinstance(first, dict) and "raised" in first and isinstance(first["raised"], str)), first[
        "raised"
    ]
    if part is not None:
        first, *others = (rank[part] for rank in (first, *others))
    for other in others:
        assert other == first
    return first


@pytest.mark.parametrize(
    ("size", "mode", "name"),
    [(size, mode, tiny.name) for size, modes in MODES.items() for mode in modes for tiny in FAMILIES],
)
def test_ranks_together_are_one_process(results: Results, size: int, mode: str, name: str) -> None:
    assert everywhere(results, size, f"{mode} {name}") <= TOLERANCE


@pytest.mark.parametrize(
    ("size", "case"),
    [
        *((size, f"odd {mode}") for size, modes in UNEVEN.items() for mode in modes),
        *(
            (size, f"masked {mode} {name}")
            for size, modes in UNEVEN.items()
            for mode in modes
            for name in MASKED
        ),
        *((4, f"heads {heads}") for heads in HEADS),
    ],
)
def test_any_length_number_of_heads_and_mask(results: Results, size: int, case: str) -> None:
    assert everywhere(results, size, case) <= TOLERANCE


def test_at_least_the_classes_of_the_reference_have_a_plan() -> None:
    assert len(CONTEXT_PLANS) >= 32
    assert set(CONTEXT_PLANS) == {tiny.name for tiny in PLANNED.values()}
    controlled = {name.partition("-")[0] for name in PAIRS}
    assert controlled == set(CONTEXT_PLANS) - {tiny.name for tiny in MODELS.values()}


def test_classes_for_which_diffusers_has_a_plan_have_one() -> None:
    # Every transformer of diffusers has a tiny model.
    classes = {tiny.name: getattr(diffusers, tiny.name, None) for tiny in TINY_MODELS}
    theirs = {name for name, kind in classes.items() if getattr(kind, "_cp_plan", None)}
    if not theirs:
        pytest.skip("this diffusers has no plans")
    assert theirs <= set(CONTEXT_PLANS)


@pytest.mark.parametrize(
    ("model", "variant"), [(one.id, variant) for one in MODELS.values() for variant in ("", *one.variants)]
)
def test_every_plan_with_every_input(results: Results, model: str, variant: str) -> None:
    case = f"plan {model}"
    if (model, variant) in REFUSED:
        # Ranks may name other lengths, each its own.
        assert all(REFUSED[model, variant] in rank[variant]["refused"] for rank in results[2][case])
    else:
        outcome = everywhere(results, 2, case, variant)
        assert outcome["error"] <= TOLERANCE < outcome["scale"]
        assert outcome["shared"]


@pytest.mark.parametrize(
    ("size", "case"),
    [
        *((2, f"control {name}") for name in PAIRS),
        *((2, f"pipeline {one.name}") for one in CONTROL_PIPELINES),
        *(
            (size, f"control {mode} {name}")
            for size in (2, 4)
            for mode in CONTROL_MODES[size]
            for name in OFTEN[mode]
        ),
    ],
)
def test_a_transformer_with_its_controlnet(results: Results, size: int, case: str) -> None:
    outcome = everywhere(results, size, case)
    assert max(outcome["error"], outcome["cached_error"]) <= TOLERANCE < outcome["scale"]
    assert outcome["decisions"][0] == outcome["decisions"][1]
    assert {"C", "S"} == set(outcome["decisions"][0])
    assert outcome["after"] <= TOLERANCE


def test_residuals_are_handed_over_in_parts(results: Results) -> None:
    # 16 tokens of the picture; Z-Image pads text and picture to 32 each.
    assert results[2]["control FluxControlNetModel"][0]["lengths"] == [8]
    assert results[2]["control ZImageControlNetModel"][0]["lengths"] == [32]
    assert results[4]["control usp QwenImageControlNetModel"][0]["lengths"] == [4]


def test_residuals_of_several_controlnets_are_added_up(results: Results) -> None:
    outcome = everywhere(results, 2, "control several")
    assert max(outcome["error"], outcome["after"]) <= TOLERANCE


def test_a_controlnet_that_cannot_be_spread_leaves_all_as_it_was(results: Results) -> None:
    said = everywhere(results, 2, "control refused")
    assert "SanaControlNetModel has no context plan" in said["no plan"]
    assert said["same"] == "True"
    assert "spread over other ranks than its transformer" in said["other ranks"]
    assert "spread its transformer with it" in said["alone"]


def test_a_block_works_on_its_part(results: Results) -> None:
    # 5 tokens of text and 16 of the picture: the first rank has the odd one.
    assert results[2]["lengths"] == [[3, 8], [2, 8]]


def test_float8_is_near(results: Results) -> None:
    assert 1e-6 < everywhere(results, 2, "float8") < 2e-2


@pytest.mark.parametrize("name", [tiny.name for tiny in OVERLAPPED])
def test_exchanges_that_overlap_change_nothing(results: Results, name: str) -> None:
    assert everywhere(results, 2, f"async {name}") <= TOLERANCE


def test_blocks_are_compiled(results: Results) -> None:
    outcome = everywhere(results, 2, "compiled")
    assert max(outcome["even"], outcome["uneven"]) <= TOLERANCE


def test_the_attention_backend_is_that_of_one_model(results: Results) -> None:
    outcome = everywhere(results, 2, "backend")
    assert outcome["error"] <= TOLERANCE
    assert "_native_math" in outcome["inside"].lower()
    assert outcome["after"] is outcome["other"] is None


def test_processors_that_are_set_afterwards_look_at_all_tokens(results: Results) -> None:
    outcome = everywhere(results, 2, "processors")
    assert outcome.pop("error") <= TOLERANCE
    # And what was set and chosen in the meantime is what stays.
    assert outcome == {"kept": [True], "chosen": "AttentionBackendName.NATIVE", "after": None}


def test_what_does_not_go_together_is_refused(results: Results) -> None:
    said = everywhere(results, 2, "refusals")
    assert "FreqCa looks along the whole sequence" in said["along_tokens"]
    assert "chooses tokens" in said["chooses_tokens"]
    assert "memory_budget is 1073741824 but ulysses_anything is True" in said["budget"]
    assert "SanaTransformer2DModel has no context plan" in said["no_plan"]
    assert "ulysses_size=3 need a multiple of 3 processes but there are 2" in said["size"]
    assert "disable_cache first" in said["twice"]
    assert "encoder_hidden_states has 5 tokens" in said["uneven"]
    assert "ulysses_anything=True" in said["uneven"]


def test_requests_with_configurations_of_their_own(results: Results) -> None:
    outcome = everywhere(results, 2, "requests")
    assert all(outcome[name] <= TOLERANCE for name in ("taylor", "dmd", "whole", "afterwards"))
    assert "FreqCa looks along the whole sequence" in outcome["freqca"]
    assert "chooses tokens" in outcome["toca"]


def test_parallelism_of_diffusers_before_or_after_a_cache_is_refused(results: Results) -> None:
    said = everywhere(results, 2, "order")
    for order in ("before", "after", "after both"):
        assert "enable_parallelism(...) of diffusers and enable_cache(...) were called on Flux" in said[order]
        assert "parallelism_config=ParallelismConfig(ulysses_size=" in said[order]
    assert "before enable_cache(...)" in said["before both"]
    assert said["untouched"] == "[]"
    assert said["tensors"] == ""


def test_a_failure_leaves_the_model_as_it_was(results: Results) -> None:
    outcome = everywhere(results, 2, "failed")
    assert "chooses tokens" in outcome["together"]
    assert "FreqCa" in outcome["afterwards"]
    assert outcome["same"] == [True, True, True]
    assert outcome["equal"]


def test_groups(results: Results) -> None:
    for rank, made in enumerate(results[4]["mesh"]):
        assert made["shape"] == [1, 2, 2]
        assert made["names"] == ["ring", "ulysses", "tp"]
        assert made["context"] == [rank % 2, rank % 2 + 2]
        assert made["group"] == [0, 1, 2, 3]
        assert made["label"] == "Ulysses2_TP2"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "neither a size nor a process_group"),
        ({"ulysses_size": 0}, "ulysses_size is 0"),
        ({"ulysses_size": "all"}, "ulysses_size is 'all'"),
        ({"ulysses_size": "auto", "tp_size": "auto"}, "ulysses_size and tp_size are 'auto'"),
        ({"ring_size": 2, "ulysses_float8": True}, "ulysses_float8 is True but ulysses_size is None"),
        ({"tp_size": 2, "backend": ParallelismBackend.NATIVE_DIFFUSER}, "tp_size is 2 but backend is"),
        ({"ring_size": 2, "backend": ParallelismBackend.NATIVE_PYTORCH}, "ring_size is 2 but backend is"),
        ({"ring_size": 2, "ring_rotate_method": "alltoall"}, "ring_rotate_method is 'alltoall'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ParallelismConfig(**options)


def test_options_have_types() -> None:
    with pytest.raises(ConfigTypeError, match="no option 'ulysses'"):
        ParallelismConfig(ulysses=2)  # type: ignore[call-arg]
    with pytest.raises(ConfigTypeError, match="extra_parallel_modules is of type str"):
        ParallelismConfig(ulysses_size=2, extra_parallel_modules="vae")


def test_sizes_fill_the_processes() -> None:
    made = ParallelismConfig(ulysses_size="auto", tp_size=2).resolved(8)
    assert (made.ring_size, made.ulysses_size, made.tp_size) == (1, 4, 2)
    with pytest.raises(ConfigError, match="multiple of 3"):
        ParallelismConfig(ring_size=3).resolved(8)
