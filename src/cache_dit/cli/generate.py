"""`cache-dit generate`: a picture or video of a known model, with cache, parallelism and the rest on it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache_dit.cli.errors import plain_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache_dit.generate import Drawing, Family, Outcome, Stack

_DRAW, _CACHE, _FAST, _OUT = "What is drawn", "Cache", "Beside the cache", "What comes out"


def _of_family(told: str) -> Any:
    return typer.Option(help=told, show_default="the family's", rich_help_panel=_DRAW)


class _Offload(StrEnum):
    """As `cache_dit.generate.Offload`, which is slow to import."""

    MODEL = "model"
    SEQUENTIAL = "sequential"
    GROUP = "group"


def generate(
    family: Annotated[
        str, typer.Argument(help="The model: demo, flux, qwen_image, wan, ...; 'list' tells all of them.")
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_ID", help="Folder or hub id in the place of the family's own."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What to draw. Without it: a red house.", rich_help_panel=_DRAW)
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What not to draw.", rich_help_panel=_DRAW)
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="Picture to start from, for families that edit.", rich_help_panel=_DRAW),
    ] = None,
    height: Annotated[int | None, _of_family("In pixels.")] = None,
    width: Annotated[int | None, _of_family("In pixels.")] = None,
    frames: Annotated[int | None, _of_family("Frames of a video.")] = None,
    steps: Annotated[int | None, _of_family("Denoising steps.")] = None,
    cfg: Annotated[float | None, _of_family("Scale of guidance.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.", rich_help_panel=_DRAW)] = 0,
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache",
            help="Whether to cache. Without both: where --config or --preset says how.",
            rich_help_panel=_CACHE,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT_OR_FILE",
            help="F8B0_W8M0MC3_R0.12_T1O1, or a .yaml or .json file, which may have other sections too.",
            rich_help_panel=_CACHE,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME(ARGS)", help="A preset: 'taylorseer(interval=5)'.", rich_help_panel=_CACHE
        ),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Tell what the cache did.", rich_help_panel=_CACHE)
    ] = False,
    parallel: Annotated[
        str | None,
        typer.Option(
            help="ulysses, ring or tp, or several with sizes (ulysses:2,tp:2), under torchrun.",
            rich_help_panel=_FAST,
        ),
    ] = None,
    ulysses_anything: Annotated[
        bool, typer.Option("--ulysses-anything", help="Split any number of tokens.", rich_help_panel=_FAST)
    ] = False,
    ulysses_float8: Annotated[
        bool, typer.Option("--ulysses-float8", help="Exchange in float8: fewer bytes.", rich_help_panel=_FAST)
    ] = False,
    ulysses_async: Annotated[
        bool, typer.Option("--ulysses-async", help="Exchange while computing.", rich_help_panel=_FAST)
    ] = False,
    parallel_modules: Annotated[
        str | None,
        typer.Option(help="More components to spread: text_encoder,vae.", rich_help_panel=_FAST),
    ] = None,
    attn: Annotated[
        str | None,
        typer.Option(help="Kernel of attention: native, flash, _flash_3, sage, ...", rich_help_panel=_FAST),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Type: float8_per_row, int8_weight_only, ...", rich_help_panel=_FAST)
    ] = None,
    compile_blocks: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Compile the blocks.", rich_help_panel=_FAST)
    ] = None,
    offload: Annotated[
        _Offload | None, typer.Option(help="Weights wait in main memory.", rich_help_panel=_FAST)
    ] = None,
    vae_tiling: Annotated[
        bool, typer.Option("--vae-tiling", help="Decode in tiles: less memory.", rich_help_panel=_FAST)
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="bfloat16, float16 or float32. Without it: bfloat16 on a GPU.", rich_help_panel=_FAST
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...", rich_help_panel=_FAST)] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs.", rich_help_panel=_OUT)] = 1,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before, not timed.", rich_help_panel=_OUT)] = 0,
    track_memory: Annotated[
        bool, typer.Option("--track-memory", help="Tell the peak of memory.", rich_help_panel=_OUT)
    ] = False,
    out: Annotated[
        Path, typer.Option(help="A folder, or a .png, .mp4 or .gif file.", rich_help_panel=_OUT)
    ] = Path(),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_OUT)
    ] = False,
) -> None:
    """Draw a picture or video, with cache, parallelism, quantization and compilation as you like.

    Several GPUs: torchrun --nproc_per_node=2 --no-python cache-dit generate flux --parallel ulysses
    """
    with plain_errors():
        from cache_dit.generate import FAMILIES, Drawing, Offload, family_of, stack_of, suffix_of

        if family == "list":
            _list(FAMILIES, as_json)
            return
        kind = family_of(family)
        given: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
        drawing = Drawing(
            family=kind,
            negative_prompt=negative_prompt,
            image=image,
            height=height,
            width=width,
            frames=frames,
            steps=steps,
            cfg=cfg,
            seed=seed,
            **given,
        )
        suffix_of(drawing, out)
        stack = stack_of(
            kind,
            model=model,
            device=device,
            dtype=dtype,
            cache=cache,
            config=config,
            preset=preset,
            parallel=parallel,
            attn=attn,
            quantize=quantize,
            compile_blocks=compile_blocks,
            offload=None if offload is None else Offload(offload),
            vae_tiling=vae_tiling,
            ulysses_anything=ulysses_anything,
            ulysses_float8=ulysses_float8,
            ulysses_async=ulysses_async,
            extra_parallel_modules=parallel_modules.split(",") if parallel_modules else (),
        )
        data, words = _drawn(drawing, stack, out, summary, repeats, warmup, track_memory)
    if data is not None:
        typer.echo(json.dumps(data) if as_json else words)


def _drawn(
    drawing: Drawing, stack: Stack, out: Path, details: bool, repeats: int, warmup: int, track_memory: bool
) -> tuple[dict[str, Any] | None, str]:
    """What there is to tell, as data and in words; nothing but on the first rank, which writes the file."""
    from cache_dit.generate import as_data, generate, path_of, rank, ready, save

    # Libraries print too, and with --json nothing else may stand on stdout.
    with (
        contextlib.redirect_stdout(sys.stderr),
        ready(drawing.family, stack, report=print if rank() == 0 else None) as pipe,
    ):
        outcome = generate(pipe, drawing, stack, repeats=repeats, warmup=warmup, track_memory=track_memory)
        if rank() > 0:
            return None, ""
        path = path_of(drawing, stack, outcome, out)
        save(drawing, outcome, path)
        return as_data(drawing, stack, outcome, path), _words(pipe, stack, outcome, path, details)


def _words(pipe: Any, stack: Stack, outcome: Outcome, path: Path, details: bool) -> str:
    seconds = ", ".join(f"{value:.2f}" for value in outcome.seconds)
    lines = [f"{outcome.median:.2f} s" + (f" (median of {seconds})" if len(outcome.seconds) > 1 else "")]
    if outcome.peak_memory is not None:
        where = "of this process" if stack.device.type == "cpu" else "of the device"
        lines.append(f"{outcome.peak_memory / 2**30:.2f} GiB, peak memory {where}")
    for one in outcome.stats:
        saved = "" if one.flops_saved is None else f", {one.flops_saved:.0%} of FLOPs saved"
        lines.append(f"{one.model}: {len(one.cached_steps)} of {one.total_steps} steps cached{saved}")
    if details and outcome.stats:
        from cache_dit.stats import summary

        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            summary(pipe)
        lines.append(f"\n{text.getvalue()}")
    return "\n".join([*lines, str(path)])


def _list(families: Sequence[Family], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({one.name: {"model": one.model, "pipeline": one.pipeline} for one in families}))
        return
    width = max(len(one.name) for one in families)
    for one in families:
        typer.echo(f"{one.name:<{width}}  {one.model or 'ships with cache-dit'}")
