"""FLOPs without weights: FLUX.1-dev against published totals, and small models against their real forward."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from cache_dit.bench.flops import Counted, count, implied
from cache_dit.bench.flops_models import INPUTS, KNOWN
from cache_dit.cli import app
from cache_dit.errors import ConfigError
from cache_dit.shorthand import parse_config
from cache_dit.stats.flops import SDPA_MAPPING

ROOT = Path(__file__).resolve().parents[1]
_FLUX: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "axes_dims_rope": (4, 6, 6),
}
_TINY: dict[str, dict[str, Any]] = {
    "ChromaTransformer2DModel": {**_FLUX, "approximator_hidden_dim": 32, "approximator_layers": 1},
    "Flux2Transformer2DModel": {**_FLUX, "axes_dims_rope": (4, 4, 4, 4)},
    "FluxTransformer2DModel": {**_FLUX, "pooled_projection_dim": 12, "guidance_embeds": True},
    "HunyuanVideoTransformer3DModel": {
        "in_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "text_embed_dim": 16,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    },
    "QwenImageTransformer2DModel": {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "axes_dims_rope": (4, 6, 6),
    },
    "SD3Transformer2DModel": {
        "sample_size": 8,
        "in_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 12,
        "pos_embed_max_size": 16,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    },
    "WanTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
    },
}


@pytest.fixture(scope="module")
def flux() -> Counted:
    return count("FLUX", height=1024, width=1024, text_tokens=512)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("flops_flux")


def test_a_step_of_flux(flux: Counted) -> None:
    assert flux.step == pytest.approx(74.4, abs=0.05)
    blocks = flux.model.transformer_blocks
    # 12 d² of weights and 2 L d of attention for each of L tokens, two FLOPs each; and the modulation.
    tokens, width = 4096 + 512, 24 * 128
    by_hand = 2 * tokens * (12 * width**2 + 2 * tokens * width) + 2 * 12 * width**2
    assert flux.modules[blocks[0]] == pytest.approx(by_hand, rel=1e-6)


def test_published_totals_of_flux(flux: Counted, published: Any) -> None:
    totals, steps, base = published.PUBLISHED, published.STEPS, published.BASE
    assert steps * flux.step == pytest.approx(base, rel=0.003)
    assert len(totals) == 31
    for text, total in totals.items():
        preset = parse_config(text)
        cached = round(implied(flux, preset, total * steps * flux.step / base, steps))
        assert 20 < cached <= published.most(text), text
        assert steps * flux.step - cached * flux.saved(preset) == pytest.approx(total, rel=0.03), text


def test_differences_of_published_totals_are_whole_numbers_of_steps(flux: Counted, published: Any) -> None:
    lines = published.differences(flux).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["1", "4", "8"]
    assert all(float(line.split("|")[6]) < 0.03 for line in lines)
    # One block more or less, and they are not: the check can fail.
    totals = sorted(total for text, total in published.PUBLISHED.items() if text.startswith("F8B"))
    wrong = flux.saved(parse_config("F9B0")) * published.BASE / (published.STEPS * flux.step)
    assert max(published.distances(totals, wrong / published.PICTURES)) > 0.3


# Chroma's own module still asks for the old name.
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_the_count_is_that_of_a_real_forward(kind: str, tmp_path: Path) -> None:
    import diffusers

    file = tmp_path / "config.json"
    file.write_text(json.dumps({"_class_name": kind, "_diffusers_version": "0.42.1", **_TINY[kind]}))
    counted = count(str(file), height=32, width=48, frames=1 if "3D" not in kind else 5, text_tokens=7)
    model = getattr(diffusers, kind)(**_TINY[kind]).eval()
    inputs = INPUTS[kind](dict(model.config), counted.size)
    real = {
        name: torch.ones(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=SDPA_MAPPING) as counter:
        model(**real)
    assert counted.modules[counted.model] == counter.get_total_flops() > 0


def test_published_models_are_of_known_classes() -> None:
    assert {known.kind for known in KNOWN.values()} == set(INPUTS)
    assert set(_TINY) == set(INPUTS)


def _flops(*words: str) -> Any:
    return CliRunner().invoke(app, ["bench", "flops", *words])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("flux") / "config.json"
    file.write_text(json.dumps({"_class_name": "FluxTransformer2DModel", **_TINY["FluxTransformer2DModel"]}))
    return str(file)


def test_the_command(small: str) -> None:
    result = _flops(
        "--model-config", small, "--height", "32", "--width", "32", "--steps", "10", "--config", "F1B0",
        "--config", "taylorseer_lite(3,1)", "--cached-steps", "5", "--per-module", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["class"] == "FluxTransformer2DModel"
    assert said["tflops"] == pytest.approx(10 * said["tflop_a_step"])
    blocks, whole = said["configs"]
    assert 0 < blocks["TFLOP a cached step"] < 0.6 * said["tflop_a_step"]
    assert whole["TFLOP a cached step"] == 0
    assert whole["SpeedUp(↑)"] == pytest.approx(2)
    modules = {entry["path"]: entry["tflop"] for entry in said["modules"]}
    parts = [tera for path, tera in modules.items() if "." not in path or path.endswith("_blocks.*")]
    assert sum(parts) == pytest.approx(said["tflop_a_step"])
    assert modules["single_transformer_blocks.*"] > modules["proj_out"] > 0


def test_the_command_in_words(small: str) -> None:
    one = json.loads(_flops("--model-config", small, "--json").stdout)["tflop_a_step"]
    result = _flops("--model-config", small, "--config", "F1B0", "--tflops", str(50 * one), "--per-module")
    assert result.exit_code == 0, result.stderr
    head, *tables = result.stdout.split("\n\n")
    assert "1024x1024, 512 text tokens" in head
    assert "| Config | TFLOP a cached step | Given TFLOPs | Cached steps that follow |" in tables[0]
    assert float(tables[0].splitlines()[2].split("|")[4]) == pytest.approx(0, abs=1e-6)
    assert "| transformer_blocks.* | FluxTransformerBlock | 2 |" in tables[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model-config", "FLUXX"), "Did you mean 'FLUX'?"),
        (("--model-config", "none.json"), "none.json is no file"),
        (("--model-config", "PixArtTransformer2DModel"), "there is no model"),
        (("--height", "100"), "give multiples of 16"),
        (("--frames", "6"), "5, 9, ... frames"),
        (("--config", "F80B0"), "F"),
        (("--config", "F1B0", "--cached-steps", "51"), "give 50 at most"),
    ],
)
def test_what_is_refused(small: str, words: tuple[str, ...], said: str) -> None:
    result = _flops(*(() if words[0] == "--model-config" else ("--model-config", small)), *words)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is of the class None"),
        ("{", "is no JSON"),
        ('{"_class_name": "UNet2DModel"}', "is of the class 'UNet2DModel'"),
        ('{"_class_name": "FluxTransformer2DModel", "axes_dims_rope": 3}', "cannot be made"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        count(str(file))
