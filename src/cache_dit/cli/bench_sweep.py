"""`cache-dit bench sweep`: two thresholds against each other, as a table of times and pictures."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from cache_dit.cli.bench_run import (
    Cfg,
    Device,
    Dtype,
    Json,
    Model,
    Out,
    Prompts,
    Seed,
    Side,
    Steps,
    job_of,
    progress,
)
from cache_dit.cli.errors import plain_errors

_SETTINGS = "With which settings"


def sweep(
    model: Model = "demo",
    prompts: Prompts = None,
    limit: Annotated[int, typer.Option(min=1, help="Pictures of each pair; the table shows the first.")] = 1,
    steps: Steps = 50,
    cfg: Cfg = None,
    height: Side = None,
    width: Side = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    config: Annotated[
        str, typer.Option(help="Config string of all other options.", rich_help_panel=_SETTINGS)
    ] = "F1B0_W4M0MC0_T0O0",
    double: Annotated[
        str,
        typer.Option(
            help="Thresholds of the double stream blocks (the first list), with commas.",
            rich_help_panel=_SETTINGS,
        ),
    ] = "",
    single: Annotated[
        str,
        typer.Option(
            help="Thresholds of the single stream blocks (the second list): all with all.",
            rich_help_panel=_SETTINGS,
        ),
    ] = "",
    pair: Annotated[
        list[str] | None,
        typer.Option(
            help="In place of a grid: 0.1,0.2, double and single. May be repeated.",
            show_default=False,
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    out: Out = Path("cache-dit-sweep"),
    as_json: Json = False,
) -> None:
    """Draw with thresholds for double and single stream blocks; a table of times and pictures in markdown.

    For models with two lists of blocks, such as FLUX; each list then decides for itself. A run that was cut
    off goes on where it was.
    """
    with plain_errors():
        from cache_dit.bench.drawbench import UNCACHED, draw_all
        from cache_dit.bench.sweep import sweep_data, sweep_table, sweep_variants
        from cache_dit.errors import ConfigError
        from cache_dit.files import write_whole

        pairs = list(product(_numbers("--double", double), _numbers("--single", single)))
        for text in pair or ():
            values = _numbers("--pair", text)
            if len(values) != 2:
                raise ConfigError(f"--pair is {text!r}; give two thresholds, such as 0.1,0.2.")
            pairs.append((values[0], values[1]))
        variants = sweep_variants(config, pairs)
        job = job_of(model, prompts, limit, steps, cfg, height, width, seed, dtype, device)
        lines = draw_all(job, [UNCACHED, *variants.values()], out, progress())
        table = sweep_table(variants, lines)
        write_whole(out / "sweep.md", table)
        if as_json:
            typer.echo(json.dumps({"folder": str(out), "pairs": sweep_data(variants, lines)}))
        else:
            typer.echo(table, nl=False)


def _numbers(name: str, text: str) -> list[float]:
    from cache_dit.errors import ConfigError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}; give numbers with commas, such as 0.1,0.2.") from error
