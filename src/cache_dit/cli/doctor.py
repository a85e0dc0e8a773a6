"""`cache-dit doctor`: is this installation sound, and do these settings cache anything?"""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from cache_dit.cli.errors import plain_errors

_PACKAGES = ("cache-dit", "torch", "diffusers", "transformers", "peft", "torchao")


def doctor(
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the run.")] = 28,
    threshold: Annotated[float, typer.Option(help="residual_diff_threshold; 0 never skips.")] = 0.12,
    warmup: Annotated[int, typer.Option(help="max_warmup_steps.")] = 4,
    fn: Annotated[int, typer.Option(help="Fn_compute_blocks.")] = 1,
    bn: Annotated[int, typer.Option(help="Bn_compute_blocks.")] = 0,
) -> None:
    """Show versions and devices, draw one picture with the demo model, and say what is wrong or idle.

    The exit code is 1 if something was found. In a program: cache_dit.diagnose(pipe).
    """
    with plain_errors():
        import cache_dit
        from cache_dit.demo import PROMPTS, generate, load_pipeline

        typer.echo(_environment())
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=fn,
            Bn_compute_blocks=bn,
            residual_diff_threshold=threshold,
            max_warmup_steps=warmup,
        )
        pipe = cache_dit.enable_cache(load_pipeline(), config)
        generate(pipe, PROMPTS[0], steps=steps)
        cache_dit.summary(pipe)
        if cache_dit.diagnose(pipe, logging=False):
            raise typer.Exit(1)
        typer.echo("\nNothing is wrong: steps are cached as configured.")


def _environment() -> str:
    import torch

    lines = [f"{name} {_version(name)}" for name in _PACKAGES]
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return "\n".join([", ".join(lines), f"devices: {', '.join(devices) or 'CPU'}", ""])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
