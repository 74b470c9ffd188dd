"""Figure: difference to SGD of the same length against models sent. A panel per method, a colour per length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from report.accuracy.figure_paper import draw_paper
from report.accuracy.regime import Regime, RegimePoint
from report.accuracy.regime_predictors import curve_of_method
from report.kit.plotting import SIZE, decades, grid_over_strip, save
from report.kit.wording import amount, count_of, whole
from report.kit.wording import points as in_points

_COLUMNS = 3
_MOST_HEIGHT = 7.2
"""Of all rows, in inches: with strip, axis and caption a page holds no more."""

_COLOURS = ("#440154", "#31688E", "#35B779", "#E3B505", "#B5179E", "#7F7F7F")
"""From the longest run to the shortest: steps of a scale whose lightness rises."""

_MARKERS = ("o", "s", "^", "D", "v", "P")
_BELOW = 1.15
"""The axis ends so many gaps below SGD; what lies lower stands at its end with its number."""


REGIME_NOTE = (
    "Markers: means of a row against SGD of the same length; faint dots: single seeds; marks at the "
    "lower end: rows below it. The curve is fitted to the share of the gap lost at all lengths and drawn at the "
    "longest run's gap."
)


def draw_regime(regime: Regime, path: Path) -> bool:
    """Draw it; False where no method has runs at two numbers of models."""
    if not regime.methods:
        return False
    methods = list(regime.methods)
    rows = math.ceil(len(methods) / _COLUMNS)
    figure, grid, strip = grid_over_strip(rows, _COLUMNS, min(1.75, _MOST_HEIGHT / rows))
    cells = [axes for line in grid for axes in line]
    low, high = _limits(regime)
    lowest = _lowest(regime)
    for axes, name in zip(cells, methods, strict=False):
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(lowest, -0.12 * lowest)
        _panel(axes, regime, regime.methods[name], lowest)
        axes.set_title(name, loc="left")
    for axes in cells[len(methods) :]:
        axes.set_visible(False)
    for column, axes in enumerate(strip):
        draw_paper(axes, names=column == 0)
        axes.set_xlabel("models sent (log scale)")
        decades(axes.xaxis)
    for line in grid:
        line[0].set_ylabel("difference to SGD, points" if rows * 1.75 <= _MOST_HEIGHT else "points to SGD")
    _legend(figure, regime)
    save(figure, path)
    return True


def _limits(regime: Regime) -> tuple[float, float]:
    models = [point.models for points in regime.methods.values() for point in points]
    return min(models) / 1.5, max(models) * 3


def _lowest(regime: Regime) -> float:
    """Where the y axis ends, in points below zero."""
    gaps = [100 * length.gap for length in regime.lengths if length.gap]
    drops = [100 * p.comparison.difference for p in regime.points if p.comparison]
    return -_BELOW * max(gaps) if gaps else 1.05 * min([*drops, -1.0])


def _panel(axes: Axes, regime: Regime, points: Sequence[RegimePoint], lowest: float) -> None:
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
    if regime.margin is not None:
        axes.axhline(-100 * regime.margin, color="#C0392B", linewidth=0.8, dashes=(4, 2), zorder=1)
    _curve(axes, regime, points)
    below: list[float] = []
    for index, length in enumerate(regime.lengths):
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        mine = sorted((p for p in points if p.length is length and p.comparison), key=lambda p: p.models)
        for point in mine:
            difference = 100 * (point.comparison.difference if point.comparison else 0.0)
            if difference < lowest:
                axes.plot([point.models], [lowest * 0.97], marker=7, color=colour, markersize=4, zorder=4)
                below.append(difference / 100)
                continue
            seeds = [100 * value for value in point.differences.values()]
            axes.plot([point.models] * len(seeds), seeds, ".", color=colour, markersize=2, alpha=0.5, zorder=2)
            axes.plot([point.models], [difference], marker=marker, color=colour, markersize=3.6, zorder=3)
    if below:
        ends = " to ".join(dict.fromkeys((in_points(min(below)), in_points(max(below)))))
        text = f"{count_of(len(below), 'row')} below: {ends}"
        axes.text(0.98, 0.1, text, transform=axes.transAxes, ha="right", fontsize=SIZE, zorder=5)


def _curve(axes: Axes, regime: Regime, points: Sequence[RegimePoint]) -> None:
    """The fitted share lost, at the gap of the longest run."""
    curve = curve_of_method(points)
    if curve is None or not regime.telling:
        return
    low, high = axes.get_xlim()
    logs = np.linspace(math.log(low), math.log(high), 120)
    lost = curve.at(logs[:, None])
    axes.plot(np.exp(logs), -100 * lost * (regime.telling[0].gap or 0.0), color="#bbbbbb", linewidth=0.9, zorder=1)


def _legend(figure: Figure, regime: Regime) -> None:
    lines = [
        Line2D([], [], color=_COLOURS[i % len(_COLOURS)], marker=_MARKERS[i % len(_MARKERS)], linestyle="none")
        for i in range(len(regime.lengths))
    ]
    names = [f"{whole(length.num_steps)} steps" for length in regime.lengths]
    lines += [Line2D([], [], color="#bbbbbb"), Line2D([], [], color="#C0392B", dashes=(4, 2))]
    figure.legend(lines, [*names, "fitted curve", "margin"], loc="outside lower center", ncols=6)


def found_regime(regime: Regime) -> str:
    """From how many models sent on no row but the bounds' loses more than the margin in the mean."""
    rows = [p for points in regime.methods.values() for p in points if p.comparison and not p.is_bound]
    margin = regime.margin
    if margin is None or not rows:
        return "There is no margin, or no row, to tell a loss by."
    ordered = sorted(rows, key=lambda point: -point.models)
    good = list(itertools.takewhile(lambda p: p.comparison and p.comparison.difference >= -margin, ordered))
    diverged = [point for point in good if point.rows.diverged]
    if not good or diverged:
        return f"Even among rows of {amount(ordered[0].models)} models sent one loses more than the margin or diverges."
    return (
        f"Every row of a compressed method that sends {amount(good[-1].models)} models or more loses at most "
        f"{in_points(margin).lstrip('+')} points in the mean, at every length ({len(good)} of "
        f"{count_of(len(rows), 'row')})."
    )
