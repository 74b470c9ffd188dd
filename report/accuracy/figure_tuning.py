"""Figure: held-out accuracy over the learning rates tried, divergence shown. One panel per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from report.accuracy.tuning import Tuned
from report.kit.looks import look_of
from report.kit.plotting import SIZE, accuracy_scale, end_labels, panels, save, settle
from report.kit.wording import count_of, listed, short

_COLUMNS = 3
_STRIP = 0.26
"""Share of a panel's height that is kept for the crosses of diverged runs."""

_MOST_PANELS = 12
_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1.2, 1.2), (5, 1.5, 1.2, 1.5))
_MARKERS = ("o", "s", "^", "D")


def draw_tuning(tuned: Sequence[Tuned], path: Path) -> bool:
    """Draw it; False where no tuning run is done."""
    drawn = [entry for entry in tuned if entry.has_results]
    names = list(dict.fromkeys(entry.method for entry in drawn))[:_MOST_PANELS]
    if not names:
        return False
    rows = math.ceil(len(names) / _COLUMNS)
    figure, grid = panels(rows, _COLUMNS, 2.1, share_x=False)
    cells = [axes for line in grid for axes in line]
    rates = sorted({point.learning_rate for entry in drawn for point in entry.points})
    numbers = [100 * score for entry in drawn for point in entry.points for score in point.scores.values()]
    for axes, name in zip(cells, names, strict=False):
        colour = look_of(name).colour
        _panel(axes, [entry for entry in drawn if entry.method == name], colour, rates, numbers)
        axes.set_title(name, loc="left", color=colour)
    for axes in cells[len(names) :]:
        axes.set_visible(False)
    for axes in cells[max(0, len(names) - _COLUMNS) : len(names)]:
        axes.set_xlabel("learning rate (log scale)")
    for line in grid:
        line[0].set_ylabel("held-out accuracy, percent")
    settle(figure)
    for axes, name in zip(cells, names, strict=False):
        colour = look_of(name).colour
        end_labels(axes, _ends([entry for entry in drawn if entry.method == name], colour), room=0.26, below=_STRIP)
    save(figure, path)
    return True


def _panel(axes: Axes, rows: Sequence[Tuned], colour: str, rates: Sequence[float], numbers: Sequence[float]) -> None:
    axes.set_xscale("log")
    if numbers:
        accuracy_scale(axes, numbers, below=_STRIP)
    for index, entry in enumerate(rows):
        known = [(point.learning_rate, 100 * point.score) for point in entry.points if point.score is not None]
        marker, dashes = _MARKERS[index % len(_MARKERS)], _DASHES[index % len(_DASHES)]
        xs, ys = [x for x, _ in known], [y for _, y in known]
        axes.plot(xs, ys, color=colour, dashes=dashes, marker=marker, markersize=2.8, clip_on=False)
        ring = [(x, y) for x, y in known if x == entry.selected]
        for x, y in ring:
            axes.plot(x, y, "o", markersize=7.5, mfc="none", color=colour, markeredgewidth=0.9, clip_on=False)
    _mark_diverged(axes, rows, colour, rates[-1])
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{rate:g}" for rate in rates], rotation=0 if len(rates) < 6 else 35)
    axes.set_xlim(rates[0] / 1.25, rates[-1] * 1.25 * (max(rates[-1] / rates[0], 4) ** 0.38))


def _mark_diverged(axes: Axes, rows: Sequence[Tuned], colour: str, last: float) -> None:
    """Crosses in a strip under the lowest accuracy, for there is no accuracy to draw them at."""
    lost = [(entry, [point.learning_rate for point in entry.points if point.diverged]) for entry in rows]
    lost = [(entry, rates) for entry, rates in lost if rates]
    if not lost:
        return
    strip = Rectangle((0, 0), 1, _STRIP - 0.02, transform=axes.transAxes, color="#f3f3f3", linewidth=0, zorder=0)
    axes.add_patch(strip)
    transform = axes.get_xaxis_transform()
    for index, (entry, rates) in enumerate(lost):
        place = (_STRIP - 0.02) * (1 - (index + 0.5) / len(lost))
        axes.plot(rates, [place] * len(rates), "x", transform=transform, markersize=3.5, color=colour, clip_on=False)
        axes.annotate(
            f"ratio {entry.ratio:g}",
            (last, place),
            xycoords=transform,
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=SIZE,
            in_layout=False,
            color=colour,
            ha="left",
            va="center",
        )


def _ends(rows: Sequence[Tuned], colour: str) -> list[tuple[float, float, str, str]]:
    ends = []
    for entry in rows:
        known = [(point.learning_rate, 100 * point.score) for point in entry.points if point.score is not None]
        if known:
            ends.append((*known[-1], f"ratio {short(entry.ratio)}", colour))
    return ends


def found_tuning(tuned: Sequence[Tuned]) -> str:
    """Whether the grid was wide enough and where runs diverged."""
    known = [entry for entry in tuned if entry.has_results and entry.selected is not None]
    if not known:
        return "No tuning run is done yet."
    ends = [entry for entry in known if entry.at_end]
    points = [point for entry in known for point in entry.points]
    lost = sum(bool(point.diverged) for point in points)
    names = [f"{entry.method} {entry.ratio:g} at {short(entry.selected)}" for entry in ends]
    if not ends:
        text = f"All {len(known)} selected rates lie inside the grid"
    elif len(ends) <= 6:
        text = f"{len(ends)} of {len(known)} selected rates lie at an end of the grid ({listed(names)})"
    else:
        text = f"{len(ends)} of {len(known)} selected rates lie at an end of the grid"
    return f"{text}; {lost} of {count_of(len(points), 'pair')} of row and rate had a diverged run."
