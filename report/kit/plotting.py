"""How figures are made: one style, type of 7 points and more, direct labels, bytes that repeat."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.typing import RcKeyType
from numpy.typing import NDArray

from report.kit.looks import looks_of

WIDTH = 6.9
"""Width of every figure in inches: the text width of an A4 page."""

SIZE = 7.0
"""Size of the smallest type in points, on paper: figures are as wide as the text."""

_STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": SIZE,
    "axes.titlesize": 7.5,
    "legend.fontsize": SIZE,
    "legend.frameon": False,
    "axes.labelsize": SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "xtick.labelsize": SIZE,
    "ytick.labelsize": SIZE,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "savefig.dpi": 220,
    "pdf.fonttype": 42,
}


def style() -> AbstractContextManager[None]:
    """Everything about a figure, from its making to its saving, happens inside this context."""
    return rc_context(_STYLE)


def panels(rows: int, columns: int, height: float, share_x: bool = True) -> tuple[Figure, list[list[Axes]]]:
    """A figure of page width with a grid of axes; no global state, so that figures do not touch one another.

    Args:
        height: of one row, in inches.
        share_x: whether the panels of a column share their x axis.
    """
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex="col" if share_x else "none")
    return figure, [list(line) for line in axes]


def grid_over_strip(rows: int, columns: int, height: float) -> tuple[Figure, list[list[Axes]], list[Axes]]:
    """As `panels`, all sharing their axes, with a low strip under each column; rows are `height` inches high."""
    strip = 0.42
    figure = Figure(figsize=(WIDTH, height * rows + strip + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [height] * rows + [strip]
    axes = figure.subplots(rows + 1, columns, squeeze=False, sharex=True, height_ratios=ratios)
    lines = [list(line) for line in axes]
    for line in lines[:-1]:
        for cell in line[1:]:
            cell.sharey(line[0])
            cell.tick_params(labelleft=False)
    return figure, lines[:-1], lines[-1]


def stacked(height: float, band: float, strip: float) -> tuple[Figure, Axes, Axes | None, Axes]:
    """Axes over a narrow band (None for a band of no height) over a strip, all of page width and with one x axis.

    Args:
        height, band, strip: in inches.
    """
    heights = [height, *([band] if band else []), strip]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    return figure, axes[0], axes[1] if band else None, axes[-1]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG at `path` and a PDF beside it, without a word of who wrote them and when.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    nobody = {"Creator": None, "Producer": None, "CreationDate": None}
    figure.savefig(path.with_suffix(".pdf"), format="pdf", metadata=nobody)


def legend(figure: Figure, labels: Sequence[str]) -> None:
    """Name the methods under the panels, each with its colour, marker and dashes. To be called before `settle`."""
    looks = looks_of(labels)
    lines = [
        Line2D([], [], color=look.colour, marker=look.marker, dashes=look.dashes, markersize=4)
        for look in looks.values()
    ]
    figure.legend(lines, list(looks), loc="outside lower center", ncols=5, handlelength=3.2)


def settle(figure: Figure) -> None:
    """Lay the figure out for good. Names are placed by where the axes then are, and must not move them again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def end_labels(
    axes: Axes, labels: Sequence[tuple[float, float, str, str]], room: float, left: bool = False, below: float = 0.0
) -> None:
    """Write names beside the ends of lines, moved apart where they would touch, each tied to its end by a thin line.

    The figure must have been settled before.

    Args:
        labels: x and y of the end in data units, name, colour.
        room: share of the axes' width to keep free for the names.
        left: whether the names go left of the lines' beginnings instead of right of their ends.
        below: share of the height that is not theirs.
    """
    if not labels:
        return
    tie = {"relpos": (1.0, 0.5)} if left else {}
    height = axes.get_window_extent().height
    to_axes = axes.transData + axes.transAxes.inverted()
    low, high = axes.get_ylim()
    labels = [(x, min(max(y, low), high), name, colour) for x, y, name, colour in labels]
    ends = sorted((to_axes.transform((x, y))[1], x, y, name, colour) for x, y, name, colour in labels)
    gap = min(
        SIZE * 1.2 * axes.figure.dpi / 72 / height / (1 - below), 1 / max(1, len(ends) - 1) if len(ends) > 1 else 1
    )
    free = _spread([(end[0] - below) / (1 - below) for end in ends], gap)
    places = [below + (1 - below) * place for place in free]
    for place, (_, x, y, name, colour) in zip(places, ends, strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(room - 0.03 if left else 1 - room + 0.03, place),
            textcoords="axes fraction",
            va="center",
            ha="right" if left else "left",
            fontsize=SIZE,
            color=colour,
            annotation_clip=False,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 1, "shrinkB": 2, "alpha": 0.6}
            | tie,
        )


def _spread(places: list[float], gap: float) -> list[float]:
    """Sorted places at least `gap` apart and within 0..1 where they fit, moved as little as pooling them allows."""
    pools: list[tuple[float, int]] = []
    for place in places:
        centre, count = place, 1
        while pools and centre - (count - 1) * gap / 2 < pools[-1][0] + (pools[-1][1] - 1) * gap / 2 + gap:
            other, others = pools.pop()
            centre, count = (centre * count + other * others) / (count + others), count + others
        half = (count - 1) * gap / 2
        pools.append((min(max(centre, half + gap / 2), max(1 - half - gap / 2, half + gap / 2)), count))
    spread = [centre + (index - (count - 1) / 2) * gap for centre, count in pools for index in range(count)]
    for index in range(1, len(spread)):
        spread[index] = max(spread[index], spread[index - 1] + gap)
    return spread


def accuracy_scale(axes: Axes, values: Sequence[float], below: float = 0.0) -> None:
    """Set the y axis for accuracies in percent.

    A wide range would press the good rows into a line, so it is then drawn by the logarithm of the error.

    Args:
        below: share of the height to keep free under the lowest value.
    """
    low, high = min(values), max(values)
    free = below / (1 - below)
    if high - low <= 12 or high >= 99.95:
        pad = max((high - low) * 0.06, 0.05)
        axes.set_ylim(low - pad - free * (high - low + 2 * pad), high + pad)
        axes.yaxis.set_major_locator(FixedLocator([t for t in axes.get_yticks() if t >= low - pad]))
        return
    axes.set_yscale("function", functions=(_log_error, _accuracy))
    bottom, top = (float(value) for value in _log_error(np.array([low, high])))
    pad = 0.05 * (top - bottom)
    limits = _accuracy(np.array([bottom - pad - free * (top - bottom + 2 * pad), top + pad]))
    axes.set_ylim(float(limits[0]), float(limits[1]))
    axes.yaxis.set_major_locator(FixedLocator(_apart(low, high, 0.09 * (top - bottom) / (1 - below))))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _apart(low: float, high: float, gap: float) -> list[float]:
    """Round accuracies between two, from the highest down, none nearer to the next than `gap` on the error's scale."""
    ticks: list[float] = []
    for tick in (99.5, 99, 98, 96, 94, 92, 90, 85, 80, 70, 60, 40, 20, 10):
        place = float(_log_error(np.array([tick]))[0])
        if low <= tick <= high and (not ticks or float(_log_error(np.array(ticks[-1:]))[0]) - place >= gap):
            ticks.append(tick)
    return ticks


def _log_error(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    error = np.maximum(100 - np.asarray(accuracy, dtype=np.float64), 1e-6)
    return np.asarray(-np.log10(error), dtype=np.float64)


def _accuracy(log_error: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(100 - np.power(10.0, -np.asarray(log_error, dtype=np.float64)), dtype=np.float64)


def plain_log_ticks(axis: Axis, most: int) -> None:
    """Ticks of a log axis as plain numbers, about `most` of them."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=most))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def decades(axis: Axis) -> None:
    """Ticks of a log axis at powers of ten, as plain numbers."""
    axis.set_major_locator(LogLocator(numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
