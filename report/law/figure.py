"""The figure of the law: what methods lose over the network's size, a line a length."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cser_bench.report.frame import Frames
from cser_bench.report.law.section import rows_asked
from cser_bench.report.plotting import (
    DASHES,
    GREY,
    decades,
    end_labels,
    headline,
    new_figure,
    plain,
    style,
    units_in_one,
)
from cser_bench.report.wording import count

_LENGTH_COLOUR = "#2A75DB"
"""Of the longest run; shorter ones are paler."""

_PALEST = 0.45
"""Share of the colour that the shortest run has: less could not be read on white."""

_APART = 1.06
"""Factor between two lengths at one size, so that their intervals do not hide each other."""

_FITTED_ALPHA = 0.4
"""Of intervals that the law is fitted to: what was held back is the point, and must stand out."""

_PREDICTED_COLOUR = "#D9D9D9"
_PREDICTED_WIDTH = 7.0
"""Points: wider than an interval, so that both can be seen where one lies on the other."""

_HEIGHT = 3.0
"""Inches, of a line of panels."""

_MOST_COLUMNS = 2
"""Panels side by side: in narrower ones the names of lines would not fit."""

_ROOM = 1.7
"""Of the axis, in the largest mean: intervals of two seeds would press all means into one line."""


def draw_law(frames: Frames, tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Draw the gaps of the methods that were asked about, a panel a method.

    Points are means with intervals of 95 %, which are cut where they leave the axis; those of cells
    that no law was fitted to are hollow, with the interval that the law predicted behind them.

    Args:
        tables: of `law_tables`.
    """
    unit = frames.metric.loss_unit
    cells = tables["law_cells"]
    # A method whose gaps have no law, as where they cannot be told from nothing, is shown as well.
    asked = rows_asked(frames)
    rows = [row for row in cells["row"].unique() if row in asked]
    cells = _in_unit(cells[cells["row"].isin(rows)], ["gap", "low", "high"], unit)
    predictions = _in_unit(
        tables["law_predictions"],
        ["predicted", "predicted_low", "predicted_high"],
        unit,
    )
    lengths = sorted(cells["num_steps"].unique())
    with style():
        columns = min(len(rows), _MOST_COLUMNS)
        num_lines = math.ceil(len(rows) / columns)
        figure, panels = new_figure(_HEIGHT * num_lines, columns, num_lines)
        for axes in panels[len(rows) :]:
            axes.remove()
        panels = panels[: len(rows)]
        all_ends = []
        for axes, row in zip(panels, rows, strict=True):
            own = cells[cells["row"] == row]
            axes.set_title(plain(str(own["label"].iloc[0])), fontsize=8.5)
            _predicted(axes, predictions[predictions["row"] == row], lengths)
            all_ends.append(_lines_of_lengths(axes, own, lengths))
            axes.set_xscale("log")
            axes.axhline(0, **GREY)
            axes.set_ylim(min(0.0, _ROOM * cells["gap"].min()), _ROOM * cells["gap"].max())
            decades(axes.xaxis)
            low, high = own["num_parameters"].min(), own["num_parameters"].max()
            # At the right is room for the names of lines: a share of the axis, whatever was run.
            axes.set_xlim(low / 1.4, high * (high / low) ** 0.45)
        for axes in panels[-columns:]:
            axes.set_xlabel("parameters of the network")
        for axes in panels[::columns]:
            axes.set_ylabel(f"{unit} lost against all sent")
        figure.legend(handles=_handles(cells), loc="outside lower center", ncols=3)
        headline(figure, title)
        # After the legend and the headline, which take room: names go by where the axes then are.
        for axes, ends in zip(panels, all_ends, strict=True):
            end_labels(axes, ends)
    return figure


def _in_unit(table: pd.DataFrame, columns: list[str], unit: str) -> pd.DataFrame:
    """Return a table whose losses are in points, where that is their unit, and not in shares."""
    return table.assign(**{column: table[column] * units_in_one(unit) for column in columns})


def _lines_of_lengths(
    axes: Axes, cells: pd.DataFrame, lengths: list[int]
) -> list[tuple[float, float, str, str]]:
    """Draw a line a length; return the ends of lines, which are to be named at the right.

    A length that was run at one size alone, and not the largest, has its name beside its point.
    """
    ends = []
    largest = cells["num_parameters"].max()
    for number, num_steps in enumerate(lengths):
        own = cells[cells["num_steps"] == num_steps].sort_values("num_parameters")
        if own.empty:
            continue
        is_lone = len(own) == 1 and own["num_parameters"].max() < largest
        own = own.assign(num_parameters=own["num_parameters"] * _apart(number, len(lengths)))
        colour = _colour(number, len(lengths))
        fitted = own[~own["held_back"]]
        axes.plot(
            fitted["num_parameters"],
            fitted["gap"],
            color=colour,
            linestyle=DASHES[number % len(DASHES)],
        )
        for cell in own.to_dict("records"):
            axes.plot(
                [cell["num_parameters"]] * 2,
                [cell["low"], cell["high"]],
                color=colour,
                linewidth=0.9,
                alpha=1.0 if cell["held_back"] else _FITTED_ALPHA,
            )
            axes.plot(
                [cell["num_parameters"]],
                [cell["gap"]],
                linestyle="None",
                marker="o",
                markerfacecolor="white" if cell["held_back"] else colour,
                markeredgecolor=colour,
            )
        # A point that is held back is at no end of a line.
        last = (own if fitted.empty else fitted).iloc[-1]
        place = (float(last["num_parameters"]), float(last["gap"]))
        name = f"{count(num_steps)} steps"
        if is_lone:
            # At the end of the axis nobody would know which point it names.
            axes.annotate(
                name, place, xytext=(4, -3), textcoords="offset points", va="top", color=colour
            )
        else:
            ends.append((*place, name, colour))
    return ends


def _predicted(axes: Axes, predictions: pd.DataFrame, lengths: list[int]) -> None:
    """Draw what the law predicted of cells that were held back: a bar and its middle."""
    for line in predictions.to_dict("records"):
        if line["num_steps"] not in lengths:
            continue
        apart = _apart(lengths.index(line["num_steps"]), len(lengths))
        place = line["num_parameters"] * apart
        axes.plot(
            [place] * 2,
            [line["predicted_low"], line["predicted_high"]],
            color=_PREDICTED_COLOUR,
            linewidth=_PREDICTED_WIDTH,
            solid_capstyle="butt",
            zorder=0,
        )
        axes.plot(
            [place],
            [line["predicted"]],
            linestyle="None",
            marker="_",
            markersize=_PREDICTED_WIDTH,
            color="#555555",
            zorder=1,
        )


def _apart(number: int, num_lengths: int) -> float:
    """Return the factor by which a length's points are moved along the axis."""
    return float(_APART ** (number - (num_lengths - 1) / 2))


def _colour(number: int, num_lengths: int) -> str:
    """Return the colour of a length: the paler, the shorter the run."""
    share = 1.0
    if num_lengths > 1:
        share = _PALEST + (1 - _PALEST) * number / (num_lengths - 1)
    mixed = np.array(to_rgb(_LENGTH_COLOUR)) * share + (1 - share)
    return to_hex(mixed.tolist())


def _handles(cells: pd.DataFrame) -> list[Line2D]:
    looks = {
        "the law is fitted to it": _LENGTH_COLOUR,
        "held back, and found": "white",
    }
    handles = []
    for name, face in looks.items():
        if face == "white" and not cells["held_back"].any():
            continue
        handle = Line2D(
            [],
            [],
            linestyle="None",
            marker="o",
            markerfacecolor=face,
            markeredgecolor=_LENGTH_COLOUR,
            label=name,
        )
        handles.append(handle)
    if cells["held_back"].any():
        handles.append(
            Line2D(
                [],
                [],
                color=_PREDICTED_COLOUR,
                linewidth=_PREDICTED_WIDTH,
                label="what the law predicted, 95 %",
            )
        )
    return handles
