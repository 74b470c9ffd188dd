"""The picture of a track: loss gap over traffic, a point an entry."""

import textwrap
from collections.abc import Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from cser_bench.report.leaderboard_lines import BoardLine
from cser_bench.report.plotting import (
    FAMILIES,
    GREY,
    OTHER,
    OTHER_SHAPE,
    SHAPES,
    family_handles,
    new_figure,
    plain,
    style,
)
from cser_bench.report.wording import traffic

HEIGHT = 3.4
"""Height of the figure in inches."""

ALIKE = 1.1
"""Traffics count as equal up to this factor: within a class they differ by some percent."""

STEP = 1.045
"""Factor between the places of two entries of equal traffic, wide enough that no mark hides another."""

NAME_ROOM = 3
"""Factor that the axis goes on below the least traffic, for the name of the entry there."""

NAME_WIDTH = 18
"""Letters in a line of a name; a longer one is broken."""

_BOUND_COLOUR = "#555555"


def draw_leaderboard(
    entries: Sequence[BoardLine], bounds: Sequence[BoardLine]
) -> Figure:
    """Draw each entry with its interval, and a line at each bound.

    Entries of equal traffic stand side by side, the smallest gap first.
    """
    groups = _groups(entries)
    with style():
        figure, [axes] = new_figure(HEIGHT)
        axes.set_xscale("log")
        axes.set_xlabel("traffic, as a share of the baseline's (log scale)")
        axes.set_ylabel("loss gap, nats")
        for group in groups:
            for line, place in zip(group, _places(group), strict=True):
                _draw_entry(axes, line, place)
                if _is_best(line, entries):
                    _name(axes, line, place)
        if groups:
            _set_traffic_axis(axes, groups)
        for line in bounds:
            _draw_bound(axes, line)
        # Below the axes: beside them are the names of the bounds.
        handles = family_handles(sorted({line.family for line in entries}))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _groups(entries: Sequence[BoardLine]) -> list[list[BoardLine]]:
    """Return the entries by traffic, least first; in each group by their gap.

    A logarithmic axis has no place for an entry that sends nothing.
    """
    # A group begins with its least traffic, from which the others are no further than `ALIKE`.
    groups: list[list[BoardLine]] = []
    senders = [line for line in entries if line.traffic > 0]
    for line in sorted(senders, key=lambda line: line.traffic):
        if groups and line.traffic <= ALIKE * groups[-1][0].traffic:
            groups[-1].append(line)
        else:
            groups.append([line])
    return [sorted(group, key=lambda line: line.gap.mean) for group in groups]


def _centre(group: Sequence[BoardLine]) -> float:
    """Return the traffic at which a group stands: that of all its entries but for some percent."""
    return median(line.traffic for line in group)


def _places(group: Sequence[BoardLine]) -> list[float]:
    """Return where the entries of a group stand on the axis, in equal steps about its traffic."""
    # On a logarithmic axis equal steps are equal factors: centre x STEP^k, with k about 0.
    middle = (len(group) - 1) / 2
    centre = _centre(group)
    return [centre * STEP ** (number - middle) for number in range(len(group))]


def _draw_entry(axes: Axes, line: BoardLine, place: float) -> None:
    axes.errorbar(
        place,
        line.gap.mean,
        yerr=([line.gap.mean - line.gap.low], [line.gap.high - line.gap.mean]),
        color=FAMILIES.get(line.family, OTHER),
        marker=SHAPES.get(line.family, OTHER_SHAPE),
        markersize=4,
        elinewidth=0.7,
    )


def _is_best(line: BoardLine, entries: Sequence[BoardLine]) -> bool:
    """Return whether no entry of as much traffic or less has a smaller gap."""
    rivals = [each for each in entries if each.traffic <= ALIKE * line.traffic]
    return line.gap.mean <= min(each.gap.mean for each in rivals)


def _name(axes: Axes, line: BoardLine, place: float) -> None:
    axes.annotate(
        _in_lines(line.label),
        (place, line.gap.mean),
        xytext=(-6, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=FAMILIES.get(line.family, OTHER),
    )


def _in_lines(label: str) -> str:
    return plain(textwrap.fill(label, NAME_WIDTH))


def _draw_bound(axes: Axes, line: BoardLine) -> None:
    axes.axhline(line.gap.mean, **GREY)
    axes.annotate(
        _in_lines(line.label),
        (1, line.gap.mean),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=_BOUND_COLOUR,
    )


def _set_traffic_axis(axes: Axes, groups: Sequence[Sequence[BoardLine]]) -> None:
    """Set a tick at each group's traffic."""
    centres = [_centre(group) for group in groups]
    axes.set_xlim(min(centres) / NAME_ROOM, max(centres) * 1.6)
    axes.set_xticks(centres)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: traffic(share)))
    axes.minorticks_off()
