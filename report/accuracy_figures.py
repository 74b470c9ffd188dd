"""Figures of an accuracy experiment: differences to the baseline, at one load and by load."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from cser_bench.report.frame import Frames
from cser_bench.report.plotting import (
    DASHES,
    FAMILIES,
    GREY,
    OTHER,
    OTHER_SHAPE,
    SHAPES,
    colour_of,
    decades,
    end_labels,
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
"""Green of the band within the margin."""
_LINEAR_UP_TO = 3.0
"""Points up to which a panel is linear; where a row is worse, differences beyond 1 are drawn by
their logarithm."""


def main_load(frames: Frames) -> float:
    """Return the link load at which methods are compared first; NaN where unknown.

    It is the baseline's over the main ratio.
    """
    experiment = frames.experiment
    if experiment.baseline is None or experiment.main_ratio is None:
        return math.nan
    load = frames.row(experiment.baseline)["link_models"]
    if load is None:
        return math.nan
    return float(load) / experiment.main_ratio


def at_link_load(accuracy: pd.DataFrame, load: float) -> pd.DataFrame:
    """Return each method's row with the largest link load of about `load` at most.

    The least loss comes first. Where too few of the methods have such a row, all rows are returned.
    """
    best = accuracy[accuracy["link_models"] <= SAME_LOAD * load]
    if len(best):
        loads = best.groupby("label", sort=False)["link_models"]
        best = best.loc[loads.idxmax()]
    num_methods = accuracy["label"].nunique()
    if len(best) < _MOST_OF_THEM * num_methods:
        # Rows that load a link alike are too few to say anything.
        best = accuracy
    return best.sort_values("difference", ascending=False, kind="stable")


def loss_at_one_load(
    frames: Frames, accuracy: pd.DataFrame
) -> tuple[pd.DataFrame, str, str | None]:
    """Return the rows to set side by side, the finding as a sentence, and the load of their links.

    The load is None where all rows are taken, whatever their loads.
    """
    experiment = frames.experiment
    load = main_load(frames)
    is_baseline = accuracy["row"] == experiment.baseline
    is_known = accuracy["difference"].notna()
    own = accuracy[accuracy["is_own"] & is_known & ~is_baseline]
    shown = at_link_load(own, load)
    at = None
    if len(shown) < len(own):
        at = amount(load)
    return shown, _finding(frames, shown), at


def _finding(frames: Frames, shown: pd.DataFrame) -> str:
    """Say of how many of these rows the loss is within the margin.

    The verdicts on the rows are counted; where none was declared, or the experiment cannot tell a
    loss, the means within the margin. Without a margin it only says what the figure shows.
    """
    margin = frames.experiment.margin
    if margin is None:
        return "Points against all sent"
    margin_text = counted(round(100 * margin, 6), "point")
    contrasts = contrasts_frame(frames)
    is_asked = contrasts["kind"] == "non-inferiority"
    is_drawn = contrasts["row"].isin(shown["row"])
    asked = contrasts[is_asked & is_drawn]
    if len(asked) and tells(frames):
        num_less = (asked["verdict"] == LESS).sum()
        methods = f"{num_less} of {len(asked)} methods asked about"
        return f"{methods} are shown to lose less than {margin_text}"
    drawn = shown[~shown["is_bound"]]
    is_within = drawn["difference"] > -margin
    num_within = int(is_within.sum())
    verb = "are"
    if 1 in (num_within, len(drawn)):
        verb = "is"
    means = counted(len(drawn), "mean")
    return f"{num_within} of {means} {verb} less than {margin_text} below all sent"


def loss_figure(
    shown: pd.DataFrame, margin: float | None, title: str, families: Mapping[str, str]
) -> Figure:
    """Draw points against the baseline as dots with intervals, the best on top.

    The margin is shaded, and families are coloured.

    Args:
        shown: lines of the accuracy frame, in the order in which they are to stand.
        margin: as a share; None draws none.
    """
    lines = shown.iloc[:_MOST_LINES].to_dict("records")
    names = [plain(_name(line)) for line in lines]
    colours = [colour_of(line["algorithm"], families) for line in lines]
    with style():
        figure, (axes,) = new_figure(1.2 + 0.19 * max(len(lines), 3))
        end = _end(lines)
        for place, (line, colour) in enumerate(zip(lines, colours, strict=True)):
            _dot(axes, place, line, end, colour)
        shaded = ""
        if margin is not None:
            shaded = "; green: within the margin"
            axes.axvspan(
                -100 * margin,
                0,
                color=_MARGIN,
                zorder=0,
            )
        axes.set_xlabel(f"points against all sent (bars: 95 %{shaded})")
        axes.axvline(0, **GREY)
        axes.set_yticks(range(len(lines)), names)
        for text, colour in zip(axes.get_yticklabels(), colours, strict=True):
            text.set_color(colour)
        axes.set(ylim=(len(lines) - 0.5, -0.5), xlim=(end, None))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        drawn = dict.fromkeys(families.get(line["algorithm"], "") for line in lines)
        _family_legend(figure, [family for family in drawn if family in FAMILIES])
        headline(figure, title)
    return figure


def _family_legend(figure: Figure, families: list[str]) -> None:
    """Name the colours of families below the figure."""
    dots = []
    for family in families:
        dot = Line2D(
            [],
            [],
            marker="o",
            linestyle="None",
            color=FAMILIES[family],
        )
        dots.append(dot)
    figure.legend(
        dots,
        families,
        loc="outside lower right",
        ncols=max(len(dots), 1),
    )


def _end(lines: list[dict[Hashable, Any]]) -> float:
    """Return where the axis ends at the left.

    It ends behind the last interval, but for rows that are far worse than the others.
    """
    differences = [100 * float(line["difference"]) for line in lines]
    differences.sort(reverse=True)
    usual = -1.0
    if differences:
        # Three quarters of the rows are better than this one; twice as far is far worse.
        place = 3 * (len(differences) - 1) // 4
        usual = 2 * min(differences[place], -0.5)
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
    """Return a row's label with its load of a link; with its ratio where that is not known."""
    label = str(line["label"])
    link = line["link_models"]
    ratio = line["ratio"]
    if link is not None and not math.isnan(link):
        return f"{label}  ({amount(link)})"
    if ratio is not None and ratio < math.inf:
        return f"{label}  (ratio {amount(ratio)})"
    return label


def drawn_methods(accuracy: pd.DataFrame, families: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of the methods that are drawn over loads of a link.

    They are of the families that have a panel, each method at `LEAST_LOADS` loads or more.
    """
    # Without a load a row has no place on a logarithmic axis.
    known = accuracy[(accuracy["link_models"] > 0) & accuracy["difference"].notna()]
    family = known["algorithm"].map(families)
    known = known[family.isin(PANELS)]
    num_loads = known.groupby("label")["link_models"].transform("nunique")
    return known[num_loads >= LEAST_LOADS]


def link_figure(
    accuracy: pd.DataFrame, margin: float | None, title: str, families: Mapping[str, str]
) -> Figure:
    """Draw points against the baseline over the load of a worker's link.

    A family has a panel, with its methods named below it.
    """
    known = drawn_methods(accuracy, families)
    family = known["algorithm"].map(families)
    groups = {}
    for name in PANELS:
        group = known[family == name]
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


def draw_loads(lost: pd.DataFrame) -> Figure:
    """Draw what methods lose over the load of a link, a panel a network, a line a method.

    Args:
        lost: columns network, label, family, link_models, estimate and unit, a line a loss.
    """
    networks = list(lost["network"].unique())
    with style():
        figure, panels = new_figure(2.4, len(networks))
        all_ends = []
        for axes, network in zip(panels, networks, strict=True):
            group = lost[lost["network"] == network]
            axes.set_title(network, fontsize=8.5)
            all_ends.append(_lines_of_methods(axes, group))
            axes.set_ylabel(f"{group['unit'].iloc[0]} lost")
        for axes, ends in zip(panels, all_ends, strict=True):
            end_labels(axes, ends)
    return figure


def _lines_of_methods(axes: Axes, lost: pd.DataFrame) -> list[tuple[float, float, str, str]]:
    """Draw a line a method over the load of a link; return the ends where its name is to stand."""
    factor = -100 if lost["unit"].iloc[0] == "points" else -1
    ends = []
    num_of_family: Counter[str] = Counter()
    for label, rows in lost.groupby("label", sort=False):
        rows = rows.sort_values("link_models")
        family = str(rows["family"].iloc[0])
        colour = FAMILIES.get(family, OTHER)
        losses = factor * rows["estimate"]
        axes.plot(
            rows["link_models"],
            losses,
            color=colour,
            marker=SHAPES.get(family, OTHER_SHAPE),
            linestyle=DASHES[num_of_family[family] % len(DASHES)],
        )
        num_of_family[family] += 1
        ends.append(
            (float(rows["link_models"].iloc[-1]), float(losses.iloc[-1]), str(label), colour)
        )
    low = float(lost["link_models"].min())
    high = float(lost["link_models"].max())
    # Names stand at the right, and take as much room as the lines.
    axes.set(xscale="log", xlim=(low / 1.3, high * (high / low) ** 0.9))
    axes.axhline(0, **GREY)
    axes.set_xlabel("models on a link in a run")
    decades(axes.xaxis)
    return ends


def _panel(axes: Axes, group: pd.DataFrame, margin: float | None) -> None:
    """Draw the methods of one family, a line each."""
    differences = 100 * group["difference"].to_numpy(dtype=float)
    worst = min(-1.0, float(differences.min()))
    best = float(differences.max())
    if worst < -_LINEAR_UP_TO:
        _set_logarithmic(axes, worst)
    axes.set_ylim(1.15 * worst, max(0.15, best + 0.1))
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
        axes.plot(
            rows["link_models"],
            100 * rows["difference"],
            label=plain(str(label)),
            marker=_MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
        )


def _set_logarithmic(axes: Axes, worst: float) -> None:
    """Draw differences beyond one point by their logarithm, with marks as far as the worst."""
    places = []
    names = []
    for loss in (0.0, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0):
        if loss <= -1.3 * worst:
            places.append(-loss)
            names.append(f"{MINUS}{loss:g}" if loss else "0")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_yticks(places, names)
    axes.yaxis.set_minor_locator(NullLocator())
