"""How the answers' figures are drawn: panels of few lines over one setting, each line named at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from report.kit.looks import BASELINE, look_of
from report.kit.plotting import SIZE, accuracy_scale, end_labels, panels, save, settle

_MARGIN = 0.06
"""Share of the data's width that is left free before the first point."""

_FOOT = 0.14
"""Share of the height for the crosses of diverged runs, where there are any."""


@dataclass(frozen=True)
class Line:
    """A method's points from left to right, in the units of the axes.

    `bars`: ends of the points' intervals; `dots`: single seeds at each point; both may be empty. `look`: of which
    method the colour, marker and dashes are.
    """

    name: str
    look: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    bars: tuple[tuple[float, float], ...] = ()
    dots: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Panel:
    """One set of axes. `ticks`: places on the x axis with their names; `levels`: heights that are marked by a name.

    `room`: share of the width for the names of the lines, which `names_left` puts before their beginnings. `scale`
    "accuracy" draws a wide range by the logarithm of the error. `lost`: methods and places where all runs diverged,
    which are crosses at the foot.
    """

    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, str], ...]
    levels: tuple[tuple[float, str], ...] = ()
    log_x: bool = False
    scale: Literal["linear", "accuracy"] = "linear"
    room: float = 0.3
    names_left: bool = False
    lost: tuple[tuple[str, float], ...] = ()


def draw_lines(shown: Sequence[Panel], path: Path, height: float = 2.1) -> bool:
    """Draw the panels side by side; False where no line has two points.

    Args:
        height: in inches.
    """
    if not any(len(line.x) > 1 for panel in shown for line in panel.lines):
        return False
    figure, [cells] = panels(1, len(shown), height, share_x=False)
    for axes, panel in zip(cells, shown, strict=True):
        _panel(axes, panel)
    settle(figure)
    for axes, panel in zip(cells, shown, strict=True):
        at = 0 if panel.names_left else -1
        names = [(line.x[at], line.y[at], line.name, look_of(line.look).colour) for line in panel.lines if line.x]
        end_labels(axes, names, room=panel.room, left=panel.names_left)
    save(figure, path)
    return True


def _panel(axes: Axes, panel: Panel) -> None:
    for height, name in panel.levels:
        axes.axhline(height, color=BASELINE, linewidth=0.8, dashes=(4, 2), zorder=1)
        over = any(y > height for line in panel.lines for y in line.y)
        axes.annotate(
            name, (1, height), xycoords=("axes fraction", "data"), xytext=(-2, 2 if over else -2), ha="right",
            va="bottom" if over else "top", textcoords="offset points", fontsize=SIZE, color=BASELINE,
        )  # fmt: skip
    for place, line in enumerate(panel.lines):
        _line(axes, panel, line, place)
    if panel.log_x:
        axes.set_xscale("log")
    _limits(axes, panel)
    axes.xaxis.set_major_locator(FixedLocator([at for at, _ in panel.ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticklabels([name for _, name in panel.ticks])
    if panel.scale == "accuracy":
        values = [y for line in panel.lines for y in (*line.y, *(dot for dots in line.dots for dot in dots))]
        accuracy_scale(axes, values, below=_FOOT if panel.lost else 0.0)
    _crosses(axes, panel)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)


def _crosses(axes: Axes, panel: Panel) -> None:
    """A row of crosses for each method, one over the other."""
    names = list(dict.fromkeys(name for name, _ in panel.lost))
    for name, at in panel.lost:
        height = _FOOT * (names.index(name) + 0.5) / len(names)
        axes.plot(
            [at], [height], "x", color=look_of(name).colour, markersize=4, transform=axes.get_xaxis_transform()
        )  # fmt: skip
    if names:
        axes.annotate("diverged", (0.01, _FOOT / 2), xycoords="axes fraction", va="center", fontsize=SIZE)


def _line(axes: Axes, panel: Panel, line: Line, place: int) -> None:
    """Intervals of the same place stand a little beside one another, so that none hides another."""
    look = look_of(line.look)
    step = 0.0 if panel.log_x or not line.bars else 0.012 * (place - (len(panel.lines) - 1) / 2)
    xs = [x + step * (panel.ticks[-1][0] - panel.ticks[0][0]) for x in line.x]
    for x, dots in zip(xs, line.dots, strict=False):
        axes.plot([x] * len(dots), dots, ".", color=look.colour, markersize=2, alpha=0.5, zorder=2)
    for x, (low, high) in zip(xs, line.bars, strict=False):
        axes.plot([x, x], [low, high], color=look.colour, linewidth=0.8, zorder=2)
    axes.plot(xs, line.y, color=look.colour, marker=look.marker, dashes=look.dashes, markersize=3.2, zorder=3)


def _limits(axes: Axes, panel: Panel) -> None:
    """The x axis goes on beyond the points for as long as the names need."""
    low, high = panel.ticks[0][0], panel.ticks[-1][0]
    names = (panel.room + _MARGIN) / (1 - panel.room)
    before, after = (names, _MARGIN) if panel.names_left else (_MARGIN, names)
    if panel.log_x:
        span = high / low
        axes.set_xlim(low / span**before, high * span**after)
    else:
        axes.set_xlim(low - before * (high - low), high + after * (high - low))
