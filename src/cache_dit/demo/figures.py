"""The two figures of the demo: the pictures side by side, and what was decided at every step."""

from __future__ import annotations

import os
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from cache_dit.demo.comparison import Comparison, Sample
from cache_dit.errors import CacheDiTError

# Okabe and Ito's colours, which people with any colour vision can tell apart.
_BLUE, _ORANGE, _GREY, _INK = "#0072B2", "#D55E00", "#999999", "#222222"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "white",
    "figure.dpi": 120,
}
_COLUMNS = 8
_MOST = 24  # pictures in one figure; more would be too small to read
_AMPLIFY = (1, 2, 5, 10, 20, 50, 100)


def draw_pictures(result: Comparison, path: Path) -> Path:
    """Draw each picture uncached and cached, and the difference of the two, as a PNG file.

    Differences are shown on white, so that white is "equal", and amplified by one factor for all.

    Args:
        result: At most its first 24 samples are drawn.
        path: Name of the file, in a folder that exists; it appears only when it is complete.

    Returns:
        The path.
    """
    samples = result.samples[:_MOST]
    bands = [samples[start : start + _COLUMNS] for start in range(0, len(samples), _COLUMNS)]
    factor = _amplification(samples)
    side = 1.5 if len(bands[0]) > 4 else 2.0
    left, head, foot, title = 0.95, 0.6, 0.32, 0.78
    width = max(7.0, left + len(bands[0]) * side + 0.15)
    height = title + len(bands) * (head + 3 * side + foot)
    with new_figure(width, height) as figure:
        _title(figure, result, height, len(samples))
        for number, band in enumerate(bands):
            top = height - title - number * (head + 3 * side + foot) - head
            for row, label in enumerate(("uncached", "cached", f"difference\n×{factor}")):
                y = top - (row + 0.5) * side
                figure.text(0.85 / width, y / height, label, ha="right", va="center")
            for column, sample in enumerate(band):
                x = left + column * side
                pictures = (sample.uncached, sample.cached, _difference(sample, factor))
                for row, picture in enumerate(pictures):
                    box = (x / width, (top - (row + 1) * side + 0.06) / height)
                    axes = figure.add_axes((*box, (side - 0.06) / width, (side - 0.06) / height))
                    axes.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
                    axes.set(xticks=[], yticks=[])
                    axes.spines[:].set(visible=True, color="#cccccc", linewidth=0.6)
                middle = (x + (side - 0.06) / 2) / width
                caption = "\n".join(textwrap.wrap(sample.prompt, round(14 * side)))
                figure.text(middle, (top + 0.06) / height, caption, ha="center", va="bottom", fontsize=8)
                figure.text(
                    middle,
                    (top - 3 * side - 0.02) / height,
                    _score(sample),
                    ha="center",
                    va="top",
                    fontsize=8,
                )
        return save_figure(figure, path)


def draw_steps(result: Comparison, path: Path) -> Path:
    """Draw the measured change over the steps and which steps were cached, by CFG branch, as a PNG file.

    Args:
        result: All samples are drawn, the first of them with emphasis.
        path: Name of the file, in a folder that exists; it appears only when it is complete.

    Returns:
        The path.
    """
    branches = result.samples[0].branches
    strip = max(0.8, min(3.0, 0.16 * len(result.samples)))
    width, height = max(7.0, 5.2 * len(branches) + 0.6), 4.8 + strip
    with new_figure(width, height) as figure:
        _title(figure, result, height, len(result.samples))
        grid = figure.add_gridspec(
            2,
            len(branches),
            height_ratios=(2.6, strip),
            left=0.85 / width,
            right=1 - 0.2 / width,
            top=1 - 1.5 / height,
            bottom=0.55 / height,
            hspace=0.12,
            wspace=0.08,
        )
        highest = max([0.0, *(value for s in result.samples for by in s.changes for value in by.values())])
        top = 1.15 * max(highest, min(result.threshold or 0.0, 1.0)) or 1.0
        for place, name in enumerate(branches):
            curves = figure.add_subplot(grid[0, place])
            marks = figure.add_subplot(grid[1, place], sharex=curves)
            _curves(curves, result, place, top)
            _marks(marks, result, place)
            if len(branches) > 1:
                curves.set_title(_BRANCHES.get(name, name), fontsize=9)
            if place:
                for axes in (curves, marks):
                    axes.tick_params(labelleft=False)
            else:
                curves.set_ylabel("relative change of the\nfirst blocks' residual")
                marks.set_ylabel("picture")
            if not place:
                figure.legend(
                    *curves.get_legend_handles_labels(),
                    loc="upper left",
                    bbox_to_anchor=(0.72 / width, 1 - 0.8 / height),
                    ncols=5,
                    frameon=False,
                )
        return save_figure(figure, path)


_BRANCHES = {"cond": "with the prompt", "uncond": "without the prompt (guidance)"}


def _curves(axes: Any, result: Comparison, place: int, top: float) -> None:
    for number, sample in enumerate(result.samples[1:]):
        steps, values = _points(sample, place)
        label = "the other pictures" if number == 0 else None
        axes.plot(steps, values, color=_GREY, linewidth=0.7, alpha=0.6, label=label)
    first = result.samples[0]
    steps, values = _points(first, place)
    cached = set(first.cached_steps[place])
    axes.plot(steps, values, color=_BLUE, linewidth=1.6, label="the first picture")
    for kept, face, label in ((True, _BLUE, "its cached steps"), (False, "white", "its computed steps")):
        chosen = [(s, v) for s, v in zip(steps, values, strict=True) if (s in cached) == kept]
        if chosen:
            axes.plot(
                *zip(*chosen, strict=True),
                "o",
                color=_BLUE,
                markerfacecolor=face,
                markersize=4.5,
                label=label,
            )
    if result.threshold is not None and result.threshold < top:
        axes.axhline(result.threshold, color=_ORANGE, linewidth=1.2, linestyle="--", label="threshold")
    if not values:
        axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", color=_GREY)
    axes.set_ylim(0, top)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.tick_params(labelbottom=False)


def _marks(axes: Any, result: Comparison, place: int) -> None:
    """A row for each picture, a cell for each step: filled where the step was cached."""
    from matplotlib.colors import ListedColormap

    rows = [
        [step in set(sample.cached_steps[place]) for step in range(result.steps)] for sample in result.samples
    ]
    axes.pcolormesh(
        [step - 0.5 for step in range(result.steps + 1)],
        [row + 0.5 for row in range(len(rows) + 1)],
        [[float(cell) for cell in row] for row in rows],
        cmap=ListedColormap(["#f4f4f4", _BLUE]),
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=min(1.0, 30 / len(rows)),
    )
    axes.set(xlim=(-0.5, result.steps - 0.5), ylim=(len(rows) + 0.5, 0.5), xlabel="step  (filled: cached)")
    axes.set_yticks([1, len(rows)] if len(rows) > 1 else [1])
    axes.spines[:].set_visible(False)


def _points(sample: Sample, place: int) -> tuple[list[int], list[float]]:
    changes = sorted(sample.changes[place].items())
    return [step for step, _ in changes], [value for _, value in changes]


def _difference(sample: Sample, factor: int) -> Tensor:
    return 1 - factor * (sample.cached - sample.uncached).abs()


def _amplification(samples: Sequence[Sample]) -> int:
    """The largest factor at which hardly any pixel of any picture is cut off."""
    highest = max(float((s.cached - s.uncached).abs().flatten().quantile(0.999)) for s in samples)
    return max((factor for factor in _AMPLIFY if factor * highest <= 1), default=1)


def _score(sample: Sample) -> str:
    cached = statistics.fmean(len(steps) for steps in sample.cached_steps)
    return f"{sample.psnr:.1f} dB, {cached:.3g} cached" if sample.psnr < float("inf") else "equal"


def _title(figure: Any, result: Comparison, height: float, drawn: int) -> None:
    guidance = f", guidance {result.cfg:g}" if len(result.samples[0].branches) > 1 else ""
    count, fewer = len(result.samples), result.fewer_steps
    part = f"; {drawn} of {count} pictures are shown" if drawn < count else ""
    lines = (
        f"{result.steps} steps{guidance}: {result.flops:.0%} of the FLOPs, "
        f"{result.speedup.median:.2f}× as fast, {_quality(result.psnr)}{part}",
        f"control, {fewer.steps} steps without cache: {fewer.steps / result.steps:.0%} of the FLOPs, "
        f"{_quality(fewer.psnr)}",
    )
    size = min(11.0, 88 * figure.get_figwidth() / len(result.config))  # a long name is a small one
    figure.text(0.012, 1 - 0.12 / height, result.config, fontsize=size, weight="bold", va="top")
    for number, (line, colour) in enumerate(zip(lines, (_INK, "#666666"), strict=True)):
        figure.text(0.012, 1 - (0.37 + 0.2 * number) / height, line, color=colour, va="top")


def _quality(psnr: Sequence[float]) -> str:
    if min(psnr) == float("inf"):
        return "every picture equal"
    return f"PSNR {statistics.fmean(psnr):.1f} dB on average, {min(psnr):.1f} dB at worst"


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """Open a figure in the style of this module, of its own: pyplot and its windows are not involved.

    Args:
        width: In inches.
        height: Likewise.

    Raises:
        CacheDiTError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CacheDiTError(
            f"{error}; the figures need matplotlib: pip install 'cache-dit[demo]'."
        ) from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: Any, path: Path) -> Path:
    """Save a figure as a PNG file; written beside and renamed, so no half-written file ever has the name.

    Returns:
        The path.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(partial, format="png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
