"""`cache-dit bench flops`: what a model costs, with and without a cache, from its configuration alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache_dit.cli.errors import plain_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache_dit.bench.flops import Counted


def _size(told: str) -> Any:
    return typer.Option(min=1, help=told, show_default="the model's")


def flops(
    model_config: Annotated[
        str,
        typer.Option(
            help="FLUX, Qwen-Image, Wan2.2-T2V-A14B, HunyuanVideo, SD3.5-large, ...; the config.json of a "
            "transformer; or the class of one, with its defaults."
        ),
    ] = "FLUX",
    height: Annotated[int | None, _size("In pixels, a multiple of 16.")] = None,
    width: Annotated[int | None, _size("In pixels, a multiple of 16.")] = None,
    frames: Annotated[int | None, _size("Of a video: 1, 5, 9, ...")] = None,
    text_tokens: Annotated[int | None, _size("Tokens of the prompt, padding included.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    config: Annotated[
        list[str] | None,
        typer.Option(help="A config string or a preset. May be repeated.", show_default=False),
    ] = None,
    cached_steps: Annotated[
        float | None, typer.Option(min=0, help="So many of the steps are cached; a mean may be given.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0, help="A run has so many TFLOP: tell how many cached steps that means."),
    ] = None,
    per_module: Annotated[
        bool, typer.Option("--per-module", help="List the modules too, members of a list together.")
    ] = False,
    depth: Annotated[int, typer.Option(min=1, help="Of that list, in dots of a path.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count FLOPs without weights: of a step, of a cached step, and of runs. A few seconds, no GPU.

    A step is one forward of the transformer for one picture or video; guidance with two calls costs two.
    """
    with plain_errors():
        from cache_dit.bench.flops import count

        counted = count(model_config, height=height, width=width, frames=frames, text_tokens=text_tokens)
        rows = [_row(counted, text, steps, cached_steps, tflops) for text in config or ()]
        modules = counted.rows(depth) if per_module else []
        if as_json:
            typer.echo(json.dumps(_data(counted, steps, rows, modules)))
            return
        size = counted.size
        video = f", {size.frames} frames" if size.frames > 1 else ""
        typer.echo(
            f"{counted.name} ({type(counted.model).__name__}), {size.width}x{size.height}{video}, "
            f"{size.text_tokens} text tokens: {_number(counted.step)} TFLOP a step, "
            f"{_number(steps * counted.step)} in {steps} steps"
        )
        if rows:
            typer.echo("\n" + _table([{name: _cell(value) for name, value in row.items()} for row in rows]))
        if modules:
            heads = ("Module", "Class", "Count", "TFLOP", "Share")
            shown = [
                (path, kind, str(number), _number(tera), f"{tera / counted.step:.1%}")
                for path, kind, number, tera in modules
            ]
            typer.echo("\n" + _table([dict(zip(heads, row, strict=True)) for row in shown]))


def _row(
    counted: Counted, text: str, steps: int, cached_steps: float | None, tflops: float | None
) -> dict[str, Any]:
    from cache_dit.bench.flops import implied
    from cache_dit.errors import ConfigError
    from cache_dit.shorthand import parse_config

    preset = parse_config(text)
    saved = counted.saved(preset)
    row: dict[str, Any] = {"Config": text, "TFLOP a cached step": counted.step - saved}
    whole = steps * counted.step
    if cached_steps is not None:
        if cached_steps > steps:
            raise ConfigError(f"--cached-steps is {cached_steps:g} of {steps} steps; give {steps} at most.")
        total = whole - cached_steps * saved
        row |= {"Cached steps": cached_steps, "TFLOPs": total, "SpeedUp(↑)": whole / total if total else None}
    if tflops is not None:
        if not saved:
            raise ConfigError(
                f"{text} skips nothing of {counted.name}, so no cached steps follow from FLOPs."
            )
        row |= {"Given TFLOPs": tflops, "Cached steps that follow": implied(counted, preset, tflops, steps)}
    return row


def _data(
    counted: Counted, steps: int, rows: list[dict[str, Any]], modules: Sequence[tuple[Any, ...]]
) -> dict[str, Any]:
    return {
        "model": counted.name,
        "class": type(counted.model).__name__,
        "tflop_a_step": counted.step,
        "tflops": steps * counted.step,
        "configs": rows,
        "modules": [dict(zip(("path", "class", "count", "tflop"), row, strict=True)) for row in modules],
    }


def _table(rows: Sequence[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "-" if value is None else _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """Two digits behind the point; four that count for small models."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4g}"
