"""The picture of a track: loss gap over traffic, a point an entry."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from cser_bench.report.leaderboard_lines import Line
from cser_bench.report.plotting import (
    FAMILIES,
    GREY,
    OTHER,
    OTHER_SHAPE,
    SHAPES,
    new_figure,
    plain,
    style,
)
from cser_bench.report.wording import traffic

HEIGHT = 3.2
"""Height of the figure in inches."""

MOST_TICKS = 6

ALIKE = 1.1
"""Traffics count as equal up to this factor: within a class they differ by some percent."""


def draw_leaderboard(entries: Sequence[Line], bounds: Sequence[Line]) -> Figure:
    """Draw each entry with its interval, and a line at each bound."""
    with style():
        figure, [axes] = new_figure(HEIGHT)
        axes.set_xscale("log")
        axes.set_xlabel("traffic, as a share of the baseline's (log scale)")
        axes.set_ylabel("loss gap, nats")
        for line in entries:
            axes.errorbar(
                line.traffic,
                line.gap.mean,
                yerr=([line.gap.mean - line.gap.low], [line.gap.high - line.gap.mean]),
                color=FAMILIES.get(line.family, OTHER),
                marker=SHAPES.get(line.family, OTHER_SHAPE),
                elinewidth=0.7,
            )
        _set_traffic_axis(axes, [line.traffic for line in entries])
        for line in bounds:
            axes.axhline(line.gap.mean, **GREY)
            axes.annotate(
                plain(line.label),
                (1, line.gap.mean),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 2),
                textcoords="offset points",
                ha="right",
                color="#555555",
            )
        _name_best(axes, entries)
        handles = _handles(entries)
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _set_traffic_axis(axes: Axes, shares: Sequence[float]) -> None:
    least = min(share for share in shares if share > 0)
    most = max(shares)
    axes.set_xlim(least / 1.6, most * 1.6)
    # A tick a place where entries are: classes put many at nearly one traffic.
    ticks: list[float] = []
    for share in sorted(shares):
        if share > 0 and (not ticks or share > 1.4 * ticks[-1]):
            ticks.append(share)
    axes.set_xticks(ticks[:MOST_TICKS])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: traffic(share)))
    axes.minorticks_off()


def _name_best(axes: Axes, entries: Sequence[Line]) -> None:
    """Name the entries that none with as much traffic or less has a smaller gap than."""
    for line in entries:
        rivals = [each for each in entries if each.traffic <= ALIKE * line.traffic]
        if line.gap.mean > min(each.gap.mean for each in rivals):
            continue
        axes.annotate(
            plain(line.name),
            (line.traffic, line.gap.mean),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=FAMILIES.get(line.family, OTHER),
        )


def _handles(entries: Sequence[Line]) -> list[Line2D]:
    families = sorted({line.family for line in entries})
    handles = []
    for family in families:
        handle = Line2D(
            [],
            [],
            linestyle="None",
            marker=SHAPES.get(family, OTHER_SHAPE),
            color=FAMILIES.get(family, OTHER),
            label=family,
        )
        handles.append(handle)
    return handles
