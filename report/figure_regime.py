"""Figure: difference to SGD of the same length against models sent. A panel per method, a colour per length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from report.figure_paper import draw_paper
from report.findings import Study
from report.models_needed import needed_of
from report.plotting import SIZE, decades, grid_over_strip, save
from report.regime import Point, Regime, regime_of
from report.regime_predictors import curve_of_method
from report.wording import count_of, whole
from report.wording import points as in_points

_COLUMNS = 3
_COLOURS = ("#440154", "#31688E", "#35B779", "#E3B505", "#B5179E", "#7F7F7F")
"""From the longest run to the shortest: steps of a scale whose lightness rises."""

_MARKERS = ("o", "s", "^", "D", "v", "P")
_BELOW = 1.15
"""The axis ends so many gaps below SGD; what lies lower stands at its end with its number."""


def draw_regime(study: Study, path: Path) -> bool:
    """Draw it; False where fewer than two lengths, or no method at two numbers of models, have runs."""
    regime = regime_of(study)
    if regime is None or not regime.methods:
        return False
    methods = list(regime.methods)
    figure, grid, strip = grid_over_strip(math.ceil(len(methods) / _COLUMNS), _COLUMNS, 1.75)
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
        line[0].set_ylabel("points from SGD")
    _legend(figure, regime)
    save(figure, path)
    return True


def _limits(regime: Regime) -> tuple[float, float]:
    models = [point.models for points in regime.methods.values() for point in points]
    return min(models) / 1.5, max(models) * 1.9


def _lowest(regime: Regime) -> float:
    """Where the y axis ends, in points below zero."""
    gaps = [100 * length.gap for length in regime.lengths if length.gap]
    drops = [100 * p.comparison.difference for p in regime.points if p.comparison]
    return -_BELOW * max(gaps) if gaps else 1.05 * min([*drops, -1.0])


def _panel(axes: Axes, regime: Regime, points: Sequence[Point], lowest: float) -> None:
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
    if regime.margin is not None:
        axes.axhline(-100 * regime.margin, color="#C0392B", linewidth=0.8, dashes=(4, 2), zorder=1)
    _curve(axes, regime, points)
    for index, length in enumerate(regime.lengths):
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        mine = sorted((p for p in points if p.length is length and p.comparison), key=lambda p: p.models)
        for point in mine:
            difference = 100 * (point.comparison.difference if point.comparison else 0.0)
            if difference < lowest:
                axes.plot([point.models], [lowest * 0.97], marker=7, color=colour, markersize=4, zorder=4)
                axes.annotate(
                    in_points(difference / 100), (point.models, lowest * 0.97), xytext=(3, 2),
                    textcoords="offset points", fontsize=SIZE, color=colour,
                )  # fmt: skip
                continue
            seeds = [100 * value for value in point.differences.values()]
            axes.plot([point.models] * len(seeds), seeds, ".", color=colour, markersize=2, alpha=0.5, zorder=2)
            axes.plot([point.models], [difference], marker=marker, color=colour, markersize=3.6, zorder=3)


def _curve(axes: Axes, regime: Regime, points: Sequence[Point]) -> None:
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


def found_regime(study: Study) -> str:
    """Which method needs the fewest models sent for a loss within the margin."""
    regime = regime_of(study)
    if regime is None:
        return "Fewer than two lengths have runs."
    needed = [entry for entry in needed_of(regime) if entry.kind != "cannot tell"]
    if not needed:
        return f"{count_of(len(regime.lengths), 'length')}; how many models a method needs cannot be told from them."
    first = needed[0]
    return (
        f"The loss against models sent at {count_of(len(regime.lengths), 'length')} of run; {first.method} needs the "
        f"fewest models for an expected loss within the margin: {first.said()}."
    )
