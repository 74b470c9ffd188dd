"""Figures of an accuracy experiment: the loss at one link load, and the loss against the load of a link."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from report.frame import Frames
from report.plotting import FAMILIES, colour_of, decades, family_of, headline, names_beside, new_figure, style
from report.wording import amount, counted

SAME_LOAD = 1.05
"""A row may put so much more on a link than the load that rows are compared at."""

_MOST_LINES = 31
"""Rows of a figure of the loss; the worst are left out."""

_MOST_OF_THEM = 0.7
"""Share of the methods that must have a row at the load."""

PANELS = ("error reset", "error feedback", "local steps", "neighbours")
"""Families that are drawn, a panel each."""

_COLOURS = ("#1A5FD0", "#C23B00", "#1C8C4B", "#8A3FA0", "#7B4B2A", "#333333", "#D6338A")
_MARKERS = "osD^vPX"
_MARGIN = "#e4efe6"
_LINEAR_UP_TO = 3.0
"""Points up to which a panel is linear; where more is lost, losses above 1 are drawn by their logarithm."""


def main_load(frames: Frames) -> float:
    """The link load at which methods are compared first: the baseline's over the main ratio; NaN where unknown."""
    experiment = frames.experiment
    if experiment.baseline is None or experiment.main_ratio is None:
        return math.nan
    load = frames.row(experiment.baseline)["link_models"]
    return math.nan if load is None else float(load) / experiment.main_ratio


def at_link_load(accuracy: pd.DataFrame, load: float) -> pd.DataFrame:
    """Of every method the row with the largest link load that is at most about `load`, the least loss first.

    Where too few of the methods have one, all rows.
    """
    fitting = accuracy[accuracy["link_models"] <= SAME_LOAD * load]
    best = fitting.loc[fitting.groupby("label", sort=False)["link_models"].idxmax()] if len(fitting) else fitting
    if len(best) < _MOST_OF_THEM * accuracy["label"].nunique():
        best = accuracy  # rows that load a link alike are too few to say anything
    return best.sort_values("difference", ascending=False, kind="stable")


def loss_at_one_load(frames: Frames, accuracy: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows that are set side by side, at the main load where there are enough, and what is found as a sentence."""
    margin, load = frames.experiment.margin, main_load(frames)
    own = accuracy[
        accuracy["is_own"] & (accuracy["row"] != frames.experiment.baseline) & accuracy["difference"].notna()
    ]
    shown = at_link_load(own, load)
    at = f"At a link load of {amount(load)} models, " if len(shown) < len(own) else ""
    judged = shown[~shown["is_bound"]]
    if margin is None:
        return shown, "Points lost against all sent"
    within, noun = int((judged["difference"] > -margin).sum()), "method" if judged["label"].is_unique else "row"
    lose = f"{'loses' if within == 1 else 'lose'} less than {counted(round(100 * margin, 6), 'point')} in the mean"
    return shown, f"{at}{within} of {counted(len(judged), noun)} {lose}"


def loss_figure(shown: pd.DataFrame, margin: float | None, title: str) -> Figure:
    """Dots with intervals: points lost against the baseline, sorted, the margin shaded, families coloured.

    Args:
        shown: lines of the accuracy frame, in the order in which they are to stand.
        margin: as a share; None draws none.
    """
    lines = shown.iloc[:_MOST_LINES].to_dict("records")
    with style():
        figure, (axes,) = new_figure(1.2 + 0.19 * max(len(lines), 3))
        end = _end(lines)
        for place, line in enumerate(lines):
            _dot(axes, place, line, end)
        if margin is not None:
            axes.axvspan(0, 100 * margin, color=_MARGIN, zorder=0)
        axes.set_xlabel(f"points lost against all sent (bars: 95 %{'' if margin is None else '; green: margin'})")
        axes.axvline(0, color="#555555", linewidth=0.8)
        axes.set_yticks(range(len(lines)), [_name(line) for line in lines])
        colours = [colour_of(line["algorithm"]) for line in lines]
        for text, colour in zip(axes.get_yticklabels(), colours, strict=True):
            text.set_color(colour)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlim(right=end)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        families = dict.fromkeys(family_of(line["algorithm"]) for line in lines)
        dots = [
            Line2D([], [], marker="o", linestyle="None", color=FAMILIES[name][0])
            for name in families
            if name in FAMILIES
        ]
        figure.legend(dots, [name for name in families if name in FAMILIES], loc="outside lower right", ncols=len(dots))
        headline(figure, title)
    return figure


def _end(lines: list[dict[Hashable, Any]]) -> float:
    """Where the axis ends: behind the last interval, but for rows that lose far more than the others."""
    known = sorted(-100 * float(line["difference"]) for line in lines)
    usual = 3 * max(known[(3 * (len(known) - 1)) // 4], 0.5) if known else 1.0
    ends = [-100 * float(line["difference_low"]) for line in lines if -100 * line["difference"] <= usual]
    return 1.12 * max([1.0, *(min(end, 1.5 * usual) for end in ends if not math.isnan(end))])


def _dot(axes: Axes, place: int, line: dict[Hashable, Any], end: float) -> None:
    colour = colour_of(line["algorithm"])
    loss, low, high = (-100 * float(line[key]) for key in ("difference", "difference_high", "difference_low"))
    if loss > end:
        axes.annotate(f"{loss:.1f} →", (0.99 * end, place), ha="right", va="center", color=colour)
        return
    axes.plot([low, high], [place, place], color=colour, linewidth=1.2, solid_capstyle="butt")
    axes.plot([loss], [place], "o", color=colour)


def _name(line: dict[Hashable, Any]) -> str:
    link, ratio = (math.nan if line[key] is None else float(line[key]) for key in ("link_models", "ratio"))
    known = f"({amount(link)})" if not math.isnan(link) else f"(ratio {amount(ratio)})" if ratio < math.inf else ""
    return f"{line['label']}  {known}".strip()


def drawn_methods(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Rows of the families that are drawn; where a family has too many methods, of those at several loads alone."""
    known = accuracy[(accuracy["link_models"] > 0) & accuracy["difference"].notna()]
    family = known["algorithm"].map(family_of)
    is_crowded = known.groupby(family)["label"].transform("nunique") > len(_COLOURS)
    is_line = known.groupby("label")["link_models"].transform("nunique") > 1
    return known[family.isin(PANELS) & (is_line | ~is_crowded)]


def link_figure(accuracy: pd.DataFrame, margin: float | None, title: str) -> Figure:
    """Loss against the load of a worker's link, a panel a family, at most six lines in each, named beside it."""
    known = drawn_methods(accuracy)
    groups = {name: known[known["algorithm"].map(family_of) == name] for name in PANELS}
    groups = {name: group for name, group in groups.items() if len(group)}
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    low, high = known["link_models"].min() / 1.6, known["link_models"].max() * 1.6
    with style():
        figure, panels = new_figure(0.7 + 1.9 * rows, columns, rows)
        for axes in panels[len(groups) :]:
            axes.set_visible(False)
        for number, (axes, (name, group)) in enumerate(zip(panels, groups.items(), strict=False)):
            axes.set_xscale("log")
            axes.set_xlim(low, high)
            _panel(axes, group, margin)
            axes.set_title(name, color=FAMILIES[name][0], fontsize=8.5)
            if number + columns >= len(groups):
                axes.set_xlabel("models on a link in a run (log scale)")
            if number % columns == 0:
                axes.set_ylabel("points lost")
        headline(figure, title)
    return figure


def _panel(axes: Axes, group: pd.DataFrame, margin: float | None) -> None:
    losses = -100 * group["difference"].to_numpy(dtype=float)
    worst = max(1.0, float(losses.max()))
    if worst > _LINEAR_UP_TO:
        axes.set_yscale("symlog", linthresh=1.0)
        ticks = [tick for tick in (0, 0.5, 1, 3, 10, 30, 100) if tick <= worst * 1.3]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(min(-0.15, float(losses.min()) - 0.1), worst * 1.15)
    decades(axes.xaxis)
    if margin is not None:
        axes.axhspan(0, 100 * margin, color=_MARGIN, zorder=0)
    ends = []
    for number, (label, line) in enumerate(group.groupby("label", sort=False)):
        rows, colour = line.sort_values("link_models"), _COLOURS[number % len(_COLOURS)]
        links, lost = rows["link_models"].to_numpy(dtype=float), -100 * rows["difference"].to_numpy(dtype=float)
        (drawn,) = axes.plot(links, lost, marker=_MARKERS[number % len(_MARKERS)], color=colour)
        ends.append((float(lost[-1]), str(label), drawn))
    names_beside(axes, [(name, drawn) for _, name, drawn in sorted(ends, key=lambda end: -end[0])])
