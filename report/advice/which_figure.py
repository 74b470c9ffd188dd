"""The map of which method to use: a row a kind of network, over the rate of a link."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from cser_bench.report.advice.choice import Choice
from cser_bench.report.advice.runs import Line
from cser_bench.report.plotting import (
    FAMILIES,
    OTHER,
    OTHER_SHAPE,
    SHAPES,
    SIZE,
    headline,
    new_figure,
    plain,
)
from cser_bench.report.wording import rate

NEAR = "near"
FAR = "far"

PLACES = {
    NEAR: "in one building (0.05 ms a hop)",
    FAR: "between cities (20 ms a hop)",
}

ALL_SENT = "all sent"

_HEIGHT = 0.36
"""Of a band, where rows of kinds are 1 apart."""

_GAP = 0.04
"""Between a row's two bands."""

_CHARACTER = 0.0115
"""Width of a character of the figure's type, in widths of the axes."""


@dataclass(frozen=True)
class Band:
    """Neighbouring rates, in bits a second, at which the choice on a kind of network is the same."""

    kind: str
    low: float
    high: float
    choice: Choice


def map_figure(
    place: str,
    rates: Sequence[float],
    bands: Sequence[Band],
) -> Figure:
    """Draw what to use: filled where it is safe, below it in outline what is worth a trial.

    Args:
        rates: all that there are bands of; a rate stands for what is nearer to it than to others.
    """
    kinds = list(dict.fromkeys(band.kind for band in bands))
    figure, (axes,) = new_figure(1.25 + 0.47 * len(kinds))
    axes.set_xscale("log")
    axes.set_xlim(rates[0], rates[-1])
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    for number, kind in enumerate(kinds):
        safe = []
        trial = []
        for band in bands:
            if band.kind == kind:
                low, high = _edges(band, rates)
                safe.append((low, high, band.choice.safe))
                trial.append((low, high, band.choice.trial))
        for stretch in _joined(safe):
            _draw(axes, stretch, number - _HEIGHT, is_safe=True)
        tried = _joined(trial)
        for stretch in tried:
            _draw(axes, stretch, number + _GAP, is_safe=False)
        if not tried:
            _say_none(axes, rates[0], number + _GAP + _HEIGHT / 2)
    axes.set_yticks(range(len(kinds)), [plain(kind) for kind in kinds])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.set_xlabel(f"rate of a machine's link, {PLACES[place]}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: rate(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _legend(figure, bands)
    headline(figure, _finding(place, kinds, bands))
    return figure


def _edges(band: Band, rates: Sequence[float]) -> tuple[float, float]:
    """Return where a band begins and ends: midway, by logarithms, to the rates beside it."""
    first = rates.index(band.low)
    last = rates.index(band.high)
    low = math.sqrt(rates[max(first - 1, 0)] * rates[first])
    high = math.sqrt(rates[last] * rates[min(last + 1, len(rates) - 1)])
    return low, high


def _say_none(axes: Axes, low: float, middle: float) -> None:
    """Say that no faster method is expected to lose less than the margin."""
    axes.annotate(
        "nothing faster is worth a trial",
        (low, middle),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color="#6E6E6E",
        fontsize=SIZE,
    )


Stretch = tuple[float, float, Line]


def _joined(stretches: Sequence[tuple[float, float, Line | None]]) -> list[Stretch]:
    """Join neighbours of one method and ratio; what has no method is left out."""
    joined: list[Stretch] = []
    for low, high, line in stretches:
        if line is None:
            continue
        key = (line["method"], line["ratio"])
        # Equal to the bit where bands touch: `_edges` makes both ends of the same two rates.
        if joined and joined[-1][1] == low:
            before = joined[-1][2]
            if (before["method"], before["ratio"]) == key:
                joined[-1] = (joined[-1][0], high, line)
                continue
        joined.append((low, high, line))
    return joined


def _draw(
    axes: Axes,
    stretch: Stretch,
    top: float,
    is_safe: bool,
) -> None:
    """Draw a method's band with the mark of its family, and its name where that fits."""
    low, high, line = stretch
    colour = FAMILIES.get(line["family"], OTHER)
    band = Rectangle(
        (low, top),
        high - low,
        _HEIGHT,
        facecolor=colour if is_safe else "white",
        edgecolor="white" if is_safe else colour,
        linewidth=1.0,
    )
    axes.add_patch(band)
    first, last = axes.get_xlim()
    share = math.log(high / low) / math.log(last / first)
    text_colour = "white" if is_safe else colour
    middle = top + _HEIGHT / 2
    if share < 3 * _CHARACTER:
        return
    start = low * (last / first) ** 0.012
    axes.plot(
        [start],
        [middle],
        marker=SHAPES.get(line["family"], OTHER_SHAPE),
        color=text_colour,
        markersize=4,
        linestyle="None",
    )
    name = _short(line, share)
    if name:
        axes.text(
            low * (last / first) ** 0.024,
            middle,
            plain(name),
            color=text_colour,
            va="center",
            fontsize=SIZE,
        )


def _short(line: Line, share: float) -> str:
    """Return a method's name, with its ratio if there is room; empty where there is none."""
    name = str(line["method"])
    bare = name.partition(" (")[0]
    names = [f"{bare}, ratio {line['ratio']:.4g}", bare, bare.partition(",")[0], bare.split()[0]]
    if line["family"] == ALL_SENT:
        names = names[1:]
    for text in names:
        if (len(text) + 3) * _CHARACTER <= share:
            return text
    return ""


def _legend(figure: Figure, bands: Sequence[Band]) -> None:
    """Say below the axes what filled and outlined bands are, and whose marks are whose."""
    families = set()
    for band in bands:
        for line in (band.choice.safe, band.choice.trial):
            if line is not None:
                families.add(line["family"])
    handles: list[Patch | Line2D] = [
        Patch(facecolor="#555555", label="safe, as the page defines it"),
        Patch(facecolor="white", edgecolor="#555555", label="worth a trial"),
    ]
    for family in FAMILIES:
        if family in families:
            mark = Line2D(
                [],
                [],
                color=FAMILIES[family],
                marker=SHAPES[family],
                linestyle="None",
                label=family,
            )
            handles.append(mark)
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _finding(
    place: str,
    kinds: Sequence[str],
    bands: Sequence[Band],
) -> str:
    """Say on how many kinds of network there is something faster than DDP."""
    safe = set()
    trial = set()
    for band in bands:
        if band.choice.safe["family"] != ALL_SENT:
            safe.add(band.kind)
        if band.choice.trial is not None:
            trial.add(band.kind)
    where = "In one building" if place == NEAR else "Between cities"
    return (
        f"{where} a method faster than DDP is safe on {len(safe)} of {len(kinds)} "
        f"kinds of network; on {len(trial - safe)} more one is worth a trial"
    )
