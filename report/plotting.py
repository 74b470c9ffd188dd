"""How figures are made: one style, and bytes that repeat.

Type has 7 points and more; each family of methods has its colour.
"""

import io
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.typing import RcKeyType

from cser_bench.harness.records.atomic import errors_naming
from cser_bench.report.statistics import LESS, MORE

WIDTH = 6.9
"""Width of every figure in inches: the text width of an A4 page."""

SIZE = 7.5
"""Size of the type in points, on paper: figures are as wide as the text."""

FAMILIES = {
    "all sent": "#6E6E6E",
    "bounds": "#6E6E6E",
    "error reset": "#2A75DB",
    "error feedback": "#C23B00",
    "local steps": "#004D2C",
    "neighbours": "#6A2C91",
}
"""The colour of each family of methods in all figures; a method's class says its family.

They differ in lightness too, so that they stay apart with each kind of colour-blindness.
"""

OTHER = "#7B4B2A"
"""Colour of a method of no family."""

SHAPES = {
    "all sent": "P",
    # No cross: that marks a drop significantly above the margin.
    "bounds": "*",
    "error reset": "o",
    "error feedback": "s",
    "local steps": "^",
    "neighbours": "D",
}
"""The mark of each family, so that no figure is told by colour alone."""

OTHER_SHAPE = "v"
"""Mark of a method of no family."""

LEADER_GAP = 20
"""Points between a line's end and its name, with a thin line between them."""

GREY: dict[str, Any] = {"color": "#555555", "linewidth": 0.8}
"""A line at what others are compared with."""

_STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": SIZE,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "savefig.dpi": 200,
    # TrueType: matplotlib's default, Type 3, is what many journals refuse.
    "pdf.fonttype": 42,
}


def style() -> AbstractContextManager[None]:
    """Return the context inside which everything about a figure is made."""
    return rc_context(_STYLE)


def colour_of(algorithm: str | None, families: Mapping[str, str]) -> str:
    """Return the colour of an algorithm's family, given the family of each algorithm."""
    return FAMILIES.get(families.get(algorithm or "", ""), OTHER)


def shape_of(algorithm: str | None, families: Mapping[str, str]) -> str:
    """Return the mark of an algorithm's family, given the family of each algorithm."""
    return SHAPES.get(families.get(algorithm or "", ""), OTHER_SHAPE)


def mark(
    axes: Axes,
    place: tuple[float, float],
    shape: str,
    colour: str,
    verdict: str | None,
    is_tested: bool = True,
) -> None:
    """Draw a point by its verdict.

    Filled is a drop significantly below the margin, crossed one above it; all else is hollow. Where no drop of the
    figure is tested against the margin, all are filled.
    """
    face = "white"
    if verdict == LESS or not is_tested:
        face = colour
    axes.plot(
        *([value] for value in place),
        linestyle="None",
        marker=shape,
        markersize=5,
        markerfacecolor=face,
        markeredgecolor=colour,
        markeredgewidth=1,
        zorder=4,
    )
    if verdict == MORE:
        axes.plot(
            *([value] for value in place),
            linestyle="None",
            marker="x",
            markersize=7,
            markeredgecolor=colour,
            markeredgewidth=1,
            zorder=5,
        )


def verdict_handles(verdicts: Iterable[str | None]) -> list[Line2D]:
    """Return what a legend says of the marks of these verdicts."""
    drawn = set()
    for verdict in verdicts:
        # All others are drawn alike.
        is_beyond = verdict in (LESS, MORE)
        drawn.add(verdict if is_beyond else None)
    looks = {
        LESS: ("o", "#333333", "below the margin (Holm)"),
        None: ("o", "white", "inconclusive, or not tested"),
        MORE: ("x", "#333333", "above the margin (Holm)"),
    }
    handles = []
    for verdict, (shape, face, name) in looks.items():
        if verdict in drawn:
            handle = Line2D(
                [],
                [],
                linestyle="None",
                marker=shape,
                markerfacecolor=face,
                markeredgecolor="#333333",
                label=name,
            )
            handles.append(handle)
    return handles


def family_handles(families: Iterable[str]) -> list[Line2D]:
    """Return what a legend says of the colour and shape of these families."""
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


def new_figure(
    height: float, columns: int = 1, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """Make a figure of page width and so many inches high, with axes side by side, row by row.

    No global state: figures do not touch.
    """
    # Without pyplot, which would keep every figure, and choose a canvas by the machine.
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def save(figure: Figure, path: Path) -> None:
    """Write a PNG at `path` and a PDF beside it, without a word of who wrote them and when.

    So the same figure gives the same bytes.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    pdf = io.BytesIO()
    # Resolution and type of fonts are read when a figure is saved, not when it is made.
    with style():
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.set_layout_engine("none")  # which has placed all by now
        nobody = {"Creator": None, "Producer": None, "CreationDate": None}
        figure.savefig(pdf, format="pdf", metadata=nobody)
    # From memory: of a full disk matplotlib's own writing tells something else.
    for file, content in ((path, png), (path.with_suffix(".pdf"), pdf)):
        with errors_naming(file):
            file.write_bytes(content.getbuffer())


def decades(axis: Axis) -> None:
    """Set the ticks of a log axis at powers of ten, with "k" for thousands and "M" for millions."""
    axis.set_major_locator(LogLocator(numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    if value < 1_000:
        return f"{value:g}"
    if value < 1_000_000:
        return f"{value / 1_000:g}k"
    return f"{value / 1_000_000:g}M"


def plain(text: str) -> str:
    """Make a text that matplotlib draws as it is.

    Between two dollars it would else read a formula.
    """
    return text.replace("$", r"\$")


def headline(figure: Figure, title: str) -> None:
    """Write the finding over the whole width, in as many lines as it needs."""
    width = 84
    if len(title) > width:
        width = len(title) // 2 + 10  # two lines of like length, not one and a word
    figure.suptitle(
        plain(textwrap.fill(title, width)),
        fontsize=9.5,
        fontweight="bold",
        x=0.012,
        ha="left",
    )


def end_labels(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write names in a column right of points, in the points' order, none touching another.

    A thin line joins each name to its point.

    Args:
        ends: the points, each with its name: (x, y, name, colour).

    The figure must have its final limits: names are placed by where the axes then are.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes are made with their figure"
    figure.draw_without_rendering()
    # Height of a name in pixels, with room above and below: points are 72 to an inch.
    height = 1.3 * SIZE * figure.dpi / 72
    box = axes.get_window_extent()
    # [x, y] in pixels each, since names keep apart on paper and not on a logarithmic axis.
    pixels = [axes.transData.transform((x, y)).tolist() for x, y, *_ in ends]
    from_below = sorted(
        zip(pixels, ends, strict=True), key=lambda pair: float(pair[0][1])
    )
    lows = [low for (_, low), _ in from_below]
    places = spread(lows, height, box.y0 + height / 2, box.y1 - height / 2)
    right = max(left for left, _ in pixels)
    for ((left, low), end), place in zip(from_below, places, strict=True):
        # Offsets are in points, 72 to an inch, so that they hold at every resolution.
        across = (right - left) * 72 / figure.dpi + LEADER_GAP
        up = (place - low) * 72 / figure.dpi
        _label_end(axes, end, (across, up))
        # Ends two points before the name.
        _lead_to_label(axes, end, (across - 2, up))


def _label_end(
    axes: Axes, end: tuple[float, float, str, str], offset: tuple[float, float]
) -> None:
    """Write a point's name at an offset from it, in points."""
    x, y, name, colour = end
    axes.annotate(
        plain(name),
        (x, y),
        xytext=offset,
        textcoords="offset points",
        va="center",
        color=colour,
    )


def _lead_to_label(
    axes: Axes, end: tuple[float, float, str, str], offset: tuple[float, float]
) -> None:
    """Draw a thin line from a point to an offset from it, in points."""
    x, y, _, colour = end
    leader = {
        "arrowstyle": "-",
        "linewidth": 0.5,
        "color": colour,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    line = axes.annotate(
        "", (x, y), xytext=offset, textcoords="offset points", arrowprops=leader
    )
    # The label beside it counts in the layout already.
    line.set_in_layout(False)


def spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move sorted places apart to at least `gap`.

    They move upwards from `low` and then, where they pass `high`, down again.
    """
    moved: list[float] = []
    bottom = low
    for place in places:
        moved.append(max(place, bottom))
        bottom = moved[-1] + gap
    top = high
    for number in range(len(moved) - 1, -1, -1):
        moved[number] = min(moved[number], top)
        top = moved[number] - gap
    return moved
