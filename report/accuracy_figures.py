"""Figures of an accuracy experiment: drops below the baseline, at one traffic and by traffic."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cser_bench.report.frame import LOAD_TOLERANCE, Frames
from cser_bench.report.plotting import (
    FAMILIES,
    GREY,
    colour_of,
    decades,
    family_handles,
    headline,
    mark,
    new_figure,
    plain,
    shape_of,
    style,
    verdict_handles,
)
from cser_bench.report.sensitivity import is_sensitive
from cser_bench.report.statistics import MORE, contrasts_frame
from cser_bench.report.wording import amount, gap, traffic, units_in_one

LEAST_LOADS = 3
"""A method is drawn over the load of a link where it was run at so many loads or more."""

PANELS = ("error reset", "error feedback", "local steps", "neighbours")
"""Families that are drawn, a panel each."""

MOST_RANKED = 30
"""Rows, with the baseline, of the first table and figure: of more they have those of the main ratio alone."""

_MOST_OF_THEM = 0.7
"""Share of the methods that must have a row at the load."""

_COLOURS = ("#2A75DB", "#C23B00", "#004D2C", "#6A2C91", "#B07A00", "#333333", "#D6338A")
_MARKERS = "osD^vPX"
_MARGIN = "#e4efe6"
"""Green of the band within the margin."""
_LINEAR_UP_TO = 3.0
"""Points up to which a panel is linear; where a drop is larger, drops beyond 1 are drawn by their
logarithm."""


def main_load(frames: Frames) -> float:
    """Return the link load at which methods are compared first; NaN where unknown.

    It is the baseline's over the main ratio.
    """
    experiment = frames.experiment
    if experiment.baseline is None or experiment.main_ratio_group is None:
        return math.nan
    load = frames.row(experiment.baseline)["link_models"]
    if load is None:
        return math.nan
    return float(load) / experiment.main_ratio_group


def at_link_load(accuracy: pd.DataFrame, load: float) -> pd.DataFrame:
    """Return each method's row with the largest link load of about `load` at most.

    The smallest drop comes first. All rows are returned where they are few, or too few of the methods have such a row.
    """
    # A load that is unknown is NaN, which no row is below: then all rows are returned.
    best = accuracy[accuracy["link_models"] <= (1 + LOAD_TOLERANCE) * load]
    if len(best):
        # Of each method the line of its largest load, by the index that `idxmax` names.
        loads = best.groupby("label", sort=False)["link_models"]
        best = best.loc[loads.idxmax()]
    num_methods = accuracy["label"].nunique()
    # Rows that load a link alike may be too few to say anything.
    if len(accuracy) < MOST_RANKED or len(best) < _MOST_OF_THEM * num_methods:
        best = accuracy
    return best.sort_values("difference", ascending=False, kind="stable")


def loss_at_one_load(
    frames: Frames, accuracy: pd.DataFrame
) -> tuple[pd.DataFrame, float | None]:
    """Return the rows to set side by side with their verdicts, and the load of their links.

    The load is None where all rows are taken, whatever their loads.
    """
    load = main_load(frames)
    compared = with_verdicts(frames, accuracy)
    shown = at_link_load(compared, load)
    if len(shown) == len(compared):
        return shown, None
    return shown, load


def with_verdicts(frames: Frames, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Return the experiment's own rows that have a drop, each with its verdict, unit and traffic.

    The verdict is None where none was asked for, or the experiment is not sensitive enough. The traffic is a share of
    the baseline's.
    """
    is_baseline = accuracy["row"] == frames.experiment.baseline
    is_known = accuracy["difference"].notna()
    compared = accuracy[accuracy["is_own"] & is_known & ~is_baseline]
    verdicts = {}
    if is_sensitive(frames):
        for line in contrasts_frame(frames).to_dict("records"):
            if line["kind"] == "non-inferiority":
                verdicts[line["row"]] = line["verdict"]
    # The sum of one number, or 0 where there is no baseline, which makes all shares NaN.
    all_sent = accuracy.loc[is_baseline, "link_models"].sum()
    share = compared["link_models"].astype(float) / (all_sent or math.nan)
    compared = compared.assign(
        verdict=compared["row"].map(verdicts),
        unit=frames.metric.loss_unit,
        traffic=share,
    )
    # As objects, also where no row has a verdict: pandas would make a column of floats of it.
    return compared.astype({"verdict": object})


def loss_figure(
    shown: pd.DataFrame,
    margin: float | None,
    title: str,
    families: Mapping[str, str],
    unit: str = "points",
    name: str = "accuracy drop",
) -> Figure:
    """Draw each row's drop as a mark with its interval, the smallest on top.

    The margin is shaded; shapes and colours are families', and a mark's filling its verdict.

    Args:
        shown: lines of the accuracy frame with their `verdict`, in the order in which they are to
            stand.
        margin: as a difference of scores; None draws none.
        unit: of drops. name: what they are called.
    """
    lines = shown.iloc[:MOST_RANKED].to_dict("records")
    names = [plain(_with_traffic(line)) for line in lines]
    factor = units_in_one(unit)
    with style():
        figure, (axes,) = new_figure(1.35 + 0.17 * max(len(lines), 3))
        end = _axis_end(lines, factor)
        verdicts = [line.get("verdict") for line in lines]
        is_tested = any(isinstance(verdict, str) for verdict in verdicts)
        for place, line in enumerate(lines):
            _dot(axes, place, line, end, families, unit, is_tested)
        shaded = ""
        if margin is not None:
            shaded = "; green: within the margin"
            axes.axvspan(0, factor * margin, color=_MARGIN, zorder=0)
        # From the right, so that it is whole where names leave the axes little width.
        axes.set_xlabel(f"{name}, {unit} (bars: 95 % CI{shaded})", loc="right")
        axes.axvline(0, **GREY)
        axes.set_yticks(range(len(lines)), names)
        for text, line in zip(axes.get_yticklabels(), lines, strict=True):
            text.set_color(colour_of(line["algorithm"], families))
        axes.set(ylim=(len(lines) - 0.5, -0.5), xlim=(None, end))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        drawn = dict.fromkeys(families.get(line["algorithm"], "") for line in lines)
        handles = family_handles([family for family in drawn if family in FAMILIES])
        if is_tested:
            handles += verdict_handles(verdicts)
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        headline(figure, title)
    return figure


def _axis_end(lines: list[dict[Hashable, Any]], factor: int) -> float:
    """Return where the axis ends at the right.

    It ends behind the last interval, but for rows whose drop is far larger than the others.
    """
    least = 0.01 * factor
    losses = [-factor * float(line["difference"]) for line in lines]
    losses.sort()
    usual = least
    if losses:
        # Three quarters of the drops are smaller than this one; twice as much is far larger.
        place = 3 * (len(losses) - 1) // 4
        usual = 2 * max(losses[place], 0.5 * least)
    end = least
    for line in lines:
        high = -factor * float(line["difference_low"])
        if -factor * line["difference"] <= usual and not math.isnan(high):
            end = max(end, min(high, 1.5 * usual))
    return 1.12 * end


def _dot(
    axes: Axes,
    place: int,
    line: dict[Hashable, Any],
    end: float,
    families: Mapping[str, str],
    unit: str,
    is_tested: bool,
) -> None:
    """Draw a row's loss with its interval, or an arrow where it lies beyond the axis."""
    factor = units_in_one(unit)
    colour = colour_of(line["algorithm"], families)
    middle = -factor * float(line["difference"])
    verdict = line.get("verdict")
    if middle > end:
        text = f"{gap(line['difference'], unit)} →"
        if verdict == MORE:
            text = f"above the margin: {text}"
        axes.annotate(text, (0.99 * end, place), ha="right", va="center", color=colour)
        return
    axes.plot(
        [
            -factor * float(line["difference_high"]),
            -factor * float(line["difference_low"]),
        ],
        [place, place],
        color=colour,
        linewidth=1.2,
        solid_capstyle="butt",
    )
    shape = shape_of(line["algorithm"], families)
    mark(axes, (middle, place), shape, colour, verdict, is_tested)


def _with_traffic(line: dict[Hashable, Any]) -> str:
    """Return a row's label with its traffic; with its ratio where that is not known."""
    label = str(line["label"])
    share = line.get("traffic", math.nan)
    ratio = line["ratio"]
    if not math.isnan(share):
        return f"{label}  ({traffic(share)})"
    if ratio is not None and ratio < math.inf:
        return f"{label}  (ratio {amount(ratio)})"
    return label


def drawn_methods(accuracy: pd.DataFrame, families: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of the methods that are drawn over loads of a link.

    They are of the families that have a panel, each method at `LEAST_LOADS` loads or more.
    """
    # Without a load a row has no place on a logarithmic axis.
    drawn = accuracy[(accuracy["link_models"] > 0) & accuracy["difference"].notna()]
    family = drawn["algorithm"].map(families)
    drawn = drawn[family.isin(PANELS)]
    num_loads = drawn.groupby("label")["link_models"].transform("nunique")
    return drawn[num_loads >= LEAST_LOADS]


def link_figure(
    accuracy: pd.DataFrame,
    margin: float | None,
    title: str,
    families: Mapping[str, str],
    unit: str = "points",
    name: str = "accuracy drop",
) -> Figure:
    """Draw the drops of methods over the load of a worker's link.

    A family has a panel, with its methods named below it.
    """
    drawn = drawn_methods(accuracy, families)
    family_of_row = drawn["algorithm"].map(families)
    groups = {}
    for family in PANELS:
        group = drawn[family_of_row == family]
        if len(group):
            groups[family] = group
    # All panels have one axis, with room for marks at its ends.
    low = drawn["link_models"].min() / 1.6
    high = drawn["link_models"].max() * 1.6
    with style():
        figure, panels = new_figure(3.4, len(groups))
        for axes, (family, group) in zip(panels, groups.items(), strict=True):
            axes.set(
                xscale="log",
                xlim=(low, high),
                xlabel="models sent over each link in a run",
            )
            _panel(axes, group, margin, units_in_one(unit))
            axes.set_title(family, color=FAMILIES[family], fontsize=8.5)
            axes.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
                ncols=2,
                handlelength=1.4,
                columnspacing=1.0,
            )
        panels[0].set_ylabel(f"{name}, {unit}")
        headline(figure, title)
    return figure


def _panel(axes: Axes, group: pd.DataFrame, margin: float | None, factor: int) -> None:
    """Draw the methods of one family, a line each."""
    # (rows,): drops, positive where a row is worse than the baseline.
    losses = -factor * group["difference"].to_numpy(dtype=float)
    unit = 0.01 * factor
    worst = max(unit, float(losses.max()))
    best = float(losses.min())
    if worst > _LINEAR_UP_TO * unit:
        _set_logarithmic(axes, worst, unit)
    axes.set_ylim(min(-0.15 * unit, best - 0.1 * unit), 1.15 * worst)
    decades(axes.xaxis)
    if margin is not None:
        axes.axhspan(0, factor * margin, color=_MARGIN, zorder=0)
    for number, (label, line) in enumerate(group.groupby("label", sort=False)):
        rows = line.sort_values("link_models")
        axes.plot(
            rows["link_models"],
            -factor * rows["difference"],
            label=plain(str(label)),
            marker=_MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
        )


def _set_logarithmic(axes: Axes, worst: float, unit: float) -> None:
    """Draw losses beyond a point, or a hundredth of a nat, by their logarithm.

    Marks go as far as the worst.
    """
    places = []
    for size in (0.0, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0):
        if size * unit <= 1.3 * worst:
            places.append(size * unit)
    # Zero and gains have no logarithm: below a unit the scale is linear.
    axes.set_yscale("symlog", linthresh=unit)
    axes.set_yticks(places, [f"{place:g}" for place in places])
    axes.yaxis.set_minor_locator(NullLocator())
