"""The doctor: each illness is made, and must be found and put into words; health must not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_summary import config, run
from tiny.image_models import FLUX, QWEN_IMAGE
from tiny.models import output_of
from tiny.pipelines import FLUX_TRUE_CFG, QWEN_IMAGE_PIPELINE
from tiny.runs import Denoising
from typer.testing import CliRunner

import cache_dit
from cache_dit import DBCacheConfig, ForwardPattern, Request, diagnose, enable_cache, presets
from cache_dit.caching.gates.residual import ResidualGate
from cache_dit.cli.app import app
from cache_dit.stats import Problem, findings, summary
from cache_dit.stats import stats as stats_module

FLUX_NAME, QWEN_NAME = "FluxTransformer2DModel", "QwenImageTransformer2DModel"


@pytest.fixture(autouse=True)
def no_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes a second, and most tests do not look at it."""
    monkeypatch.setattr(stats_module, "forward_flops", lambda *_: None)
    monkeypatch.setattr(findings, "forward_flops", lambda *_: None)


def told(target: Any) -> list[tuple[Problem, str]]:
    return [(finding.problem, finding.text) for finding in diagnose(target, logging=False)]


def only(target: Any, problem: Problem) -> str:
    ((found, text),) = told(target)
    assert found is problem
    return text


def test_health(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = enable_cache(FLUX_TRUE_CFG.build(), config(max_warmup_steps=2))
    FLUX_TRUE_CFG.call(pipe, 0, 5)
    assert diagnose(pipe) == []
    assert capsys.readouterr().out == "Nothing is wrong: steps are cached as configured.\n"
    summary(pipe)
    assert "Note" not in capsys.readouterr().out


def test_not_run() -> None:
    assert "no forward since" in only(enable_cache(FLUX.build()), Problem.NOT_RUN)


def test_an_estimate_needs_a_known_sampler() -> None:
    pipe = enable_cache(FLUX_TRUE_CFG.build(), presets.trajectory(0.5))
    FLUX_TRUE_CFG.call(pipe, 0, 6)
    assert diagnose(pipe, logging=False) == []
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)
    FLUX_TRUE_CFG.call(pipe, 0, 6)
    assert "the sampler is not known to move it" in only(pipe, Problem.ESTIMATE)


def test_threshold_under_the_smallest_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = iter((0.02, 0.05, 0.03, 0.04, 0.11))
    monkeypatch.setattr(ResidualGate, "measure", lambda *_: next(changes))
    model = run(QWEN_IMAGE, 6, config(residual_diff_threshold=0.01))
    text = only(model, Problem.NEVER_CACHED)
    assert text == (
        "residual_diff_threshold is 0.01 but the smallest change seen is 0.02; 0.042 would have cached about "
        "half of the measured steps."
    )
    # The summary says the same, below its table.
    capsys.readouterr()
    summary(model)
    assert capsys.readouterr().out.endswith(f"\n\nNote: {QWEN_NAME}: never cached: {text}\n")


def drifting(cache: DBCacheConfig) -> Any:
    """A model after a run in which the input changes little, and more with every step."""
    model, kwargs = enable_cache(FLUX.build(), cache), FLUX.inputs(0)
    with Request(12):
        for step in range(12):
            output_of(model, kwargs | {"hidden_states": kwargs["hidden_states"] * (1 + 0.003 * step**2)})
    return model


def test_the_named_threshold_does_cache_half() -> None:
    fields: dict[str, Any] = {"enable_separate_cfg": False}
    text = only(drifting(config(residual_diff_threshold=1e-6, **fields)), Problem.NEVER_CACHED)
    better = float(text.split("; ")[1].split()[0])
    (stats,) = summary(drifting(config(residual_diff_threshold=better, **fields)), logging=False)
    assert 4 <= len(stats.cached_steps) <= 8


def test_no_threshold_helps() -> None:
    text = only(run(FLUX, 5, config(residual_diff_threshold=1e-6)), Problem.NEVER_CACHED)
    assert text.endswith("the steps have too little in common for any threshold to cache half of them.")


@pytest.mark.parametrize(
    ("fields", "problem", "words"),
    [
        ({"residual_diff_threshold": 0.0}, Problem.NEVER_CACHED, "residual_diff_threshold is 0, so every"),
        ({"max_warmup_steps": 8}, Problem.WARMUP, "max_warmup_steps is 8 but the run has 5 steps; give 1."),
        (
            {"steps_computation_mask": [1, 1, 1, 1, 1]},
            Problem.NEVER_CACHED,
            "4 of 5 steps were computed because of this: steps mask. Give a steps_computation_mask",
        ),
    ],
)
def test_never_cached(fields: dict[str, Any], problem: Problem, words: str) -> None:
    assert words in only(run(FLUX, 5, config(**fields)), problem)


def test_another_shape_in_every_step() -> None:
    model = enable_cache(QWEN_IMAGE.build(), config())
    with Request(4):
        for length in (5, 4, 3, 2):
            inputs = QWEN_IMAGE.inputs(5 - length)
            inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"][:, :length]
            if inputs.get("encoder_hidden_states_mask") is not None:
                inputs["encoder_hidden_states_mask"] = inputs["encoder_hidden_states_mask"][:, :length]
            if "txt_seq_lens" in inputs:
                inputs["txt_seq_lens"] = [length] * len(inputs["txt_seq_lens"])
            output_of(model, inputs)
    assert "shape changed" in only(model, Problem.NEVER_CACHED)


def test_two_branches_taken_for_one() -> None:
    pipe = enable_cache(FLUX_TRUE_CFG.build(), config(enable_separate_cfg=False, max_warmup_steps=2))
    pipe.transformer.cache_context = lambda name: torch.no_grad()  # a pipeline that names nothing
    FLUX_TRUE_CFG.call(pipe, 0, 5)
    assert only(pipe, Problem.BRANCHES).startswith(
        "10 forwards in a run of 5 steps were taken for one branch"
    )


def test_one_branch_taken_for_two() -> None:
    pipe = enable_cache(QWEN_IMAGE_PIPELINE.build(), config(enable_separate_cfg=True))
    pipe.transformer.cache_context = lambda name: torch.no_grad()
    QWEN_IMAGE_PIPELINE.call(pipe, 0, 6)
    calls = QWEN_IMAGE_PIPELINE.calls_per_step
    found = [text for problem, text in told(pipe) if problem is Problem.BRANCHES]
    assert len(found) == (1 if calls == 1 else 0)


def test_unnamed_branches() -> None:
    model = enable_cache(FLUX.build(), config())
    with Request(4):
        for seed in range(4):
            for _ in range(2):
                output_of(model, FLUX.inputs(seed))
    assert only(model, Problem.BRANCHES).startswith("the 2 forwards of a step are not named")


def test_a_list_that_is_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # with the FLOPs
    model = FLUX.build()
    adapter = cache_dit.BlockAdapter(
        transformer=model,
        blocks=model.transformer_blocks,  # type: ignore[arg-type]  # a ModuleList
        forward_pattern=ForwardPattern.Pattern_1,
    )
    enable_cache(adapter, config())
    with Request(4):
        for seed in range(4):
            output_of(model, FLUX.inputs(seed))
    text = only(model, Problem.NOT_COVERED)
    assert text.startswith("single_transformer_blocks takes ")
    assert 10 <= float(text.split()[2].removesuffix("%")) <= 90


def test_compiled_whole() -> None:
    model = torch.compile(FLUX.build(), backend="eager")
    enable_cache(model, config())  # type: ignore[type-var]  # what torch.compile returns
    with Request(3):
        for seed in range(3):
            output_of(model, FLUX.inputs(seed))  # type: ignore[arg-type]
    assert "compile_repeated_blocks" in only(model, Problem.COMPILED)


def test_a_cache_of_diffusers_beside() -> None:
    from diffusers import FirstBlockCacheConfig

    model: Any = FLUX.build()
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    enable_cache(model, config())
    assert "call transformer.disable_cache()" in told(model)[0][1]
    assert told(model)[0][0] is Problem.SECOND_CACHE


def test_wrapped_afterwards() -> None:
    model: Any = run(FLUX, 4, config())
    block = model.transformer_blocks[3]
    block.__class__ = type("Sharded", (type(block),), {})
    assert only(model, Problem.COVERED).startswith("Sharded was wrapped")


def test_enabled_twice() -> None:
    model = enable_cache(FLUX.build(), config())
    enable_cache(model, DBCacheConfig(Fn_compute_blocks=2, max_warmup_steps=1, residual_diff_threshold=1.0))
    with Request(4):
        for seed in range(4):
            output_of(model, FLUX.inputs(seed))
    assert only(model, Problem.REPLACED) == (
        "enable_cache was called again: DBCache_F2B0_W1I1M0MC0_R1_T0O0 took the place of "
        "DBCache_F1B0_W1I1M0MC0_R1_T0O0."
    )


def test_the_command_finds_nothing_on_the_demo_model() -> None:
    result = CliRunner().invoke(app, ["doctor", "--steps", "10", "--warmup", "2"])
    assert result.exit_code == 0, result.output
    assert "torch" in result.output
    assert result.output.endswith("Nothing is wrong: steps are cached as configured.\n")


def test_the_command_finds_a_threshold_that_is_too_low() -> None:
    result = CliRunner().invoke(app, ["doctor", "--steps", "6", "--warmup", "1", "--threshold", "1e-4"])
    assert result.exit_code == 1
    assert f"Note: {FLUX_NAME}: never cached: residual_diff_threshold is 0.0001" in result.output


def test_a_first_forward_that_broke_off_is_no_run() -> None:
    model: Any = enable_cache(FLUX.build(), DBCacheConfig(Fn_compute_blocks=1))
    with pytest.raises(TypeError):
        model(hidden_states=None)
    assert [one.problem for one in cache_dit.diagnose(model, logging=False)] == [Problem.NOT_RUN]
    cache_dit.summary(model, logging=False)


@pytest.mark.parametrize("separate", [None, False])
def test_samples_that_decide_for_themselves_are_no_branches(separate: bool | None) -> None:
    options = {"per_sample": True, "num_inference_steps": 8, "enable_separate_cfg": separate}
    model = enable_cache(FLUX.build(), cache_dit.presets.tolerance(100.0).with_options(**options))
    Denoising(model, 0, 8).finish()
    found = [one.problem for one in cache_dit.diagnose(model, logging=False)]
    assert Problem.BRANCHES not in found
