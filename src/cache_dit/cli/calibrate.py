"""`cache-dit calibrate`: what some methods need to know of a model, measured once and kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache_dit.cli.bench_run import Cfg, Device, Dtype, Model, Prompts, Seed, Side
from cache_dit.cli.errors import plain_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cache_dit.bench.drawing import Job
    from cache_dit.tune import Search

# Every method, and the prompts that it needs.
_METHODS = {"trajectory": 8, "closed_loop": 48, "dpcache": 4, "lemica": 1, "magcache": 1}


def calibrate(
    method: Annotated[
        str,
        typer.Option(
            help="trajectory (for presets.trajectory), closed_loop (its steps), dpcache or lemica "
            "(schedules), or magcache (ratios)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    model: Model = "demo",
    prompts: Prompts = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Only so many of the first prompts.",
            show_default="8; closed_loop 48; dpcache 4; lemica, magcache 1",
            rich_help_panel="What is drawn",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.", rich_help_panel="What is drawn")] = 28,
    cfg: Cfg = None,
    height: Side = None,
    width: Side = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    compute: Annotated[
        float,
        typer.Option(help="Of closed_loop, dpcache and lemica: share of the steps that are computed."),
    ] = 0.5,
    trajectory: Annotated[
        Path | None,
        typer.Option(help="Of closed_loop: the file of --method trajectory, from as many steps."),
    ] = None,
    longest_gap: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of dpcache and lemica: most steps from a computed step to the next; lemica draws about "
            "steps x (longest gap - 1) pictures for each prompt.",
            show_default="12; lemica 8",
        ),
    ] = None,
) -> None:
    """Run a model on a few prompts and keep what a method needs to know of it.

    trajectory costs an uncached run for each prompt, dpcache and magcache too; closed_loop 8 cached runs
    more, and lemica very many.
    """
    with plain_errors():
        from cache_dit.bench.drawing import arguments_of, load
        from cache_dit.caching.options import one_of
        from cache_dit.cli.bench_run import job_of

        one_of(*_METHODS)("--method", method)
        _check_replaceable(method, out)
        search = _search(method, steps, compute, longest_gap, trajectory)
        few = _METHODS[method] if limit is None else limit
        job = job_of(model, prompts, few, steps, cfg, height, width, seed, dtype, device)
        pipe = load(job).pipe
        typer.echo(f"{method}: {len(job.prompts)} prompts, {steps} steps", err=True)
        arguments = arguments_of(pipe, job)
        if search is not None:
            _schedule(search, pipe, job, out, arguments, _count(compute, steps))
            use = f"Schedule.load({str(out)!r})"
            if method == "closed_loop":
                method, use = "trajectory", f"{use}, Trajectory.load({str(trajectory)!r})"
            _tell(out, f"presets.{method}({use})")
        elif method == "trajectory":
            _trajectory(pipe, job, out, arguments)
        else:
            _magcache(pipe, job, out, arguments)


def _check_replaceable(method: str, out: Path) -> None:
    """What is there, if anything, must be of the same kind: the runs take long, and come before the file."""
    from cache_dit import load_configs
    from cache_dit.caching.maths.schedule import Schedule
    from cache_dit.caching.maths.trajectory import Trajectory

    if out.exists():
        {"trajectory": Trajectory.load, "magcache": load_configs}.get(method, Schedule.load)(out)


def _trajectory(pipe: Any, job: Job, out: Path, arguments: Mapping[str, Any]) -> None:
    from cache_dit.tune import calibrate as measure

    measure(pipe, job.prompts, num_inference_steps=job.steps, seed=job.seed, **arguments).save(out)
    _tell(out, f"presets.trajectory(0.5, Trajectory.load({str(out)!r}))")


def _magcache(pipe: Any, job: Job, out: Path, arguments: Mapping[str, Any]) -> None:
    from cache_dit import presets, save_configs
    from cache_dit.tune import magcache_ratios

    ratios = magcache_ratios(pipe, job.prompts, num_inference_steps=job.steps, seed=job.seed, **arguments)
    preset = presets.magcache([float(f"{ratio:.6g}") for ratio in ratios])
    save_configs(out, cache_config=preset.cache_config, calibrator_config=preset.calibrator_config)
    _tell(out, f"**load_configs({str(out)!r})")


def _search(
    method: str, steps: int, compute: float, longest_gap: int | None, trajectory: Path | None
) -> Search | None:
    """How the schedule of a method is found; None for a method that has none."""
    from cache_dit.caching.options import real
    from cache_dit.errors import ConfigError
    from cache_dit.tune import DPCache, LeMiCa

    if method not in ("closed_loop", "dpcache", "lemica"):
        return None
    real(0.0, 1.0)("--compute", compute)
    count = _count(compute, steps)
    if method == "closed_loop":
        return _closed_loop(count, steps, trajectory)
    kind = DPCache if method == "dpcache" else LeMiCa
    search = kind() if longest_gap is None else kind(longest_gap=longest_gap)
    fewest = search.fewest(steps)
    if count < fewest:
        raise ConfigError(
            f"--compute is {compute:g}, which is {count} of {steps} steps, and with {search.longest_gap} "
            f"steps at most from one to the next it takes {fewest}; give a larger --compute or --longest-gap."
        )
    return search


def _closed_loop(count: int, steps: int, trajectory: Path | None) -> Search:
    from cache_dit.caching.maths.trajectory import Trajectory
    from cache_dit.errors import ConfigError
    from cache_dit.tune import ClosedLoop

    if trajectory is None:
        raise ConfigError("closed_loop tries steps for a measured trajectory; give its file by --trajectory.")
    measured = Trajectory.load(trajectory)
    if measured.steps != steps:
        raise ConfigError(
            f"--trajectory {trajectory} is from {measured.steps} steps and --steps is {steps}; measure it "
            "with as many."
        )
    return ClosedLoop(trajectory=measured, computed_steps=count)


def _count(compute: float, steps: int) -> int:
    return max(2, round(compute * steps))


def _schedule(
    search: Search, pipe: Any, job: Job, out: Path, arguments: Mapping[str, Any], count: int
) -> None:
    from cache_dit.tune import observe

    seen = observe(
        pipe, job.prompts, num_inference_steps=job.steps, search=search, seed=job.seed, **arguments
    )
    seen.schedule(count).save(out)


def _tell(out: Path, use: str) -> None:
    typer.echo(f"{out}: cache_dit.enable_cache(pipe, {use})")
