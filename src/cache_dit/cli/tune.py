"""`cache-dit tune`: from a target to a saved profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache_dit.cli.bench_run import Cfg, Device, Dtype, Limit, Model, Seed, Side
from cache_dit.cli.errors import plain_errors

if TYPE_CHECKING:
    from rich.table import Table

    from cache_dit.tune import Explorer, Figure, Measure, Profile, Tuned

_SEARCH = "How it is searched"
_NAMES = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "tolerance": "RMS error",
    "flops": "FLOPs, share",
    "time": "time, share",
}


def tune(
    target: Annotated[
        str,
        typer.Option(
            help="2x (that many times as fast), 'psnr>=45', 'ssim>=0.98', 'tolerance 0.02' (root mean square "
            "error of values from 0 to 1), 'flops<=0.4' or 'time<=0.5'.",
        ),
    ],
    model: Model = "demo",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file with a prompt on each line, 4 or more; half of them validate what was found.",
            show_default="prompts of the package",
            rich_help_panel="What is drawn",
        ),
    ] = None,
    limit: Limit = 16,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.", rich_help_panel="What is drawn")] = 28,
    cfg: Cfg = None,
    height: Side = None,
    width: Side = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Most settings that are tried.", rich_help_panel=_SEARCH)
    ] = 24,
    by: Annotated[
        str | None,
        typer.Option(
            help="What 2x is measured by: flops or time.",
            show_default="time, if uncached runs take the same but for a tenth",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    quality: Annotated[
        str,
        typer.Option(
            help="What is made best within a target of speed: psnr, ssim or tolerance.",
            rich_help_panel=_SEARCH,
        ),
    ] = "psnr",
    search: Annotated[
        str | None,
        typer.Option(
            help="optuna or bisection.", show_default="optuna if installed", rich_help_panel=_SEARCH
        ),
    ] = None,
    storage: Annotated[
        Path | None,
        typer.Option(
            help="File that keeps the trials of Optuna (.db: SQLite), so that a run that was killed goes on.",
            show_default=False,
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    trajectory: Annotated[
        Path | None,
        typer.Option(
            help="A file of cache-dit calibrate --method trajectory: also try what it has measured.",
            show_default=False,
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The profile, for cache_dit.tune.Profile.load.")] = Path(
        "profile.json"
    ),
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="Write the profile even if it misses the target.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the method and the strength that meet a target best; measured on prompts that were kept apart.

    The exit code is 1 where the target is missed there: then the best that was found is told, and no profile
    written.
    """
    with plain_errors():
        from cache_dit.bench.drawing import arguments_of, load
        from cache_dit.caching.maths.trajectory import Trajectory
        from cache_dit.cli.bench_run import job_of
        from cache_dit.tune import Measure, Profile, Target, default_space
        from cache_dit.tune import tune as tuned

        Target.parse(target)
        explorer = _explorer(search, trials, seed, storage)
        cost, near = _measure("--by", by, True), _measure("--quality", quality, False) or Measure.PSNR
        measured = None if trajectory is None else Trajectory.load(trajectory)
        if out.exists():
            Profile.load(out)  # nothing else is replaced
        job = job_of(model, prompts, limit, steps, cfg, height, width, seed, dtype, device)
        pipe = load(job).pipe
        found = tuned(
            pipe,
            job.prompts,
            target,
            num_inference_steps=steps,
            seed=seed,
            space=default_space(measured),
            search=explorer,
            by=cost,
            quality=near,
            told=lambda line: typer.echo(line, err=True),
            **arguments_of(pipe, job),
        )
        profile = found.profile
        if profile.met or best_effort:
            profile.save(out)
        _show(found, target, out if profile.met or best_effort else None, as_json)
        if not profile.met:
            raise typer.Exit(1)


def _explorer(search: str | None, trials: int, seed: int, storage: Path | None) -> Explorer:
    import importlib.util

    from cache_dit.caching.options import one_of
    from cache_dit.errors import ConfigError
    from cache_dit.tune import Bisection, OptunaSearch

    name = search or ("optuna" if storage or importlib.util.find_spec("optuna") else "bisection")
    one_of("optuna", "bisection")("--search", name)
    if name == "optuna":
        return OptunaSearch(trials=trials, seed=seed, storage=storage)
    if storage is not None:
        raise ConfigError(f"--storage is {storage}, but the bisection keeps nothing; search with optuna.")
    return Bisection(trials=trials)


def _measure(option: str, name: str | None, cost: bool) -> Measure | None:
    from cache_dit.caching.options import one_of
    from cache_dit.tune import Measure

    if name is None:
        return None
    one_of(*(one.value for one in Measure if one.is_cost == cost))(option, name)
    return Measure(name)


def _show(found: Tuned, asked: str, written: Path | None, as_json: bool) -> None:
    from rich.console import Console

    profile = found.profile
    if as_json:
        typer.echo(json.dumps({"asked": asked, "written": written and str(written), **profile.as_data()}))
        return
    console = Console()
    console.print(_table(profile, found.goal.target.measure))
    measured = profile.measured[found.goal.target.measure]
    mean, interval, _ = _cells(found.goal.target.measure, measured)
    console.print(
        f"{asked} ({profile.target}) is {'met' if profile.met else 'missed'} by {profile.method}: {mean} "
        f"({interval}) on the {measured.pictures} pictures of the validation half.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    told = f"written: {written}" if written else "nothing was written; --best-effort writes it nevertheless"
    console.print(told, soft_wrap=True, highlight=False, markup=False)


def _table(profile: Profile, target: Measure) -> Table:
    from rich.table import Table

    table = Table(
        title=f"{profile.method}, {profile.steps} steps",
        caption="Mean, its 95 % interval by bootstrap over pictures, and the worst picture. Predicted: on "
        "the tuning half, on which it was chosen; measured: on the validation half.",
        caption_justify="left",
    )
    for name in ("", "half", "mean", "95 %", "worst"):
        table.add_column(name, justify="right" if name in ("mean", "95 %", "worst") else "left", no_wrap=True)
    for measure, figure in profile.measured.items():
        style = "bold" if measure is target else None
        halves = {"predicted": profile.predicted.get(measure), "measured": figure}
        known = {half: one for half, one in halves.items() if one is not None}
        for place, (half, one) in enumerate(known.items()):
            table.add_row("" if place else _NAMES[measure.value], half, *_cells(measure, one), style=style)
    return table


def _cells(measure: Measure, figure: Figure) -> tuple[str, str, str]:
    digits = ".5f" if measure.value == "ssim" else ".4g"
    mean, low, high, worst = (
        format(value, digits) for value in (figure.mean, figure.low, figure.high, figure.worst)
    )
    return mean, f"{low} to {high}", worst
