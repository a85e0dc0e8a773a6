"""`cache-dit metrics` and `cache-dit-metrics-cli`: how near pictures are to others, and to their prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache_dit.cli.errors import plain_errors

if TYPE_CHECKING:
    from cache_dit.metrics import Measured, Options

_FILES, _MODELS, _OUTPUT = "What is compared", "Models of the metrics", "How it is computed and shown"
HELP = {"help_option_names": ["-h", "--help"]}


class Metric(Enum):
    """What can be asked for; `ALL` is every one that what is given suffices for."""

    PSNR = "psnr"
    SSIM = "ssim"
    MSE = "mse"
    LPIPS = "lpips"
    FID = "fid"
    CLIP_SCORE = "clip_score"
    IMAGE_REWARD = "image_reward"
    VIDEO_PSNR = "video_psnr"
    VIDEO_SSIM = "video_ssim"
    ALL = "all"


_OF_PICTURES = tuple(metric for metric in list(Metric)[:-1] if not metric.value.startswith("video"))
_OF_VIDEOS = (Metric.VIDEO_PSNR, Metric.VIDEO_SSIM)
_OF_PROMPTS = (Metric.CLIP_SCORE, Metric.IMAGE_REWARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """The options that say what to compare, and with what."""

    true: Path | None
    test: Path
    prompts: Path | None
    lpips_weights: Path | None
    fid_features: Path | None
    clip_model: Path | None
    reward: str | None


def metrics(
    wanted: Annotated[
        list[Metric], typer.Argument(metavar="METRIC...", help=", ".join(m.value for m in Metric))
    ],
    test: Annotated[
        Path,
        typer.Option(
            "-i2",
            "--img-test",
            "-v2",
            "--video-test",
            help="What is measured: a picture, a video, or a folder of pictures or of videos.",
            rich_help_panel=_FILES,
        ),
    ],
    true: Annotated[
        Path | None,
        typer.Option(
            "-i1",
            "--img-true",
            "-v1",
            "--video-true",
            help="The reference, of the same kind. Files of folders are matched by their names.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "-p",
            "--prompts",
            help="Text file with a prompt on each line, for clip_score and image_reward. The pictures have "
            "numbers in their names, from 0 or 1.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    lpips_weights: Annotated[
        Path | None,
        typer.Option(
            help="Folder with torchvision's AlexNet or VGG16 and the heads of the LPIPS release.",
            show_default="$LPIPS_MODEL_DIR",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    fid_features: Annotated[
        Path | None,
        typer.Option(
            help="Weights of FID's InceptionV3 (.pth, .safetensors), or a network as TorchScript (.pt).",
            show_default="$FID_MODEL_PATH",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    clip_model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a CLIP model in the form of transformers.",
            show_default="$CLIP_MODEL_DIR",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Function of a prompt and a picture that gives the image_reward. The module is imported.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to compute, such as cuda:1.", show_default="GPU, else CPU", rich_help_panel=_OUTPUT
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pictures at once.", show_default="8 on a GPU, 1 on a CPU", rich_help_panel=_OUTPUT
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write the value of every picture there.", rich_help_panel=_OUTPUT)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_OUTPUT)
    ] = False,
    short: Annotated[
        bool,
        typer.Option("-s", "--short", help="Print 'metric value n', a line each.", rich_help_panel=_OUTPUT),
    ] = False,
) -> None:
    """Measure pictures and videos against references or prompts.

    `all` is psnr, ssim and mse (for videos video_psnr and video_ssim), and the others whose models are given;
    it says what it left out.
    """
    with plain_errors():
        from cache_dit.metrics import write_scores

        given = _Given(
            true=true,
            test=test,
            prompts=prompts,
            lpips_weights=lpips_weights,
            fid_features=fid_features,
            clip_model=clip_model,
            reward=reward,
        )
        measured, left_out = _measure(wanted, given, {"device": device, "batch_size": batch_size})
        if as_json:
            typer.echo(json.dumps(_as_json(measured, left_out), indent=2))
        elif short:
            typer.echo("\n".join(f"{name} {got.value:.6g} {got.n}" for name, got in measured.items()))
        else:
            _show(measured, left_out)
        if csv is not None:
            write_scores(csv, measured)


def main() -> None:
    """Run `metrics` alone; the console script cache-dit-metrics-cli."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=HELP)
    app.command(no_args_is_help=True)(metrics)
    app()


def _measure(
    wanted: list[Metric], given: _Given, options: Options
) -> tuple[dict[str, Measured], dict[str, str]]:
    """The metrics by name, and of those that only `all` asked for why they were left out."""
    from cache_dit.metrics import NotGivenError

    _refuse_unused(wanted, given)
    measured: dict[str, Measured] = {}
    left_out: dict[str, str] = {}
    for metric in _chosen(wanted, given):
        try:
            measured[metric.value] = _compute(metric, given, options)
        except NotGivenError as error:
            if metric in wanted:
                raise
            left_out[metric.value] = str(error)
    return measured, left_out


def _chosen(wanted: list[Metric], given: _Given) -> list[Metric]:
    from cache_dit.metrics import holds_videos

    every = _OF_VIDEOS if holds_videos(given.test) else _OF_PICTURES
    chosen = [each for metric in wanted for each in (every if metric is Metric.ALL else (metric,))]
    return list(dict.fromkeys(chosen))


def _refuse_unused(wanted: list[Metric], given: _Given) -> None:
    from cache_dit.errors import ConfigError

    users: dict[str, tuple[Metric, ...]] = {
        "prompts": _OF_PROMPTS,
        "lpips_weights": (Metric.LPIPS,),
        "fid_features": (Metric.FID,),
        "clip_model": (Metric.CLIP_SCORE,),
        "reward": (Metric.IMAGE_REWARD,),
    }
    for name, metrics_of in users.items():
        if getattr(given, name) is not None and not {Metric.ALL, *metrics_of} & set(wanted):
            names = " and ".join(metric.value for metric in metrics_of)
            raise ConfigError(f"--{name.replace('_', '-')} is for {names} only; leave it out.")


def _compute(metric: Metric, given: _Given, options: Options) -> Measured:
    import cache_dit.metrics as m

    if metric in _OF_PROMPTS:
        if given.prompts is None:
            raise m.NotGivenError(f"{metric.value} needs prompts; give -p FILE.")
        if metric is Metric.CLIP_SCORE:
            return m.compute_clip_score(given.prompts, given.test, given.clip_model, **options)
        score = None if given.reward is None else m.named_score(given.reward)
        return m.compute_image_reward(given.prompts, given.test, score, **options)
    if given.true is None:
        raise m.NotGivenError(f"{metric.value} needs a reference; give -i1.")
    if metric is Metric.LPIPS:
        return m.compute_lpips(given.true, given.test, given.lpips_weights, **options)
    if metric is Metric.FID:
        return m.compute_fid(given.true, given.test, given.fid_features, **options)
    plain = {
        Metric.PSNR: m.compute_psnr,
        Metric.SSIM: m.compute_ssim,
        Metric.MSE: m.compute_mse,
        Metric.VIDEO_PSNR: m.compute_video_psnr,
        Metric.VIDEO_SSIM: m.compute_video_ssim,
    }
    return plain[metric](given.true, given.test, **options)


def _as_json(measured: Mapping[str, Measured], left_out: Mapping[str, str]) -> dict[str, Any]:
    metrics = {
        name: {
            "value": _number(result.value),
            "n": result.n,
            "low": _number(result.interval[0]),
            "high": _number(result.interval[1]),
        }
        for name, result in measured.items()
    }
    return {"metrics": metrics, "left_out": left_out}


def _number(value: float) -> float | str | None:
    """JSON has no infinity and no nan; Python and JavaScript both read the word as a number."""
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return None if math.isnan(value) else value


def _show(measured: Mapping[str, Measured], left_out: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "mean", "95 % interval", "n", box=None)
    for name, result in measured.items():
        low, high = result.interval
        interval = "" if math.isnan(low) else f"{low:.4f} to {high:.4f}"
        table.add_row(name, f"{result.value:.4f}", interval, str(result.n))
    Console().print(table)
    for name, reason in left_out.items():
        typer.echo(f"left out: {name}: {reason}")
