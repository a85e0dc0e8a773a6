"""`cache-dit bench run`: the same prompts with many settings, as tables of quality, latency and FLOPs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache_dit.cli.errors import plain_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cache_dit.bench.drawbench import Variant
    from cache_dit.bench.drawbench_table import Row
    from cache_dit.bench.drawing import Job
    from cache_dit.bench.manifest import Drawn
    from cache_dit.bench.quality import Quality, Weights

_MODEL, _SETTINGS, _METRICS = "What is drawn", "With which settings", "What is measured"

Model = Annotated[
    str, typer.Option(help="Folder or hub id of a pipeline, or 'demo'.", rich_help_panel=_MODEL)
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="Text file with a prompt on each line.",
        show_default="32 prompts of the package",
        rich_help_panel=_MODEL,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1, help="Only so many of the first prompts.", show_default="all", rich_help_panel=_MODEL
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.", rich_help_panel=_MODEL)]
Cfg = Annotated[
    float | None,
    typer.Option(
        help="Scale of guidance: true_cfg_scale where the pipeline has it, else guidance_scale.",
        show_default="the pipeline's",
        rich_help_panel=_MODEL,
    ),
]
Side = Annotated[
    int | None,
    typer.Option(min=1, help="In pixels.", show_default="the pipeline's", rich_help_panel=_MODEL),
]
Seed = Annotated[
    int, typer.Option(help="Seed of the first picture; each next one has the next.", rich_help_panel=_MODEL)
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Type of the weights.", show_default="bfloat16, on a CPU float32", rich_help_panel=_MODEL
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where it runs.", show_default="cuda, else cpu", rich_help_panel=_MODEL),
]
Out = Annotated[
    Path,
    typer.Option(help="Folder of this run: pictures, what they cost, the tables. What is there is kept."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the tables.")]


def run(
    model: Model = "demo",
    prompts: Prompts = None,
    limit: Limit = None,
    steps: Steps = 50,
    cfg: Cfg = None,
    height: Side = None,
    width: Side = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            help="F8B0_W8M0MC3_T1O1_R0.12, or a preset such as 'taylorseer(5,2)'. May be repeated.",
            show_default=False,
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    configs: Annotated[
        str | None,
        typer.Option("--set", help="low, high, distilled-8 or distilled-4.", rich_help_panel=_SETTINGS),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="Of psnr, ssim, lpips, clip_score and image_reward, with commas.", rich_help_panel=_METRICS
        ),
    ] = "psnr,ssim",
    lpips_weights: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the weights of LPIPS.", show_default="LPIPS_MODEL_DIR", rich_help_panel=_METRICS
        ),
    ] = None,
    clip_model: Annotated[
        Path | None,
        typer.Option(help="Folder of a CLIP model.", show_default="CLIP_MODEL_DIR", rich_help_panel=_METRICS),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="For image_reward: module:function of a prompt and a picture.", rich_help_panel=_METRICS
        ),
    ] = None,
    out: Out = Path("cache-dit-bench"),
    as_json: Json = False,
) -> None:
    """Draw prompts with and without caches; tables of quality, latency and FLOPs in markdown.

    A run that was cut off goes on where it was: the same command again draws what is missing.
    """
    with plain_errors():
        from cache_dit.bench.drawbench import draw_all, variants_of
        from cache_dit.bench.drawbench_table import markdown
        from cache_dit.bench.quality import Weights, check
        from cache_dit.files import write_whole

        qualities = _qualities(metrics)
        weights = Weights(lpips=lpips_weights, clip=clip_model, reward=reward)
        check(qualities, weights)
        variants = variants_of([*(config or []), *_set(configs)])
        job = job_of(model, prompts, limit, steps, cfg, height, width, seed, dtype, device)
        lines = draw_all(job, variants, out, progress())
        rows = _rows(job, variants, lines, qualities, weights, out)
        text = markdown(job, rows)
        write_whole(out / "table.md", text)
        if as_json:
            typer.echo(json.dumps({"folder": str(out), "rows": [row.as_data() for row in rows]}))
        else:
            typer.echo(text, nl=False)


def job_of(
    model: str,
    prompts: Path | None,
    limit: int | None,
    steps: int,
    cfg: float | None,
    height: int | None,
    width: int | None,
    seed: int,
    dtype: str | None,
    device: str | None,
) -> Job:
    """The job that options describe."""
    import torch

    from cache_dit.bench.drawing import DEMO, Job, read_prompts
    from cache_dit.errors import ConfigError

    where = device or ("cuda" if torch.cuda.is_available() and model != DEMO else "cpu")
    kind = dtype or ("float32" if where == "cpu" else "bfloat16")
    if model == DEMO and (where, kind) != ("cpu", "float32"):
        raise ConfigError(
            f"--device is {where!r} and --dtype {kind!r}, but the demo model runs on the CPU in float32; "
            "leave both out, or give another --model."
        )
    if not isinstance(getattr(torch, kind, None), torch.dtype):
        raise ConfigError(f"--dtype is {kind!r}; give float32, float16 or bfloat16.")
    try:
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        fact = str(error).splitlines()[0]
        raise ConfigError(f"--device is {where!r}, which cannot be used here: {fact}") from error
    return Job(
        model=model,
        prompts=read_prompts(prompts, model, limit),
        steps=steps,
        height=height,
        width=width,
        cfg=cfg,
        seed=seed,
        dtype=kind,
        device=where,
    )


def progress() -> Callable[[str, int, int], None]:
    """Tell on stderr when a setting begins, and how many of its pictures are there."""
    last = ""

    def told(name: str, done: int, total: int) -> None:
        nonlocal last
        if name != last or done == total:
            typer.echo(f"{name}: {done} of {total}", err=True)
        last = name

    return told


def _qualities(names: str) -> list[Quality]:
    from cache_dit.bench.quality import Quality
    from cache_dit.caching.options import one_of

    found = [name.strip() for name in names.split(",")]
    for name in found:
        one_of(*(quality.value for quality in Quality))("--metrics", name)
    return [Quality(name) for name in dict.fromkeys(found)]


def _set(name: str | None) -> Sequence[str]:
    from cache_dit.bench.config_sets import ConfigSet
    from cache_dit.caching.options import one_of

    if name is None:
        return ()
    one_of(*(entry.value for entry in ConfigSet))("--set", name)
    return ConfigSet(name).configs


def _rows(
    job: Job,
    variants: Sequence[Variant],
    lines: Mapping[str, Sequence[Drawn]],
    qualities: Sequence[Quality],
    weights: Weights,
    out: Path,
) -> list[Row]:
    from cache_dit.bench.drawbench import UNCACHED
    from cache_dit.bench.drawbench_table import Row
    from cache_dit.bench.quality import measure

    base = out / UNCACHED.folder
    return [
        Row.of(
            variant,
            lines[variant.name],
            {
                quality: measure(quality, weights, job.prompts, base, out / variant.folder)
                for quality in qualities
            },
        )
        for variant in variants
    ]
