"""Draw, and measure what it took."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from cache_dit.caching.attach.override import attachment_of
from cache_dit.caching.attach.targets import cached_models
from cache_dit.demo.model import check_prompt
from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.generate.families import DEMO
from cache_dit.generate.settings import Drawing, Stack, rank, shows_progress
from cache_dit.stats import CacheStats, summary


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of it.

    Attributes:
        frames: Pictures of PIL: one, or those of a video.
        seconds: Of each timed run of the whole pipeline.
        peak_memory: Bytes: of the device that needed most in the timed runs, or, on a CPU, of this process
            since it began; None where it was not asked for.
        stats: What caching did in the last run; empty without a cache, and on all ranks but the first.
    """

    frames: Sequence[Any]
    seconds: tuple[float, ...]
    peak_memory: int | None
    stats: tuple[CacheStats, ...]

    @property
    def median(self) -> float:
        """Seconds of the run in the middle."""
        return statistics.median(self.seconds)


def generate(
    pipe: Any,
    drawing: Drawing,
    stack: Stack,
    *,
    repeats: int = 1,
    warmup: int = 0,
    track_memory: bool = False,
) -> Outcome:
    """Run a pipeline that `ready` has made.

    Args:
        pipe: The pipeline.
        drawing: What to draw.
        stack: What is on the pipeline.
        repeats: Timed runs, all with the same seed.
        warmup: Runs before them that are not timed: kernels are compiled and chosen in the first.
        track_memory: Find the peak out.

    Returns:
        The pictures, and what they cost.

    Raises:
        CacheDiTError: The pipeline refuses its arguments, or the memory of the device is too small.
    """
    if drawing.family is DEMO and stack.model is None:
        check_prompt(pipe, drawing.prompt)
    pipe.set_progress_bar_config(disable=not shows_progress())
    arguments = drawing.arguments()
    if drawing.image is not None:
        arguments["image"] = _opened(drawing)
    for _ in range(warmup):
        _run(pipe, arguments, drawing.seed, stack.device)
    if track_memory and stack.device.type != "cpu":
        torch.get_device_module(stack.device).reset_peak_memory_stats()
    runs = [_run(pipe, arguments, drawing.seed, stack.device) for _ in range(repeats)]
    peak = _peak_memory(stack) if track_memory else None
    cached = any(attachment_of(model) is not None for model in cached_models(pipe))
    # Counting FLOPs takes seconds, and only the first rank tells them.
    stats = tuple(summary(pipe, logging=False)) if cached and rank() == 0 else ()
    drawn = runs[-1][0]
    frames = drawn if isinstance(drawn, list) else [drawn]
    return Outcome(frames, tuple(seconds for _, seconds in runs), peak, stats)


def _opened(drawing: Drawing) -> Any:
    from PIL import Image

    try:
        with Image.open(str(drawing.image)) as image:
            return image.convert("RGB").resize((int(drawing.width or 0), int(drawing.height or 0)))
    except Image.DecompressionBombError as error:
        raise ConfigError(f"image is {drawing.image}, which is too large: {error}") from error


def _run(pipe: Any, arguments: dict[str, Any], seed: int, device: torch.device) -> tuple[Any, float]:
    generator = torch.Generator("cpu").manual_seed(seed)
    _wait(device)
    start = time.perf_counter()
    try:
        made = pipe(**arguments, generator=generator, output_type="pil", return_dict=False)
    except torch.OutOfMemoryError as error:
        raise CacheDiTError(
            f"the memory of {device} is too small; give --offload group, --quantize or a smaller "
            f"size. {error}"
        ) from error
    except CacheDiTError:
        raise
    except ValueError as error:
        raise CacheDiTError(f"{type(pipe).__name__} refuses: {error}") from error
    _wait(device)
    return made[0][0], time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def _peak_memory(stack: Stack) -> int:
    if stack.device.type != "cpu":
        mine = torch.get_device_module(stack.device).max_memory_allocated()
    else:
        import resource

        # Kibibytes, but bytes on macOS.
        mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if stack.parallelism is None:
        return int(mine)
    most = torch.tensor([mine], dtype=torch.int64, device=stack.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)
