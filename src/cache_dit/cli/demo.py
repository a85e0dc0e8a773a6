"""`cache-dit demo`: real pictures of a small trained Flux, with and without caching."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache_dit.cli.errors import plain_errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cache_dit.caching.config import CalibratorConfig, DBCacheConfig
    from cache_dit.demo import Comparison, Spread

_CACHE, _RUN = "What is skipped", "What is drawn"


def demo(
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What to draw: 'a red house on grass at day with mountains', and other colours, objects "
            "(tree, balloon, mushroom), grounds (sand, snow) and times (sunset, night). May be repeated. "
            "Without it: 8 prompts.",
            show_default=False,
            rich_help_panel=_RUN,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Pictures of each prompt, with seeds from 0.", rich_help_panel=_RUN)
    ] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.", rich_help_panel=_RUN)] = 28,
    cfg: Annotated[
        float,
        typer.Option(
            min=1.0, help="Scale of classifier-free guidance; 1 turns it off.", rich_help_panel=_RUN
        ),
    ] = 2.0,
    fn: Annotated[
        int, typer.Option(help="First blocks that are always computed.", rich_help_panel=_CACHE)
    ] = 1,
    bn: Annotated[
        int, typer.Option(help="Last blocks that are always computed.", rich_help_panel=_CACHE)
    ] = 0,
    threshold: Annotated[
        float,
        typer.Option(
            help="A step is skipped while the first blocks' residual has changed by less than this since "
            "the last computed step; 0 never skips.",
            rich_help_panel=_CACHE,
        ),
    ] = 0.12,
    warmup: Annotated[
        int, typer.Option(help="First steps that are always computed.", rich_help_panel=_CACHE)
    ] = 4,
    max_continuous: Annotated[
        int, typer.Option(help="Most skipped steps in a row; -1: no limit.", rich_help_panel=_CACHE)
    ] = -1,
    order: Annotated[
        int | None,
        typer.Option(
            help="Skipped steps are forecast by a Taylor polynomial of this order, at most 4; 0 repeats the "
            "last computed value. Without it: the best linear estimate, as without a calibrator_config.",
            show_default=False,
            rich_help_panel=_CACHE,
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Only these steps may be skipped: slow, medium, fast or ultra. Replaces the warm-up.",
            rich_help_panel=_CACHE,
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed pairs of runs for each picture.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("cache-dit-demo"),
) -> None:
    """Draw pictures with and without caching, and say what was saved and what was lost."""
    with plain_errors():
        cache = _cache_config(fn, bn, threshold, warmup, max_continuous, mask, steps)
        calibrator = _calibrator_config(order)
        output.mkdir(parents=True, exist_ok=True)
        result = _compare(cache, calibrator, prompt, seeds, steps, cfg, repeats)
        _show(result, output)


def _cache_config(
    fn: int, bn: int, threshold: float, warmup: int, max_continuous: int, mask: str | None, steps: int
) -> DBCacheConfig:
    from cache_dit import DBCacheConfig, steps_mask

    return DBCacheConfig(
        Fn_compute_blocks=fn,
        Bn_compute_blocks=bn,
        residual_diff_threshold=threshold,
        max_warmup_steps=warmup,
        max_continuous_cached_steps=max_continuous,
        steps_computation_mask=None if mask is None else steps_mask(mask_policy=mask, total_steps=steps),
    )


def _calibrator_config(order: int | None) -> CalibratorConfig:
    from cache_dit import CalibratorConfig, TaylorSeerCalibratorConfig, TrajectoryCalibratorConfig

    if order is None:
        return TrajectoryCalibratorConfig()
    return CalibratorConfig() if order == 0 else TaylorSeerCalibratorConfig(taylorseer_order=order)


def _compare(
    cache: DBCacheConfig,
    calibrator: CalibratorConfig,
    prompts: Sequence[str] | None,
    seeds: int,
    steps: int,
    cfg: float,
    repeats: int,
) -> Comparison:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading the model", total=None)
        from cache_dit.demo import PROMPTS, compare, load_pipeline

        pipe = load_pipeline()
        bar.update(task, description="drawing")
        return compare(
            pipe,
            cache,
            calibrator,
            prompts=prompts or PROMPTS,
            seeds=range(seeds),
            steps=steps,
            cfg=cfg,
            repeats=repeats,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _show(result: Comparison, output: Path) -> None:
    from cache_dit.demo import draw_pictures, draw_steps

    console = _console()
    console.print(_table(result))
    for draw, name in ((draw_pictures, "pictures.png"), (draw_steps, "steps.png")):
        console.print(f"{draw(result, output / name)}", soft_wrap=True, highlight=False, markup=False)


def _table(result: Comparison) -> Table:
    from rich.table import Table

    count, fewer = len(result.samples), result.fewer_steps
    guidance = f", guidance {result.cfg:g}" if result.cfg > 1 else ""
    table = Table(
        title=f"{count} picture{'s' * (count > 1)}, {result.steps} steps{guidance}\n{result.config}",
        caption="Time and speed: whole pictures on one thread, uncached and cached in turn; median "
        "and quartiles. PSNR and SSIM: against the uncached picture; mean and worst.",
        caption_justify="left",
    )
    table.add_column(no_wrap=True)
    for name in ("uncached", "cached", "fewer steps"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("steps", str(result.steps), str(result.steps), str(fewer.steps))
    table.add_row("of them cached", "0", _cached_steps(result), "0")
    table.add_row("transformer FLOPs", "100%", f"{result.flops:.1%}", f"{fewer.steps / result.steps:.1%}")
    seconds = (result.seconds_uncached, result.seconds_cached)
    table.add_row("seconds a picture", *(f"{spread.median:.2f}" for spread in seconds), "")
    table.add_row("speed", "1×", _spread(result.speedup), "")
    table.add_row("PSNR, dB", "", _mean_and_worst(result.psnr, 1), _mean_and_worst(fewer.psnr, 1))
    table.add_row("SSIM", "", _mean_and_worst(result.ssim, 4), _mean_and_worst(fewer.ssim, 4))
    return table


def _cached_steps(result: Comparison) -> str:
    """The mean over pictures and branches, and the range where there is one."""
    counts = [len(steps) for sample in result.samples for steps in sample.cached_steps]
    if min(counts) == max(counts):
        return str(counts[0])
    return f"{statistics.fmean(counts):.1f} ({min(counts)} to {max(counts)})"


def _mean_and_worst(values: Sequence[float], digits: int) -> str:
    return f"{statistics.fmean(values):.{digits}f} ({min(values):.{digits}f})"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f}× ({spread.low:.2f} to {spread.high:.2f})"


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)
