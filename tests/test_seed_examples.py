"""Every documented call that users of the reference system know does here what its document says.

The code is that of the documents, without comments and without the dots that stand for further options. Tiny
pipelines stand in for those that are downloaded, and are called as there: `pipe(...)`.
"""

from __future__ import annotations

import functools
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from tiny.base import builder
from tiny.image_models_1 import MODELS as IMAGE_MODELS
from tiny.models import output_of, tiny_model
from tiny.pipelines import (
    CHROMA_PIPELINE,
    FLUX_PIPELINE,
    QWEN_IMAGE_PIPELINE,
    WAN_TWO_TRANSFORMERS,
    TinyPipeline,
)

import cache_dit
from cache_dit import BlockAdapter, BlockAdapterRegister, DBCacheConfig, ForwardPattern
from cache_dit.caching.maths.gate import Reason
from cache_dit.caching.patch_functors import HiDreamPatchFunctor
from cache_dit.cli.metrics import main as metrics_cli
from cache_dit.stats import findings
from cache_dit.stats import stats as stats_module

STEPS = 10

NOT_RUN = {
    "pip3 install, git clone, modelscope download, hf download": "need a network",
    "bench.sh, bench_fast.sh, bench_distill.sh, metrics.sh": "need a GPU and the weights of FLUX.1-dev; "
    "`cache-dit bench run` takes their place, tested in test_bench_run",
    "generate.py flux, generate.py qwen_image": "need GPUs and the weights of the models",
    "compute_fid, compute_lpips, compute_clip_score, compute_image_reward": "need weights that are not "
    "downloaded: here their paths are arguments, tested in test_metrics_networks",
    "perf.py, run_*.py": "are linked, not shown",
}
"""What the documents show and no test here runs, with the reason."""


# --- what stands in for what is downloaded ---


def as_documented(kind: TinyPipeline, pipe: Any) -> Any:
    """The pipeline, which `pipe(...)` now calls with what it needs, and which stays where it is."""
    plain = type(pipe)

    @functools.wraps(plain.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args == (...,):
            return kind.call(self, 0, self.documented_steps)
        return plain.__call__(self, *args, **kwargs)

    # A class of its own, since what caching makes of a class is kept for the next pipeline of that class.
    made = type(plain.__name__, (plain,), {"__call__": call, "to": lambda self, device: self})
    pipe.__class__ = made
    pipe.documented_steps = STEPS
    return pipe


@pytest.fixture(autouse=True)
def no_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes longer than the runs, and nothing here looks at it."""
    monkeypatch.setattr(stats_module, "forward_flops", lambda *_: None)
    monkeypatch.setattr(findings, "forward_flops", lambda *_: None)


def deepened(pipe: Any, **layers: int) -> Any:
    """The same with transformers of enough blocks for the options of the documents."""
    for name, part in pipe.components.items():
        if name.startswith("transformer"):
            known = {key: value for key, value in part.config.items() if not key.startswith("_")}
            setattr(pipe, name, builder(type(part).__name__, 0, **known | layers)())
    return pipe


@pytest.fixture
def qwen() -> Any:
    pipe = deepened(QWEN_IMAGE_PIPELINE.build(), num_layers=9)
    return as_documented(QWEN_IMAGE_PIPELINE, pipe)


@pytest.fixture
def flux() -> Any:
    pipe = deepened(FLUX_PIPELINE.build(), num_layers=19, num_single_layers=10)
    return as_documented(FLUX_PIPELINE, pipe)


def run(text: str, **names: Any) -> dict[str, Any]:
    """Run the code of a document with what it takes for granted."""
    space: dict[str, Any] = {"cache_dit": cache_dit, "torch": torch, **names}
    exec(compile(textwrap.dedent(text), "document", "exec"), space)
    return space


def test_one_line(qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda name: qwen)
    plain, kind = qwen(...), type(qwen.transformer)
    space = run(
        """
        import cache_dit
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained("Qwen/Qwen-Image")
        cache_dit.enable_cache(pipe)
        output = pipe(...)
        stats = cache_dit.summary(pipe)
        cache_dit.disable_cache(pipe)
        """
    )
    (stats,) = space["stats"]
    # Behind the warm-up of 8 steps the first blocks are measured.
    assert list(stats.residual_diffs) == list(range(8, STEPS))
    assert space["output"].shape == plain.shape
    assert type(qwen.transformer) is kind
    assert torch.equal(qwen(...), plain)


def test_block_adapter(qwen: Any) -> None:
    auto = """
    from cache_dit import ForwardPattern, BlockAdapter

    cache_dit.enable_cache(
        BlockAdapter(
            pipe=pipe, auto=True,
            forward_pattern=ForwardPattern.Pattern_1,
        ),
    )
    """
    manual = """
    from cache_dit import ForwardPattern, BlockAdapter

    cache_dit.enable_cache(
        BlockAdapter(
            pipe=pipe,
            transformer=pipe.transformer,
            blocks=pipe.transformer.transformer_blocks,
            forward_pattern=ForwardPattern.Pattern_1,
        ),
    )
    """
    outputs = []
    for text in (auto, manual):
        run(text, pipe=qwen)
        outputs.append(qwen(...))
        assert cache_dit.summary(qwen, logging=False)[0].lists == ("transformer_blocks",)
    assert torch.equal(*outputs)


def test_hybrid_forward_pattern() -> None:
    # FLUX.1 as it was up to diffusers 0.34, when its single blocks took one tensor: Chroma still does.
    pipe = as_documented(CHROMA_PIPELINE, CHROMA_PIPELINE.build())
    run(
        """
        from cache_dit import ForwardPattern, BlockAdapter

        cache_dit.enable_cache(
            BlockAdapter(
                pipe=pipe,
                transformer=pipe.transformer,
                blocks=[
                    pipe.transformer.transformer_blocks,
                    pipe.transformer.single_transformer_blocks,
                ],
                forward_pattern=[
                    ForwardPattern.Pattern_1,
                    ForwardPattern.Pattern_3,
                ],
            ),
        )
        output = pipe(...)
        """,
        pipe=pipe,
    )
    (stats,) = cache_dit.summary(pipe, logging=False)
    assert stats.lists == ("transformer_blocks", "single_transformer_blocks")
    assert stats.total_steps == STEPS


@pytest.mark.parametrize("config", ["DBCacheConfig().reset", "BasicCacheConfig"])
def test_two_transformers(config: str) -> None:
    pipe = deepened(WAN_TWO_TRANSFORMERS.build(), num_layers=12)
    pipe = as_documented(WAN_TWO_TRANSFORMERS, pipe)
    run(
        f"""
        from cache_dit import ForwardPattern, BlockAdapter, ParamsModifier, BasicCacheConfig, DBCacheConfig

        cache_dit.enable_cache(
            BlockAdapter(
                pipe=pipe,
                transformer=[
                    pipe.transformer,
                    pipe.transformer_2,
                ],
                blocks=[
                    pipe.transformer.blocks,
                    pipe.transformer_2.blocks,
                ],
                forward_pattern=[
                    ForwardPattern.Pattern_2,
                    ForwardPattern.Pattern_2,
                ],
                params_modifiers=[
                    ParamsModifier(
                        cache_config={config}(
                            max_warmup_steps=4,
                            max_cached_steps=8,
                        ),
                    ),
                    ParamsModifier(
                        cache_config={config}(
                            max_warmup_steps=2,
                            max_cached_steps=20,
                        ),
                    ),
                ],
                has_separate_cfg=True,
            ),
        )
        output = pipe(...)
        """,
        pipe=pipe,
    )
    names = [stats.config for stats in cache_dit.summary(pipe, logging=False)]
    assert ["W4I1M8" in names[0], "W2I1M20" in names[1]] == [True, True]
    assert all("_CFG1_" in name for name in names)


@pytest.fixture
def families() -> Iterator[None]:
    known = dict(BlockAdapterRegister._families)
    yield
    BlockAdapterRegister._families.clear()
    BlockAdapterRegister._families.update(known)


@pytest.mark.usefixtures("families")
def test_patch_functor() -> None:
    space = run(
        """
        @BlockAdapterRegister.register("HiDream")
        def hidream_adapter(pipe, **kwargs) -> BlockAdapter:
            from diffusers import HiDreamImageTransformer2DModel
            from cache_dit.caching.patch_functors import HiDreamPatchFunctor

            assert isinstance(pipe.transformer, HiDreamImageTransformer2DModel)
            return BlockAdapter(
                pipe=pipe,
                transformer=pipe.transformer,
                blocks=[
                    pipe.transformer.double_stream_blocks,
                    pipe.transformer.single_stream_blocks,
                ],
                forward_pattern=[
                    ForwardPattern.Pattern_0,
                    ForwardPattern.Pattern_3,
                ],
                patch_functor=HiDreamPatchFunctor(),
                **kwargs,
            )
        """,
        BlockAdapter=BlockAdapter,
        BlockAdapterRegister=BlockAdapterRegister,
        ForwardPattern=ForwardPattern,
    )

    class HiDreamImagePipeline:
        def __init__(self, transformer: Any) -> None:
            self.transformer = transformer

    model = next(one for one in IMAGE_MODELS if one.name == "HiDreamImageTransformer2DModel")
    pipe = HiDreamImagePipeline(model.build())
    adapter = cache_dit.get_adapter(pipe)
    assert isinstance(adapter.patch_functor, HiDreamPatchFunctor)
    cache_dit.enable_cache(
        pipe, DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, num_inference_steps=3)
    )
    for seed in range(3):
        output_of(pipe.transformer, model.inputs(seed))
    (stats,) = cache_dit.summary(pipe, logging=False)
    assert stats.lists == ("double_stream_blocks", "single_stream_blocks")
    assert stats.total_steps == 3
    assert callable(space["hidream_adapter"])


def test_transformer_only() -> None:
    model = tiny_model("QwenImageTransformer2DModel")
    config = dict(model.build().config) | {"num_layers": 12}
    known = {name: value for name, value in config.items() if not name.startswith("_")}
    transformer: Any = builder("QwenImageTransformer2DModel", 0, **known)()
    run(
        """
        cache_dit.enable_cache(
            BlockAdapter(
                transformer=transformer,
                blocks=transformer.transformer_blocks,
                forward_pattern=ForwardPattern.Pattern_1,
            ),
            cache_config=DBCacheConfig(
                num_inference_steps=50
            ),
        )
        """,
        transformer=transformer,
        BlockAdapter=BlockAdapter,
        DBCacheConfig=DBCacheConfig,
        ForwardPattern=ForwardPattern,
    )
    for step in range(10):
        output_of(transformer, model.inputs(step))
    (stats,) = cache_dit.summary(transformer, logging=False)
    assert [step.verdict.reason for step in stats.steps][:8] == [Reason.WARMUP] * 8
    assert list(stats.residual_diffs) == [8, 9]


def test_refresh_context(
    qwen: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda name: qwen)
    runs: list[tuple[str, int]] = []

    def told(transformer: Any) -> Any:
        (stats,) = cache_dit.summary(transformer, logging=False)
        runs.append((stats.config, stats.total_steps))
        return [stats]

    # The document assigns what enable_cache returns, a transformer, to the name of the pipeline.
    text = """
    import cache_dit
    from cache_dit import DBCacheConfig
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("Qwen/Qwen-Image")
    cache_dit.enable_cache(pipe.transformer, cache_config=DBCacheConfig(num_inference_steps=None))

    cache_dit.refresh_context(pipe.transformer, num_inference_steps=28, verbose=True)
    pipe.documented_steps = 28
    output = pipe(...)
    stats = told(pipe.transformer)

    cache_dit.refresh_context(pipe.transformer, num_inference_steps=50, verbose=True)
    pipe.documented_steps = 50
    output = pipe(...)
    stats = told(pipe.transformer)

    cache_dit.refresh_context(
        pipe.transformer,
        cache_config=DBCacheConfig(
            residual_diff_threshold=0.1,
            max_warmup_steps=10,
            max_cached_steps=20,
            max_continuous_cached_steps=4,
            num_inference_steps=50,
        ),
        verbose=True,
    )
    output = pipe(...)
    stats = told(pipe.transformer)
    """
    run(text, told=told)
    first = "DBCache_F8B0_W8I1M0MC0_R0.08_T0O0"
    assert runs == [(first, 28), (first, 50), ("DBCache_F8B0_W10I1M20MC4_R0.1_T0O0", 50)]
    assert capsys.readouterr().out.count("QwenImageTransformer2DModel: ") == 3


def test_params_modifiers(flux: Any) -> None:
    run(
        """
        from cache_dit import ParamsModifier

        cache_dit.enable_cache(
            BlockAdapter(
                pipe=pipe,
                transformer=pipe.transformer,
                blocks=[
                    pipe.transformer.transformer_blocks,
                    pipe.transformer.single_transformer_blocks,
                ],
                forward_pattern=[
                    ForwardPattern.Pattern_1,
                    ForwardPattern.Pattern_1,
                ],
            ),
            cache_config=DBCacheConfig(),
            params_modifiers=[
                ParamsModifier(
                    cache_config=DBCacheConfig().reset(
                        Fn_compute_blocks=8,
                        residual_diff_threshold=0.08,
                    ),
                ),
                ParamsModifier(
                    cache_config=DBCacheConfig().reset(
                        Fn_compute_blocks=1,
                        residual_diff_threshold=0.16,
                    ),
                ),
            ],
        )
        output = pipe(...)
        """,
        pipe=flux,
        BlockAdapter=BlockAdapter,
        DBCacheConfig=DBCacheConfig,
        ForwardPattern=ForwardPattern,
    )
    assert [stats.config for stats in cache_dit.summary(flux, logging=False)] == [
        "DBCache_F8B0_W8I1M0MC0_R0.08_T0O0",
        "DBCache_F1B0_W8I1M0MC0_R0.16_T0O0",
    ]


def test_summary_and_its_details(qwen: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cache_dit.enable_cache(qwen, DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2))
    qwen(...)
    run("stats = cache_dit.summary(pipe)", pipe=qwen)
    words = "| Cached Steps | Diffs Min | Diffs P25 | Diffs P50 | Diffs P75 | Diffs P95 | Diffs Max |"
    assert words in capsys.readouterr().out
    run("stats = cache_dit.summary(pipe, details=True)", pipe=qwen)
    assert words in capsys.readouterr().out


# Keyword arguments of enable_cache as the documents have them, and the short form of what is then in force.
SETTINGS = {
    "DBCache F8B8": (
        """
        cache_config=DBCacheConfig(
            max_warmup_steps=8,
            max_cached_steps=-1,
            Fn_compute_blocks=8,
            Bn_compute_blocks=8,
            residual_diff_threshold=0.12,
        ),
        """,
        "DBCache_F8B8_W8I1M0MC0_R0.12_T0O0",
    ),
    "DBCache F8B8, older name": (
        """
        cache_config=BasicCacheConfig(
            max_warmup_steps=8,
            max_cached_steps=-1,
            Fn_compute_blocks=8,
            Bn_compute_blocks=8,
            residual_diff_threshold=0.12,
        ),
        """,
        "DBCache_F8B8_W8I1M0MC0_R0.12_T0O0",
    ),
    "DBPrune": (
        """
        cache_config=DBPruneConfig(
            max_warmup_steps=8,
            residual_diff_threshold=0.12,
            enable_dynamic_prune_threshold=True,
        ),
        """,
        "DBPrune_F8B0_W8I1M0MC0_P0.12D_BLOCKS_T0O0",
    ),
    "DBPrune F8B8 with blocks that are kept": (
        """
        cache_config=DBPruneConfig(
            max_warmup_steps=8,
            Fn_compute_blocks=8,
            Bn_compute_blocks=8,
            residual_diff_threshold=0.12,
            enable_dynamic_prune_threshold=True,
            non_prune_block_ids=list(range(16,24)),
        ),
        """,
        "DBPrune_F8B8_W8I1M0MC0_P0.12D_BLOCKS_T0O0",
    ),
    "guidance": (
        """
        cache_config=DBCacheConfig(
            enable_separate_cfg=True,
            cfg_compute_first=False,
            cfg_diff_compute_separate=True,
        ),
        """,
        "DBCache_F8B0_W8I1M0MC0_R0.08_CFG1_T0O0",
    ),
    "TaylorSeer": (
        """
        cache_config=DBCacheConfig(
            max_warmup_steps=8,
            max_cached_steps=-1,
            Fn_compute_blocks=8,
            Bn_compute_blocks=8,
            residual_diff_threshold=0.12,
        ),
        calibrator_config=TaylorSeerCalibratorConfig(
            taylorseer_order=1,
        ),
        """,
        "DBCache_F8B8_W8I1M0MC0_R0.12_T1O1",
    ),
    "steps mask": (
        """
        cache_config=DBCacheConfig(
            Fn_compute_blocks=8,
            Bn_compute_blocks=0,
            residual_diff_threshold=0.12,
            steps_computation_mask=cache_dit.steps_mask(
                mask_policy="fast", total_steps=28,
            ),
            steps_computation_policy="dynamic",
        ),
        calibrator_config=TaylorSeerCalibratorConfig(
            taylorseer_order=1,
        ),
        """,
        "DBCache_F8B0_W8I1M0MC0_R0.12_SCM1111110100010000100000100001_dynamic_T1O1",
    ),
    "steps mask by bins": (
        """
        cache_config=DBCacheConfig(
            steps_computation_mask=cache_dit.steps_mask(
                compute_bins=[6, 1, 1, 1, 1],
                cache_bins=[1, 2, 5, 5, 5],
            ),
            steps_computation_policy="dynamic",
        ),
        """,
        "DBCache_F8B0_W8I1M0MC0_R0.08_SCM1111110100100000100000100000_dynamic_T0O0",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options, short = SETTINGS[name]
    flux.documented_steps = 28 if "mask" in name else STEPS
    monkeypatch.setattr(diffusers.FluxPipeline, "from_pretrained", lambda name, torch_dtype: flux)
    run(
        f"""
import cache_dit
from diffusers import FluxPipeline

pipe_or_adapter = FluxPipeline.from_pretrained(
    "black-forest-labs/FLUX.1-dev",
    torch_dtype=torch.bfloat16,
).to("cuda")

cache_dit.enable_cache(pipe_or_adapter)

from cache_dit import BasicCacheConfig, DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig

cache_dit.enable_cache(
    pipe_or_adapter,
    {textwrap.dedent(options)}
)
output = pipe_or_adapter(...)
"""
    )
    (stats,) = cache_dit.summary(flux, logging=False)
    assert stats.config == short
    assert stats.total_steps == flux.documented_steps


def test_pipe_or_adapter_is_disabled(qwen: Any) -> None:
    adapter = BlockAdapter(pipe=qwen, auto=True, forward_pattern=ForwardPattern.Pattern_1)
    kind = type(qwen.transformer)
    for pipe_or_adapter in (qwen, adapter):
        cache_dit.enable_cache(pipe_or_adapter)
        assert type(qwen.transformer) is not kind
        run("cache_dit.disable_cache(pipe_or_adapter)", pipe_or_adapter=pipe_or_adapter)
        assert type(qwen.transformer) is kind


def test_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    qwen = as_documented(QWEN_IMAGE_PIPELINE, QWEN_IMAGE_PIPELINE.build())
    # Traced as always; only that no machine code is made of it is different.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    limits = ("recompile_limit", "accumulated_recompile_limit")
    before = {name: getattr(torch._dynamo.config, name) for name in limits}
    qwen.documented_steps = 4
    try:
        run(
            """
            cache_dit.enable_cache(pipe, DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2))

            pipe.transformer = torch.compile(pipe.transformer)

            torch._dynamo.config.recompile_limit = 96
            torch._dynamo.config.accumulated_recompile_limit = 2048

            output = pipe(...)
            """,
            pipe=qwen,
            DBCacheConfig=DBCacheConfig,
        )
        assert cache_dit.summary(qwen, logging=False)[0].total_steps == 4
    finally:
        for name, value in before.items():
            setattr(torch._dynamo.config, name, value)
        torch._dynamo.reset()


def test_supported_pipelines() -> None:
    space = run("found = cache_dit.supported_pipelines()")
    count, names = space["found"]
    assert count == len(names)
    documented = (
        "Flux* Mochi* CogVideoX* Wan* HunyuanVideo* QwenImage* LTX* Allegro* CogView3Plus* CogView4* "
        "EasyAnimate* SkyReelsV2* StableDiffusion3* ConsisID* DiT* Amused* Bria* Lumina* OmniGen* PixArt* "
        "Sana* StableAudio* VisualCloze* AuraFlow* Chroma* ShapE* HunyuanDiT*"
    )
    assert set(documented.split()) <= set(names)
    # Cosmos and HiDream are listed by what their names go on with, and PAG is a HunyuanDiT too.
    for start in ("Cosmos", "HiDream"):
        assert any(name.startswith(start) for name in names)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`true.png` and `test.png`, and the same in folders."""
    for name, value in (("true", 100), ("test", 110)):
        (tmp_path / f"{name}_dir").mkdir()
        picture = Image.new("RGB", (32, 32), (value, value, value))
        for path in (f"{name}.png", f"{name}_dir/0.png", f"{name}_dir/1.png"):
            picture.save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("pictures")
def test_metrics() -> None:
    space = run(
        """
        from cache_dit.metrics import compute_psnr
        from cache_dit.metrics import compute_ssim
        from cache_dit.metrics import compute_fid
        from cache_dit.metrics import compute_lpips
        from cache_dit.metrics import compute_clip_score
        from cache_dit.metrics import compute_image_reward
        psnr, n = compute_psnr("true.png", "test.png")
        one = n
        psnr, n = compute_psnr("true_dir", "test_dir")
        ssim, n = compute_ssim("true_dir", "test_dir")
        """
    )
    # 20 log10(255 / 10)
    assert space["psnr"] == pytest.approx(28.13, abs=0.01)
    assert (space["one"], space["n"]) == (1, 2)
    assert 0.9 < space["ssim"] < 1.0


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("line", ["-h", "all -i1 true.png -i2 test.png", "all -i1 true_dir -i2 test_dir"])
def test_metrics_on_the_command_line(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cache-dit-metrics-cli", *line.split()])
    with pytest.raises(SystemExit) as ended:
        metrics_cli()
    assert ended.value.code == 0
    assert "psnr" in capsys.readouterr().out


def test_what_stands_in_for_the_others_is_there() -> None:
    named = [name for reason in NOT_RUN.values() for name in re.findall(r"test_\w+", reason)]
    assert named
    assert [name for name in named if not Path(__file__).with_name(f"{name}.py").is_file()] == []
