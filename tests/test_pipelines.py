"""Every pipeline class of diffusers: the right transformer is cached, step by step, and given back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from tiny.fake_pipelines import PipelineClass, fake_pipeline, modular_pipelines, pipeline_classes
from tiny.models import TINY_MODELS
from tiny.versions import needs_all, since

import cache_dit
from cache_dit import DBCacheConfig
from cache_dit.api import attachments_of
from cache_dit.caching.models.rows import ROWS
from cache_dit.caching.models.unsupported import UNSUPPORTED
from cache_dit.stats import stats
from cache_dit.supported import family_of, guidance_of

STEPS = 4
CONFIG = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=1.0)

TINY = {tiny.name for tiny in TINY_MODELS}
CACHED = [kind for kind in pipeline_classes() if kind.transformer in TINY]

each_pipeline = pytest.mark.parametrize("kind", CACHED, ids=lambda kind: kind.name)


@pytest.fixture
def pipe(kind: PipelineClass, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A pipeline whose models are shared with other tests, so they are given back whatever happens."""
    # Counting takes longer than all the rest, and is tested elsewhere.
    monkeypatch.setattr(stats, "forward_flops", lambda *_: None)
    made = fake_pipeline(kind)
    yield made
    cache_dit.disable_cache(made)


_uncached: dict[Any, list[torch.Tensor]] = {}


def uncached(kind: PipelineClass, pipe: Any) -> list[torch.Tensor]:
    """Outputs without caching, which pipelines that call the same transformers in the same way share."""
    way = (kind.transformer, len(kind.denoisers), kind.branches, kind.together, kind.chunks)
    if way not in _uncached:
        _uncached[way] = pipe(steps(kind))
    return _uncached[way]


def steps(kind: PipelineClass) -> int:
    """Enough steps for every transformer to skip."""
    return STEPS if kind.together else STEPS * len(kind.denoisers)


def same(outputs: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(outputs) == len(other) and all(map(torch.equal, outputs, other))


@each_pipeline
def test_its_transformers_are_cached_step_by_step_and_given_back(kind: PipelineClass, pipe: Any) -> None:
    if kind.name.startswith("SkyReelsV2Diffusion"):
        since("0.37", "names for the calls of SkyReels with a schedule for each frame")
    plain, kinds = type(pipe), {name: type(part) for name, part in pipe.components.items()}
    expected = uncached(kind, pipe)
    denoisers = [getattr(pipe, name) for name in kind.denoisers]

    cache_dit.enable_cache(pipe, CONFIG)
    first = pipe(steps(kind))
    assert [attached.lists.model for attached in attachments_of(pipe)] == denoisers
    assert {name for name, part in pipe.components.items() if type(part) is not kinds[name]} == set(
        kind.denoisers
    )
    told = cache_dit.summary(pipe, logging=False)
    assert [entry.model for entry in told] == [type(model).__name__ for model in denoisers]
    for entry in told:
        assert entry.total_steps == STEPS
        assert len(entry.branches) == len(kind.branches)
        # Those of a guider are "pred_cond" and "pred_uncond", which is told like any other guidance.
        names = tuple(name and name.removeprefix("pred_") for name in kind.branches)
        assert names[0] is None or entry.branches == names
        for place in range(len(kind.branches)):
            assert entry.skipped(place) == [2, 3], entry.branches[place]
    assert not same(first, expected)
    assert same(pipe(steps(kind)), first)

    cache_dit.disable_cache(pipe)
    assert type(pipe) is plain
    assert {name: type(part) for name, part in pipe.components.items()} == kinds
    assert same(pipe(steps(kind)), expected)


def test_counting_flops_leaves_flex_attention_as_it_was() -> None:
    needs_all()
    kind = next(kind for kind in CACHED if kind.name == "AnyFlowFARPipeline")
    pipe = cache_dit.enable_cache(fake_pipeline(kind), CONFIG)
    first = pipe(STEPS)
    assert cache_dit.summary(pipe, logging=False)[0].flops is None
    again = pipe(STEPS)
    cache_dit.disable_cache(pipe)
    assert same(again, first)


@pytest.mark.parametrize("name", ["Flux", "QwenImage", "Wan"])
def test_modular_pipelines_have_their_transformer_cached(name: str) -> None:
    since("0.37", "modular pipelines that take a model as it is")
    pipe = getattr(diffusers, f"{name}ModularPipeline")()
    plain, tiny = type(pipe), next(tiny for tiny in TINY_MODELS if tiny.name.startswith(f"{name}Transformer"))
    pipe.update_components(transformer=tiny.build())
    cache_dit.enable_cache(pipe, CONFIG)
    assert [attached.lists.model for attached in attachments_of(pipe)] == [pipe.transformer]
    assert isinstance(pipe, plain)
    assert type(cache_dit.disable_cache(pipe)) is plain


# --- the lists for users ---


def test_every_pipeline_is_cached_or_there_is_a_reason() -> None:
    needs_all()
    rest = {kind.name: kind.transformer for kind in pipeline_classes() if kind not in CACHED}
    assert {name for name, transformer in rest.items() if transformer not in UNSUPPORTED} == set()
    assert set(rest) == {"RFD4ProteinaPipeline"}
    assert len(CACHED) > 160


def test_every_pipeline_belongs_to_the_family_of_its_transformer() -> None:
    families = {kind.name: family_of(kind.name) for kind in CACHED}
    found = {name: None if row is None else row.name for name, row in families.items()}
    assert found == {kind.name: kind.transformer for kind in CACHED}


def test_every_family_has_a_pipeline() -> None:
    needs_all()
    names = {kind.name for kind in pipeline_classes()} | modular_pipelines()
    starts = [start for row in ROWS for start in row.pipelines]
    assert [start for start in starts if not any(name.startswith(start) for name in names)] == []
    assert len(set(starts)) == len(starts)


def test_supported_pipelines() -> None:
    count, names = cache_dit.supported_pipelines()
    assert count == len(names) == len(set(names))
    assert {"Flux*", "Flux2*", "QwenImage*", "Wan*", "StableDiffusion3*", "LTX*", "Sana*"} <= set(names)
    assert not any("Pipeline" in name for name in names)


def test_supported_matrix() -> None:
    head, rule, *lines = cache_dit.supported_matrix().splitlines()
    assert set(rule) == set("| -")
    cells = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    assert list(cells) == [row.name for row in ROWS]
    assert {line.count("|") for line in (head, rule, *lines)} == {5}
    qwen = "| QwenImageTransformer2DModel | QwenImage* | `transformer_blocks` | named calls |"
    assert cells["QwenImageTransformer2DModel"] == qwen
    assert "`transformer_blocks`, `single_transformer_blocks`" in cells["FluxTransformer2DModel"]


def test_supported_matrix_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for line in cache_dit.supported_matrix().splitlines()[2:]:
        assert line.endswith(" | ? |")


def test_guidance_in_the_matrix_is_that_of_the_calls() -> None:
    told = {kind.name: guidance_of(kind.text) for kind in CACHED}
    silent = {name for name, guidance in told.items() if guidance is None}
    assert all(
        "Combined" in name for name in silent - {"VisualClozePipeline", "SpectrogramDiffusionPipeline"}
    )
    wrong = {
        kind.name: told[kind.name]
        for kind in CACHED
        if kind.name not in silent and told[kind.name] not in guidance_by_calls(kind)
    }
    assert wrong == {}


def guidance_by_calls(kind: PipelineClass) -> tuple[str, ...]:
    named = {branch for branch in kind.branches if branch not in (None, "cond_uncond")}
    if named:
        return ("named calls",)
    return ("separate calls",) if kind.together or len(kind.branches) > 1 else ("one batch", "none")
