"""The command and its sub-commands. Whatever is slow to import is imported when a sub-command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cache_dit._version import __version__
from cache_dit.cli.bench import bench
from cache_dit.cli.calibrate import calibrate
from cache_dit.cli.demo import demo
from cache_dit.cli.doctor import doctor
from cache_dit.cli.generate import generate
from cache_dit.cli.metrics import HELP, metrics
from cache_dit.cli.models import models
from cache_dit.cli.report import report
from cache_dit.cli.tune import tune

app = typer.Typer(
    name="cache-dit",
    help="Faster diffusion transformers: what changes little from step to step is not computed again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
app.command()(demo)
app.command()(doctor)
app.command(no_args_is_help=True)(generate)
app.command(no_args_is_help=True)(metrics)
app.command()(models)
app.command()(report)
app.command(no_args_is_help=True)(tune)
app.command(no_args_is_help=True)(calibrate)
app.add_typer(bench)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Run the command; the console script of the package."""
    app()
