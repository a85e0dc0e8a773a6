"""`cache-dit bench`: its sub-commands, and `compare`: every cache over its strengths, on the demo model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache_dit.cli.bench_flops import flops
from cache_dit.cli.bench_run import run
from cache_dit.cli.bench_sweep import sweep
from cache_dit.cli.errors import plain_errors

if TYPE_CHECKING:
    from cache_dit.bench import Cell, Purpose, Setting

bench = typer.Typer(name="bench", help="Measure what caches save and lose, as tables.", no_args_is_help=True)
bench.command()(run)
bench.command()(flops)
bench.command()(sweep)


@bench.command()
def compare(
    only: Annotated[
        str,
        typer.Option(
            help="What to measure: a regular expression, found anywhere in 'system: setting'.",
            show_default="all",
        ),
    ] = "",
    steps: Annotated[list[int] | None, typer.Option(help="Denoising steps.", show_default="28, 50")] = None,
    cfg: Annotated[
        list[float] | None,
        typer.Option(help="Scale of classifier-free guidance; 1 turns it off.", show_default="1, 2"),
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Only the first prompts of the set.", show_default="all")
    ] = None,
    training: Annotated[
        bool,
        typer.Option(help="Draw the pictures that settings are chosen on; without it, those to report."),
    ] = False,
    every_setting: Annotated[
        bool,
        typer.Option(
            help="Report every setting. Without it, of systems with training scores only the settings that "
            "were best there at one of the budgets."
        ),
    ] = False,
    timed: Annotated[
        int, typer.Option(min=0, help="Pictures to report that are also timed, for each setting.")
    ] = 3,
    store: Annotated[
        list[Path] | None,
        typer.Option(
            help="Scores by picture. What is in one is not measured again; new lines go to the first.",
            show_default="bench/results/compare-pictures.csv",
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Measure nothing; write the tables and the figure only.")
    ] = False,
    write: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")] = Path(
        "bench/results"
    ),
) -> None:
    """Compare caches: FLOPs, time, PSNR and SSIM against uncached pictures, and fewer steps as the control.

    First `--training`, then without it; scores are kept as they come, so a run that is cut off goes on.
    """
    with plain_errors():
        from cache_dit.bench import Cell, Purpose, read, write_report

        stores = store or [Path("bench/results/compare-pictures.csv")]
        if not report:
            cells = [Cell(count, scale) for count in steps or (28, 50) for scale in cfg or (1.0, 2.0)]
            purpose = Purpose.TRAINING if training else Purpose.REPORT
            wanted = _wanted(only, stores, every_setting or training)
            _measure(cells, purpose, stores, prompts, 0 if training else timed, wanted)
        if not training:
            for path in write_report(read(stores), write):
                typer.echo(path)


def _measure(
    cells: list[Cell],
    purpose: Purpose,
    stores: list[Path],
    prompts: int | None,
    timed: int,
    wanted: Callable[[Setting], bool],
) -> None:
    from cache_dit.bench import all_systems, measure
    from cache_dit.demo import load_pipeline

    def told(setting: Setting) -> None:
        place = f"{setting.cell.steps} steps, guidance {setting.cell.cfg:g}"
        typer.echo(f"{place}: {setting.system}: {setting.strength}", err=True)

    measure(
        load_pipeline(),
        all_systems(),
        cells,
        purpose,
        stores,
        prompts=prompts,
        timed=timed,
        wanted=wanted,
        told=told,
    )


def _wanted(only: str, stores: list[Path], every: bool) -> Callable[[Setting], bool]:
    """The filter of settings, from the names asked for and the training scores."""
    from cache_dit.bench import Purpose, contenders, read, rows_of
    from cache_dit.errors import ConfigError

    try:
        pattern = re.compile(only)
    except re.error as error:
        raise ConfigError(f"--only is {only!r}, which is no regular expression: {error}.") from error
    tuned = {} if every else contenders(rows_of(read(stores), Purpose.TRAINING))

    def wanted(setting: Setting) -> bool:
        best = tuned.get((setting.cell, setting.system))
        kept = best is None or any(row.setting.point == setting.point for row in best)
        return kept and pattern.search(f"{setting.system}: {setting.strength}") is not None

    return wanted
