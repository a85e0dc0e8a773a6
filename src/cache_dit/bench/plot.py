"""The fronts of all systems as a figure: one panel for each number of steps and guidance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cache_dit.bench.pictures import Cell
from cache_dit.bench.system import Kind
from cache_dit.bench.table import BUDGETS, SLACK, Row, cells_of, curves, front
from cache_dit.demo.figures import new_figure, save_figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F00")
_CONTROL, _REST = "#222222", "#cccccc"
_STYLES = {Kind.OURS: ("-", "o"), Kind.DIFFUSERS: ("--", "s"), Kind.CONTROL: (":", "x")}
_SHOWN = (0.2, 0.65)  # fractions of FLOPs; above, all are close


def draw_fronts(rows: Sequence[Row], path: Path) -> Path:
    """Draw mean PSNR against FLOPs, the best settings of each system joined, as a PNG file.

    Args:
        rows: Rows of one set of pictures.
        path: Name of the file, in a folder that exists; it appears only when it is complete.

    Returns:
        The path.
    """
    cells = cells_of(rows)
    shown = [row for row in rows if _SHOWN[0] <= row.flops <= _SHOWN[1]]
    kinds = {row.setting.system: row.setting.kind for row in shown}
    colours = dict(zip(_leaders(shown), _COLOURS, strict=False))
    colours |= {system: _CONTROL for system, kind in kinds.items() if kind is Kind.CONTROL}
    columns = min(2, len(cells))
    lines = -(-len(cells) // columns)
    with new_figure(5.2 * columns + 2.6, 3.8 * lines + 0.4) as figure:
        grid = figure.subplots(lines, columns, sharex=True, squeeze=False)
        for axes, cell in zip(grid.flat, cells, strict=False):
            axes.set_title(_title(cell), fontsize=10, pad=14)  # above the names of the budgets
            axes.set(xlabel="FLOPs of the transformer, uncached run = 1", ylabel="mean PSNR, dB", xlim=_SHOWN)
            for name, budget in BUDGETS.items():
                axes.axvline(budget, color="#dddddd", linewidth=0.8, zorder=0)
                axes.annotate(name, (budget, 1), xycoords=("data", "axes fraction"), fontsize=7, ha="center")
            for (place, system), points in curves(shown).items():
                if place == cell:
                    best, named = front(points), system in colours
                    line, mark = _STYLES[kinds[system]]
                    axes.plot(
                        [row.flops for row in best],
                        [row.psnr for row in best],
                        label=system if named else "others, see the table",
                        color=colours.get(system, _REST),
                        linestyle=line,
                        marker=mark,
                        markersize=3.5 if named else 2,
                        linewidth=1.2 if named else 0.8,
                        zorder=2 if named else 1,
                    )
        handles = {
            label: handle
            for axes in grid.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        order = {name: place for place, name in enumerate(colours)}
        handles = dict(sorted(handles.items(), key=lambda item: order.get(item[0], len(order))))
        figure.legend(handles.values(), handles.keys(), loc="center right", frameon=False, fontsize=8)
        figure.tight_layout(rect=(0, 0, 1 - 2.5 / (5.2 * columns + 2.6), 1))
        return save_figure(figure, path)


def _leaders(rows: Sequence[Row]) -> list[str]:
    """The systems with a colour of their own: those that stand highest in the mean of cells and budgets."""
    places: dict[str, list[int]] = {}
    for cell in cells_of(rows):
        for budget in BUDGETS.values():
            best = {
                system: max((row.psnr for row in points if row.flops <= budget + SLACK), default=0.0)
                for (place, system), points in curves(rows).items()
                if place == cell and points[0].setting.kind is not Kind.CONTROL
            }
            for rank, system in enumerate(sorted(best, key=lambda system: -best[system])):
                places.setdefault(system, []).append(rank)
    return sorted(places, key=lambda system: sum(places[system]) / len(places[system]))[: len(_COLOURS)]


def _title(cell: Cell) -> str:
    return f"{cell.steps} steps" + (f", guidance {cell.cfg:g}" if cell.cfg > 1 else ", no guidance")
