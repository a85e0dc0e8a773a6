"""The attention kernel of one model: what is chosen, what it leaves alone, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from tiny.models import FLUX, TINY_MODELS
from tiny.pipelines import FLUX_TRUE_CFG
from tiny.runs import Denoising, decisions
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import cache_dit
from cache_dit import DBCacheConfig, IntervalConfig, Place
from cache_dit.attention import attn_backends, set_attn_backend
from cache_dit.attention.backends import _default_kept
from cache_dit.errors import ConfigError, UnsupportedModelError

CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=2
)


@pytest.fixture(autouse=True)
def _default_backend() -> Iterator[None]:
    before = _AttentionBackendRegistry.get_active_backend()[0]
    yield
    assert _AttentionBackendRegistry.get_active_backend()[0] is before


def backends_of(model: nn.Module) -> set[Any]:
    processors = (getattr(module, "processor", None) for module in model.modules())
    return {one._attention_backend for one in processors if hasattr(one, "_attention_backend")}


class Doubled(FluxAttnProcessor):
    """Twice what attention is."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        return tuple(2 * one for one in made) if isinstance(made, tuple) else 2 * made


def run(model: nn.Module) -> Tensor:
    return Denoising(model, 0).finish()


@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
@pytest.mark.parametrize("cached_first", [True, False])
def test_a_backend_is_used_by_one_model_alone(backend: str, cached_first: bool) -> None:
    model, other = FLUX.build(), FLUX.build()
    if cached_first:
        cache_dit.enable_cache(model, CONFIG)
    undo = set_attn_backend(model, backend)
    if not cached_first:
        cache_dit.enable_cache(model, CONFIG)
    assert backends_of(model) == {AttentionBackendName(backend)}
    assert backends_of(other) == backends_of(FLUX.build()) == {None}
    torch.testing.assert_close(run(model), run(cache_dit.enable_cache(other, CONFIG)), atol=1e-5, rtol=1e-4)
    assert "S" in decisions(model)
    undo.close()
    assert backends_of(model) == {None}
    assert not any(
        "_attention_backend" in vars(one.processor) for one in model.modules() if hasattr(one, "processor")
    )


def test_the_kernel_that_was_chosen_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FLUX.build()
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(torch.nn.attention._cur_sdpa_kernel_backends())
        return scaled_dot_product_attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with set_attn_backend(model, "_native_math"):
        run(model)
    inside = len(calls)
    assert inside > 0
    assert all(kernels == [torch.nn.attention.SDPBackend.MATH] for kernels in calls)
    run(model)
    assert all(len(kernels) > 1 for kernels in calls[inside:])


def test_choices_are_undone_one_by_one() -> None:
    model = FLUX.build()
    with set_attn_backend(model, "flex"):
        with set_attn_backend(model, "_native_math"):
            assert backends_of(model) == {AttentionBackendName._NATIVE_MATH}
        assert backends_of(model) == {AttentionBackendName.FLEX}
    assert backends_of(model) == {None}


def test_pipeline() -> None:
    tiny = FLUX_TRUE_CFG
    pipe = tiny.build()
    reference = tiny.call(pipe, 0, 2)
    set_attn_backend(pipe, "_native_math")
    assert backends_of(pipe.transformer) == {AttentionBackendName._NATIVE_MATH}
    torch.testing.assert_close(tiny.call(pipe, 0, 2), reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("place", [Place.MIDDLE, Place.ATTENTION, Place.SUBMODULES], ids=str)
def test_processors_and_backends_of_diffusers_may_come_later(place: Place) -> None:
    config = IntervalConfig(interval=2, place=place)
    first, later = FLUX.build(), cache_dit.enable_cache(FLUX.build(), config)
    for model in (first, later):
        model.set_attn_processor(Doubled())
        with set_attn_backend(model, "_native_math"):
            # Those of the `with` are put back where they are, whatever took their place.
            model.set_attn_processor(Doubled())
        with _default_kept():
            model.set_attention_backend("_native_math")
        assert backends_of(model) == {AttentionBackendName._NATIVE_MATH}
    wanted = run(cache_dit.enable_cache(first, config))
    assert torch.equal(run(later), wanted)
    assert "S" in decisions(later)
    assert not torch.allclose(run(cache_dit.enable_cache(FLUX.build(), config)), wanted, atol=1e-3)


def test_names_are_those_of_diffusers() -> None:
    assert {"native", "_native_cudnn", "flash", "_flash_3", "sage", "xformers"} <= set(attn_backends())


@pytest.mark.parametrize(
    ("backend", "complaint"),
    [("flahs", "Did you mean 'flash'"), ("sdpa", "diffusers knows 'flash'")],
)
def test_unknown_names(backend: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        set_attn_backend(FLUX.build(), backend)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["_native_cudnn", "flash", "_flash_3", "sage"])
def test_a_gpu_is_asked_for(backend: str) -> None:
    with pytest.raises(ConfigError, match=f"backend is '{backend}', whose kernels run on a CUDA GPU"):
        set_attn_backend(FLUX.build(), backend)


@pytest.mark.parametrize(
    ("backend", "package"),
    [("flash", "flash-attn"), ("_flash_3", "FA3"), ("sage", "sageattention"), ("xformers", "xformers")],
)
def test_a_package_that_is_not_installed_is_named(
    backend: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in ("FLASH_ATTN", "FLASH_ATTN_3", "SAGE_ATTN", "XFORMERS_ATTN"):
        monkeypatch.setattr(f"diffusers.models.attention_dispatch._CAN_USE_{flag}", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = FLUX.build()
    with pytest.raises(ConfigError, match=f"backend is '{backend}', which cannot be used here.*{package}"):
        set_attn_backend(model, backend)
    assert backends_of(model) == {None}


def test_what_has_no_attention_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear has no attention"):
        set_attn_backend(nn.Linear(2, 2), "native")
    with pytest.raises(UnsupportedModelError):
        set_attn_backend(object(), "native")


def test_the_families_whose_kernel_can_be_chosen() -> None:
    """As docs/attention.md counts them: classes that leave attention to diffusers' dispatcher."""
    taken, refused = set(), set()
    for tiny in TINY_MODELS:
        model = tiny.build()
        try:
            set_attn_backend(model, "native").close()
            taken.add(tiny.name)
        except UnsupportedModelError:
            assert backends_of(model) == set()
            refused.add(tiny.name)
    assert {"FluxTransformer2DModel", "QwenImageTransformer2DModel", "WanTransformer3DModel"} <= taken
    assert "SD3Transformer2DModel" in refused
    text = (Path(__file__).parents[1] / "docs" / "attention.md").read_text(encoding="utf-8")
    assert f"{len(taken)} of {len(taken) + len(refused)} known classes" in text
