"""README's picture: statistical efficiency over traffic, a line a method, and what is needed.

first_table.toml says which runs are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from cser_bench.report.first_table import Panel, measured_row, panels
from cser_bench.report.plotting import GREY, new_figure, style
from cser_bench.report.speed.job import RESNET50, Sending, ddp_seconds, method_seconds
from cser_bench.report.speed.needed import needed_efficiency
from cser_bench.report.wording import rate, traffic

HEIGHT = 2.9
"""Height of the figure in inches."""

LOOKS = {
    "EF 4-bit": ("#C23B00", "s"),
    "EF top-k": ("#E08A00", "o"),
    "DDP + PowerSGD hook": ("#333333", "P"),
    "M-CSER 4-bit": ("#6A9FE8", "D"),
    "DiLoCo": ("#6A2C91", "^"),
    "local SGD": ("#004D2C", "v"),
    "M-CSER blocks": ("#2A75DB", "X"),
}
"""Colour and mark of each method's line."""

ON_TEXT = {
    "local AdamW": "local SGD",
    "CSER blocks": "M-CSER blocks",
    "CSER 4-bit": "M-CSER 4-bit",
}
"""What methods with AdamW look like."""

DASHES_OF_NEEDS: dict[float, Literal["--", "-"]] = {1e9: "--", 1e10: "-"}
"""Bandwidths of the two lines of what is needed, in bits a second, with how they are drawn."""

TICKS = (1 / 2, 1 / 8, 1 / 24, 1 / 64)
"""Shares of DDP's traffic that the axis names."""

MOST_EFFICIENCY = 1.25
"""End of the other axis, with room for intervals that reach beyond 1."""

LEAST, MOST = 1 / 120, 1 / 1.7
"""Ends of the axis of traffic."""


def efficiency_figure() -> Figure:
    """Draw the picture, a panel a network on which efficiencies are known."""
    with style():
        shown = [panel for panel in panels() if any(map(_points, panel.lines.values()))]
        figure, all_axes = new_figure(HEIGHT, columns=len(shown))
        for axes, panel in zip(all_axes, shown, strict=True):
            _draw(axes, panel)
        all_axes[0].set_ylabel("efficiency")
        all_axes[-1].legend(
            handles=_legend_handles(), loc="center left", bbox_to_anchor=(1.01, 0.5)
        )
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.network)
    axes.set_xscale("log")
    axes.set_xlim(LEAST, MOST)
    axes.set_ylim(0, MOST_EFFICIENCY)
    axes.set_xlabel("share of DDP's traffic")
    axes.set_xticks(TICKS)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: traffic(share)))
    axes.minorticks_off()
    for bits_per_second, dashes in DASHES_OF_NEEDS.items():
        _draw_needed(axes, bits_per_second, dashes)
    for label, runs in panel.lines.items():
        points = _points(runs)
        if not points:
            continue
        colour, shape = LOOKS[ON_TEXT.get(label, label)]
        shares, worths, lows, highs = zip(*points, strict=True)
        # Bars are drawn by their lengths from the mark: (2, points).
        below = np.subtract(worths, lows)
        above = np.subtract(highs, worths)
        axes.errorbar(
            shares,
            worths,
            yerr=(below, above),
            color=colour,
            marker=shape,
            elinewidth=0.7,
        )


def _legend_handles() -> list[Line2D]:
    names = {looks: f"{looks}, {name}" for name, looks in ON_TEXT.items()}
    handles = []
    for label, (colour, shape) in LOOKS.items():
        named = names.get(label, label)
        handles.append(Line2D([], [], color=colour, marker=shape, label=named))
    for bits_per_second, dashes in DASHES_OF_NEEDS.items():
        named = f"needs at {rate(bits_per_second)}"
        handles.append(Line2D([], [], linestyle=dashes, label=named, **GREY))
    return handles


def _points(runs: Sequence[str]) -> list[tuple[float, float, float, float]]:
    """Return traffic, efficiency and its interval of the runs whose efficiency is a number."""
    points = []
    for run in runs:
        measured = measured_row(run)
        if not math.isnan(measured.estimate):
            points.append(
                (measured.traffic, measured.estimate, measured.low, measured.high)
            )
    return points


def _draw_needed(axes: Axes, bits_per_second: float, dashes: str) -> None:
    shares = np.geomspace(LEAST, MOST, 60)
    needed = [_needed_at(share, bits_per_second) for share in shares]
    axes.plot(shares, needed, linestyle=dashes, **GREY)


def _needed_at(share: float, bits_per_second: float) -> float:
    """Return what a step of ResNet-50 needs to tie with DDP's fp16 hook, without encoding."""
    job = replace(RESNET50, bits_per_second=bits_per_second)
    # So much in each step by one all-reduce after the backward pass, whatever the method.
    seconds = method_seconds(job, [Sending(share, 1.0, "all_reduce")])
    return needed_efficiency(seconds, ddp_seconds(job, 2))
