"""`cache_dit.report`: one HTML file about a run, a comparison, or both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dit.api import attachments_of
from cache_dit.caching.attach.attachment import Attachment
from cache_dit.caching.attach.timeline import PipelineTimeline
from cache_dit.caching.block_adapters.register import adapter_of
from cache_dit.errors import ConfigError
from cache_dit.files import write_whole
from cache_dit.pages.fronts import Point, panels_of, read_points
from cache_dit.pages.run import Run, run_of
from cache_dit.stats import diagnose

if TYPE_CHECKING:
    from cache_dit.pages.pictures import Picture

# Every report begins with it, so that one may take the place of another, but not of any other file.
MARK = "<!-- a report of cache_dit -->"


def report(
    pipe_or_adapter: Any | None,
    path: str | os.PathLike[str],
    *,
    picture: Picture | None = None,
    reference: Picture | None = None,
    prompt: str = "",
    seconds: float | None = None,
    reference_seconds: float | None = None,
    comparison: str | os.PathLike[str] | Sequence[Point] | None = None,
    title: str | None = None,
    code: str | None = None,
) -> Path:
    """Write what caching did in the last run as one HTML file that loads nothing from anywhere.

    Args:
        pipe_or_adapter: What `enable_cache` was given, or the pipeline or transformer itself, after a run.
            None: only the comparison is shown.
        path: Name of the file. An older report there is replaced.
        picture: What the run has drawn: a path, a PIL image, or an array or tensor, [3, height, width] or
            [height, width, 3], floats from 0 to 1 or 8-bit values. None: no picture is shown.
        reference: The same without a cache (same prompt, seed and steps), to be compared with. None: the
            picture is shown alone.
        prompt: What was asked for, shown below the picture.
        seconds: Wall-clock time of the run. None: no times are shown.
        reference_seconds: That of the run without a cache. None: likewise.
        comparison: A CSV file of settings with cost and quality, see `cache_dit.pages.read_points`, or the
            points. None: there is none.
        title: Headline. None: the configuration in short form.
        code: How to do it again. None: the code that enables this configuration.

    Returns:
        The path.

    Raises:
        UnsupportedModelError: The object is no pipeline, transformer or adapter.
        ConfigError: Caching is not enabled on it, it has not run, there is a file of another kind at the
            path, an argument does not fit, or there is nothing to show.
        ConfigTypeError: A picture of a type that is not taken.
        OSError: A file cannot be read or written.

    Examples:
        >>> cache_dit.enable_cache(pipe)
        >>> image = pipe("a red house").images[0]
        >>> cache_dit.report(pipe, "run.html", picture=image)
    """
    # Both bring what the rest of the package does without: pictures, and a template engine.
    from cache_dit.pages.page import render
    from cache_dit.pages.pictures import pair_of
    from cache_dit.pages.reproduce import code_of

    if pipe_or_adapter is None and comparison is None:
        raise ConfigError("there is nothing to report; give a pipeline that has run, or a comparison.")
    if picture is None and reference is not None:
        raise ConfigError("reference is given without picture; give what the cached run has drawn too.")
    for name, value in (("seconds", seconds), ("reference_seconds", reference_seconds)):
        if value is not None and not 0.0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}; give the seconds that a run took, above 0.")
    attached = [] if pipe_or_adapter is None else attachments_of(pipe_or_adapter)
    runs = _runs(pipe_or_adapter, attached) if attached else []
    if code is None and runs:
        adapter = adapter_of(pipe_or_adapter)
        pipe = adapter.pipe if adapter.pipe is not None else attached[0].lists.model
        code = code_of(pipe, attached, max(entry.total_steps for run in runs for entry in run.stats))
    points = read_points(comparison) if isinstance(comparison, (str, os.PathLike)) else comparison
    text = render(
        mark=MARK,
        title=title or ("+".join(one.strify() for one in attached) or "Comparison"),
        runs=runs,
        findings=diagnose(pipe_or_adapter, logging=False) if attached else [],
        pair=None if picture is None else pair_of(picture, reference),
        prompt=prompt,
        seconds=seconds,
        reference_seconds=reference_seconds,
        panels=[] if points is None else panels_of(points),
        code=code or "",
    )
    write_whole(Path(path), text, mark=MARK)
    return Path(path)


def _runs(target: Any, attached: Sequence[Attachment]) -> list[Run]:
    pipe = adapter_of(target).pipe
    # Read now and not in the run, where it might wait for the device. Transformers that share a run each
    # have a part of the schedule, and which is not told.
    noise = None if pipe is None or len(attached) > 1 else PipelineTimeline(pipe).noise()
    found = [run_of(one, None if noise is None else noise.levels) for one in attached]
    runs = [run for run in found if run is not None]
    if not runs:
        raise ConfigError(
            f"{attached[0].lists.name} has not run since enable_cache; run the pipeline, then report."
        )
    return runs
