"""Figures of an accuracy experiment: differences to the baseline at one link load, and over the
load of a link."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from cser_bench.report.frame import Frames
from cser_bench.report.plotting import (
    FAMILIES,
    GREY,
    colour_of,
    decades,
    headline,
    new_figure,
    plain,
    style,
)
from cser_bench.report.regime import tells
from cser_bench.report.statistics import LESS, contrasts_frame
from cser_bench.report.wording import MINUS, amount, counted, points

SAME_LOAD = 1.07
"""A row may put so much more on a link than the load that rows are compared at: blocks of 4 bits
have their scales."""

LEAST_LOADS = 3
"""A method is drawn over the load of a link where it was run at so many loads or more."""

PANELS = ("error reset", "error feedback", "local steps", "neighbours")
"""Families that are drawn, a panel each."""

_MOST_LINES = 31
"""Rows of a figure of differences; the worst are left out."""

_MOST_OF_THEM = 0.7
"""Share of the methods that must have a row at the load."""

_COLOURS = ("#1A5FD0", "#C23B00", "#1C8C4B", "#8A3FA0", "#7B4B2A", "#333333", "#D6338A")
_MARKERS = "osD^vPX"
_MARGIN = "#e4efe6"
_LINEAR_UP_TO = 3.0
"""Points up to which a panel is linear; where a row is worse, differences beyond 1 are drawn by
their logarithm."""


def main_load(frames: Frames) -> float:
    """The link load at which methods are compared first: the baseline's over the main ratio; NaN
    where unknown."""
    experiment = frames.experiment
    if experiment.baseline is None or experiment.main_ratio is None:
        return math.nan
    load = frames.row(experiment.baseline)["link_models"]
    if load is None:
        return math.nan
    return float(load) / experiment.main_ratio


def at_link_load(accuracy: pd.DataFrame, load: float) -> pd.DataFrame:
    """Of every method the row with the largest link load that is at most about `load`, the least
    loss first.

    Where too few of the methods have one, all rows.
    """
    best = accuracy[accuracy["link_models"] <= SAME_LOAD * load]
    if len(best):
        best = best.loc[best.groupby("label", sort=False)["link_models"].idxmax()]
    if len(best) < _MOST_OF_THEM * accuracy["label"].nunique():
        best = accuracy  # rows that load a link alike are too few to say anything
    return best.sort_values("difference", ascending=False, kind="stable")


def loss_at_one_load(
    frames: Frames, accuracy: pd.DataFrame
) -> tuple[pd.DataFrame, str, str | None]:
    """The rows that are set side by side, what is found as a sentence, and the load of a link that
    they are taken at.

    It counts the verdicts on those rows, or if none was declared the means within the margin. No
    load: all are taken.
    """
    experiment = frames.experiment
    load = main_load(frames)
    own = accuracy[
        accuracy["is_own"]
        & (accuracy["row"] != experiment.baseline)
        & accuracy["difference"].notna()
    ]
    shown = at_link_load(own, load)
    at = amount(load) if len(shown) < len(own) else None
    if experiment.margin is None:
        return shown, "Points against all sent", at
    margin = counted(round(100 * experiment.margin, 6), "point")
    contrasts = contrasts_frame(frames)
    is_drawn = contrasts["row"].isin(shown["row"])
    asked = contrasts[(contrasts["kind"] == "non-inferiority") & is_drawn]
    if len(asked) and tells(frames):
        less = (asked["verdict"] == LESS).sum()
        return (
            shown,
            f"{less} of {len(asked)} methods asked about are shown to lose less than {margin}",
            at,
        )
    drawn = shown[~shown["is_bound"]]
    within = int((drawn["difference"] > -experiment.margin).sum())
    verb = "is" if 1 in (within, len(drawn)) else "are"
    means = f"{within} of {counted(len(drawn), 'mean')} {verb}"
    return shown, f"{means} less than {margin} below all sent", at


def loss_figure(
    shown: pd.DataFrame, margin: float | None, title: str, families: Mapping[str, str]
) -> Figure:
    """Dots with intervals: points against the baseline, the best on top, the margin shaded,
    families coloured.

    Args:
        shown: lines of the accuracy frame, in the order in which they are to stand.
        margin: as a share; None draws none.
    """
    lines = shown.iloc[:_MOST_LINES].to_dict("records")
    with style():
        figure, (axes,) = new_figure(1.2 + 0.19 * max(len(lines), 3))
        end = _end(lines)
        for place, line in enumerate(lines):
            _dot(
                axes,
                place,
                line,
                end,
                colour_of(line["algorithm"], families),
            )
        if margin is not None:
            axes.axvspan(
                -100 * margin,
                0,
                color=_MARGIN,
                zorder=0,
            )
        shaded = "" if margin is None else "; green: within the margin"
        axes.set_xlabel(f"points against all sent (bars: 95 %{shaded})")
        axes.axvline(0, **GREY)
        axes.set_yticks(range(len(lines)), [plain(_name(line)) for line in lines])
        colours = [colour_of(line["algorithm"], families) for line in lines]
        for text, colour in zip(axes.get_yticklabels(), colours, strict=True):
            text.set_color(colour)
        axes.set(ylim=(len(lines) - 0.5, -0.5), xlim=(end, None))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        drawn = dict.fromkeys(families.get(line["algorithm"], "") for line in lines)
        names = [name for name in drawn if name in FAMILIES]
        dots = [
            Line2D(
                [],
                [],
                marker="o",
                linestyle="None",
                color=FAMILIES[name],
            )
            for name in names
        ]
        figure.legend(
            dots,
            names,
            loc="outside lower right",
            ncols=max(len(dots), 1),
        )
        headline(figure, title)
    return figure


def _end(lines: list[dict[Hashable, Any]]) -> float:
    """Where the axis ends at the left: behind the last interval, but for rows that are far worse
    than the others."""
    differences = sorted((100 * float(line["difference"]) for line in lines), reverse=True)
    usual = -1.0
    if differences:
        # Three quarters of the rows are better than this one; twice as far is far worse.
        usual = 2 * min(differences[(3 * (len(differences) - 1)) // 4], -0.5)
    end = -1.0
    for line in lines:
        low = 100 * float(line["difference_low"])
        if 100 * line["difference"] >= usual and not math.isnan(low):
            end = min(end, max(low, 1.5 * usual))
    return 1.12 * end


def _dot(axes: Axes, place: int, line: dict[Hashable, Any], end: float, colour: str) -> None:
    """Draw a row's difference with its interval, or an arrow where it lies beyond the axis."""
    middle = 100 * float(line["difference"])
    if middle < end:
        text = f"← {points(middle / 100)}"
        axes.annotate(
            text,
            (0.99 * end, place),
            ha="left",
            va="center",
            color=colour,
        )
        return
    low = 100 * float(line["difference_low"])
    high = 100 * float(line["difference_high"])
    axes.plot(
        [low, high],
        [place, place],
        color=colour,
        linewidth=1.2,
        solid_capstyle="butt",
    )
    axes.plot(
        [middle],
        [place],
        "o",
        color=colour,
    )


def _name(line: dict[Hashable, Any]) -> str:
    """A row's label with its load of a link; with its ratio where that is not known."""
    label = str(line["label"])
    link = line["link_models"]
    if link is not None and not math.isnan(link):
        return f"{label}  ({amount(link)})"
    if line["ratio"] is not None and line["ratio"] < math.inf:
        return f"{label}  (ratio {amount(line['ratio'])})"
    return label


def drawn_methods(accuracy: pd.DataFrame, families: Mapping[str, str]) -> pd.DataFrame:
    """Rows of methods of the families that are drawn, each at `LEAST_LOADS` loads of a link or
    more."""
    known = accuracy[(accuracy["link_models"] > 0) & accuracy["difference"].notna()]
    known = known[known["algorithm"].map(families).isin(PANELS)]
    return known[known.groupby("label")["link_models"].transform("nunique") >= LEAST_LOADS]


def link_figure(
    accuracy: pd.DataFrame, margin: float | None, title: str, families: Mapping[str, str]
) -> Figure:
    """Points against the baseline over the load of a worker's link, a panel a family, its methods
    named below it."""
    known = drawn_methods(accuracy, families)
    groups = {}
    for name in PANELS:
        group = known[known["algorithm"].map(families) == name]
        if len(group):
            groups[name] = group
    low = known["link_models"].min() / 1.6
    high = known["link_models"].max() * 1.6
    with style():
        figure, panels = new_figure(3.4, len(groups))
        for axes, (name, group) in zip(panels, groups.items(), strict=True):
            axes.set(xscale="log", xlim=(low, high), xlabel="models on a link in a run")
            _panel(axes, group, margin)
            axes.set_title(name, color=FAMILIES[name], fontsize=8.5)
            axes.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
                ncols=2,
                handlelength=1.4,
                columnspacing=1.0,
            )
        panels[0].set_ylabel("points against all sent")
        headline(figure, title)
    return figure


def _panel(axes: Axes, group: pd.DataFrame, margin: float | None) -> None:
    differences = 100 * group["difference"].to_numpy(dtype=float)
    worst = min(-1.0, float(differences.min()))
    if worst < -_LINEAR_UP_TO:
        axes.set_yscale("symlog", linthresh=1.0)
        ticks = [-tick for tick in (0.0, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0) if tick <= -1.3 * worst]
        axes.set_yticks(ticks, [f"{tick:g}".replace("-", MINUS) if tick else "0" for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(1.15 * worst, max(0.15, float(differences.max()) + 0.1))
    decades(axes.xaxis)
    if margin is not None:
        axes.axhspan(
            -100 * margin,
            0,
            color=_MARGIN,
            zorder=0,
        )
    for number, (label, line) in enumerate(group.groupby("label", sort=False)):
        rows = line.sort_values("link_models")
        marker, colour = _MARKERS[number % len(_MARKERS)], _COLOURS[number % len(_COLOURS)]
        axes.plot(
            rows["link_models"],
            100 * rows["difference"],
            label=plain(str(label)),
            marker=marker,
            color=colour,
        )
