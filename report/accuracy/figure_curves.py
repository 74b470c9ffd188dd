"""Figures over steps: a row of panels for each quantity, a column for each ratio, a line for each method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from harness.records.store import Event
from report.accuracy.curves import Curve, curve_of
from report.accuracy.findings import RatioGroup, Study
from report.accuracy.records import RowRuns
from report.kit.looks import look_of
from report.kit.plotting import accuracy_scale, legend, panels, plain_log_ticks, save
from report.kit.wording import listed

CUT = 100
"""Log axes end this factor from the median, or one run that blew up would press the others into a line."""

_MOST_PANELS = 4


@dataclass(frozen=True)
class Quantity:
    """What is drawn over the steps."""

    name: str
    value: Callable[[Event], float | None]
    log: bool


@dataclass(frozen=True)
class RatioPanel:
    """The rows of one ratio, each with its method's name."""

    ratio: float
    rows: tuple[tuple[str, RowRuns], ...]

    def curves(self, quantity: Quantity) -> list[tuple[str, Curve]]:
        """Of the rows that have the quantity."""
        found = [(name, curve_of(rows, quantity.value, positive=quantity.log)) for name, rows in self.rows]
        return [(name, curve) for name, curve in found if curve]

    def last(self, quantity: Quantity) -> list[tuple[float, str]]:
        """The last mean of each method."""
        return [(curve.mean[-1], name) for name, curve in self.curves(quantity)]


def shown_groups(study: Study) -> Sequence[RatioGroup]:
    """The ratios that have a panel: all, or of many the first, the last and some evenly between."""
    groups = study.groups
    if len(groups) <= _MOST_PANELS:
        return groups
    return [groups[round(i * (len(groups) - 1) / (_MOST_PANELS - 1))] for i in range(_MOST_PANELS)]


def panels_note(study: Study) -> str:
    """Says so where not every ratio has a panel, else empty."""
    shown = shown_groups(study)
    if len(shown) == len(study.groups):
        return ""
    return f"Of {len(study.groups)} ratios {len(shown)} are drawn; csv/curves.csv has all."


def draw_columns(columns: Sequence[RatioPanel], quantities: Sequence[Quantity], path: Path) -> bool:
    """Draw what there is; False where no run has any of the quantities."""
    curves = {quantity.name: [column.curves(quantity) for column in columns] for quantity in quantities}
    drawn = [quantity for quantity in quantities if any(curves[quantity.name])]
    if not drawn:
        return False
    figure, grid = panels(len(drawn), len(columns), 1.9)
    entries = [entry for quantity in drawn for cell in curves[quantity.name] for entry in cell]
    last = max(curve.steps[-1] for _, curve in entries)
    for line, quantity in zip(grid, drawn, strict=True):
        for axes, cell in zip(line, curves[quantity.name], strict=True):
            _panel(axes, quantity, cell, last)
        _share_scale(line, quantity, curves[quantity.name])
        line[0].set_ylabel(f"{quantity.name}\n(log scale)" if quantity.log else quantity.name)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(f"ratio {column.ratio:g}", loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    legend(figure, list(dict.fromkeys(name for name, _ in entries)))
    save(figure, path)
    return True


def _panel(axes: Axes, quantity: Quantity, curves: Sequence[tuple[str, Curve]], last: int) -> None:
    for name, curve in curves:
        look = look_of(name)
        axes.fill_between(curve.steps, curve.low, curve.high, color=look.colour, alpha=0.15, linewidth=0)
        axes.plot(curve.steps, curve.mean, color=look.colour, dashes=look.dashes, linewidth=0.9)
        axes.plot(curve.steps[-1:], curve.mean[-1:], color=look.colour, marker=look.marker)
    if quantity.log:
        axes.set_yscale("log")
    axes.set_xlim(0, last * 1.04)
    axes.set_xticks([0, last / 2, last])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    # Only the lowest panels have visible labels; their ends must not reach into the next panel.
    for text in axes.get_xticklabels()[:1]:
        text.set_horizontalalignment("left")
    for text in axes.get_xticklabels()[2:]:
        text.set_horizontalalignment("right")


def _share_scale(line: Sequence[Axes], quantity: Quantity, curves: Sequence[Sequence[tuple[str, Curve]]]) -> None:
    """One y scale for a row of panels, so that ratios compare by eye."""
    numbers = [v for entries in curves for _, curve in entries for v in (*curve.low, *curve.high)]
    for axes in line:
        if quantity.log:
            middle = sorted(numbers)[len(numbers) // 2]
            axes.set_ylim(max(min(numbers), middle / CUT) / 1.15, min(max(numbers), middle * CUT) * 1.15)
            plain_log_ticks(axes.yaxis, most=12)
        else:
            accuracy_scale(axes, numbers)


def at_ratios(found: Sequence[tuple[float, str]]) -> str:
    """ "CSEA at ratio 64 and 256, CSER at ratio 1024" from pairs of ratio and name."""
    names = dict.fromkeys(name for _, name in found)
    return ", ".join(f"{name} at ratio {listed([f'{ratio:g}' for ratio, n in found if n == name])}" for name in names)
