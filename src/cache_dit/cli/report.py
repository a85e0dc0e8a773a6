"""`cache-dit report`: one picture with and without a cache, or a comparison, as an HTML file."""

from __future__ import annotations

import dataclasses
import io
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache_dit.cli.bench_run import Cfg, Device, Dtype, Model, Seed, Side, Steps
from cache_dit.cli.errors import plain_errors

if TYPE_CHECKING:
    from cache_dit.bench.drawing import Job
    from cache_dit.presets import Preset

_DRAWN, _SETTING = "What is drawn", "With which settings"


def report(
    model: Model = "demo",
    prompt: Annotated[
        str | None,
        typer.Option(help="What to draw.", show_default="a prompt of the package", rich_help_panel=_DRAWN),
    ] = None,
    steps: Steps = 28,
    cfg: Cfg = None,
    height: Side = None,
    width: Side = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="F8B0_W8M0MC3_T1O1_R0.12, or a preset such as 'taylorseer(5,2)'.",
            show_default="that of enable_cache",
            rich_help_panel=_SETTING,
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="A file of cache-dit tune: its setting, with its steps, and all that was tried.",
            show_default=False,
            rich_help_panel=_SETTING,
        ),
    ] = None,
    comparison: Annotated[
        Path | None,
        typer.Option(
            help="A table of settings, such as bench/results/compare.csv. Without --config nothing is drawn.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file; an older report is replaced.")] = Path("run.html"),
) -> None:
    """Show a run as one HTML file: which steps were computed and why, what was saved, and the pictures.

    In a program: cache_dit.report(pipe, "run.html").
    """
    with plain_errors():
        from cache_dit.cli.bench_run import job_of
        from cache_dit.pages import report as write
        from cache_dit.tune import Profile

        command = shlex.join(["cache-dit", *sys.argv[1:]])
        if comparison is not None and config is None and profile is None:
            written = write(None, out, comparison=comparison, code=command)
        else:
            preset = _preset(config, profile)
            if isinstance(preset, Profile):
                guidance = [preset.arguments.get(name) for name in ("true_cfg_scale", "guidance_scale")]
                steps = preset.steps
                cfg = cfg or next((scale for scale in guidance if isinstance(scale, (int, float))), None)
            job = job_of(model, None, 1, steps, cfg, height, width, seed, dtype, device)
            if prompt is not None:
                job = dataclasses.replace(job, prompts=(prompt,))
            written = _draw(job, preset, out, comparison or profile, command)
        typer.echo(f"{written}: {written.stat().st_size / 1000:,.0f} kB")


def _preset(config: str | None, profile: Path | None) -> Preset | None:
    from cache_dit.errors import ConfigError
    from cache_dit.shorthand import parse_config
    from cache_dit.tune import Profile

    if config is not None and profile is not None:
        raise ConfigError("--config and --profile are both a setting; give one of them.")
    if profile is not None:
        return Profile.load(profile)
    return None if config is None else parse_config(config)


def _draw(job: Job, preset: Preset | None, out: Path, comparison: Path | None, command: str) -> Path:
    """Draw the picture without and with the cache, one right after the other."""
    from PIL import Image

    import cache_dit
    from cache_dit.bench.drawing import load

    typer.echo("drawing without and with the cache", err=True)
    camera = load(job)
    camera.warm_up()
    reference, reference_seconds = camera.picture(0)
    cache_dit.enable_cache(camera.pipe, preset)
    picture, seconds = camera.picture(0)
    return cache_dit.report(
        camera.pipe,
        out,
        picture=Image.open(io.BytesIO(picture)),
        reference=Image.open(io.BytesIO(reference)),
        prompt=job.prompts[0],
        seconds=seconds,
        reference_seconds=reference_seconds,
        comparison=comparison,
        code=command,
    )
