"""The figures of the report of speed: speed-ups over rates, the headlines over compute time, loss over step time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from report.plotting import SIZE, colour_of, end_labels, new_figure, spread, style
from report.speed.comparisons import DDP, HEADLINES, PROPOSED, RIVALS, log_grid, speedups_frame
from report.speed.workload_model import SpeedStudy, WorkloadModel
from report.wording import rate

LOW, HIGH = 1e9, 100e9
"""Bits per second, of figures over rates."""
SHOWN = ("ddp_fp16", "powersgd_2", "ef_sgd", "diloco", PROPOSED, "mcser_overlap")
"""Methods, by name, of the figure of speed-ups."""
LOWEST_POINTS = -0.8
"""Against SGD, of the figure of losses; rows that lose more are triangles at its foot."""
RIVAL_COLOURS = {DDP: "#555555", "ddp_fp16": "#B8860B", "powersgd_2": "#00797F"}


def draw_speedups(study: SpeedStudy, model: WorkloadModel) -> Figure:
    """Two panels over the rate of a link: over DDP in fp32, and over the best baseline; lines modelled, dots timed."""
    frame = speedups_frame(model, log_grid(LOW, HIGH))
    cells = study.cells[(study.cells["workload"] == model.workload.name) & (study.cells["workers_per_machine"] == 1)]
    cells = cells[~cells["crowded"] & cells["bits_per_second"].between(0.99 * LOW, 1.01 * HIGH)]
    titles = {"over_ddp": "Speed-up over DDP in fp32", "over_best": "Speed-up over the best baseline"}
    with style():
        figure, panels = new_figure(2.9, 2)
        for axes, (column, title) in zip(panels, titles.items(), strict=True):
            bases = cells[cells["baseline"] if column == "over_best" else cells["method"] == DDP]
            if column == "over_best":  # where one of them was not timed, which is best is not known
                whole = [number for number, own in cells.groupby("timing")["method"] if {*RIVALS} <= {*own}]
                bases = bases[bases["timing"].isin(whole)]
            gains = cells["timing"].map(bases.groupby("timing")["seconds"].min()) / cells["seconds"]
            ends = []
            for name in (name for name in SHOWN if name in model.methods):
                own, method = frame[frame["method"] == name], model.methods[name]
                colour = RIVAL_COLOURS.get(name, colour_of(method.algorithm or ""))
                dashes = "--" if method.overlap and not method.baseline else "-"
                axes.plot(own["bits_per_second"] / 1e9, own[column], color=colour, linestyle=dashes)
                timed = cells["method"] == name
                axes.plot(
                    cells["bits_per_second"][timed] / 1e9, gains[timed], "o", color=colour, markersize=3, zorder=4
                )
                ends.append((HIGH / 1e9, float(own[column].iloc[-1]), method.label, colour))
            axes.hlines(1, LOW / 1e9, HIGH / 1e9, colors="#999999", linewidth=0.8)
            axes.set_xscale("log")
            axes.set_xlim(LOW / 1e9, 10 ** (2 + (2 if column == "over_best" else 0.1)))
            _plain_ticks(axes.xaxis, (1, 2, 5, 10, 25, 50, 100))
            axes.set_ylim(*((0, None) if column == "over_ddp" else (0.8, 1.2)))
            axes.set_xlabel("rate of each machine's link, Gb/s (log scale)")
            axes.set_title(title)
            if column == "over_best":
                end_labels(axes, ends, leaders=True)
        panels[0].set_ylabel("times as fast (linear)")
    return figure


def _plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_headlines(study: SpeedStudy, frame: pd.DataFrame) -> Figure:
    """For each headline the rate up to which it holds, over compute time, with the published compute times marked."""
    frame = frame[(frame["method"] == PROPOSED) & frame["holds_up_to"].notna()]
    frame = frame.assign(ms=1e3 * frame["compute_seconds"], gigabits=frame["holds_up_to"] / 1e9)
    shown = [headline for headline in HEADLINES if headline.words in set(frame["headline"])]
    with style():
        figure, panels = new_figure(2.7, max(1, len(shown)))
        for axes, headline in zip(panels, shown, strict=False):
            methods = study.models[headline.workload].methods
            lines = frame[frame["headline"] == headline.words].drop_duplicates(["rival", "ms"])
            ends = []
            for rival in (rival for rival in RIVALS if rival in set(lines["rival"])):
                own, colour = lines[lines["rival"] == rival], RIVAL_COLOURS[rival]
                axes.plot(own["ms"], own["gigabits"], color=colour)
                ends.append((*own[["ms", "gigabits"]].iloc[-1], f"over {methods[rival].label}", colour))
            axes.set_xlim(20, 77)
            axes.set_ylim(0, 20 if headline is HEADLINES[0] else 12)
            axes.axhline(10, color="#999999", linewidth=0.8, linestyle=":")
            axes.text(76.5, 10.2, "10 Gb/s", ha="right", va="bottom")
            for ms in lines["ms"][lines["source"].notna()].unique():
                axes.axvline(ms, color="#1A5FD0", linewidth=0.7, linestyle="--")
            _plain_ticks(axes.xaxis, (20, 30, 40, 50, 60))
            axes.set_xlabel("compute of a step, ms; dashed: published rates of a V100")
            axes.set_ylabel("Gb/s up to which it holds")
            axes.set_title(f"“{headline.words}”")
            end_labels(axes, ends)
    return figure


def draw_loss_and_step(frame: pd.DataFrame, margin: float | None) -> Figure:
    """Points lost against SGD over the emulated step, a panel a rate; the frontier is joined and named."""
    known = frame.dropna(subset=["seconds", "estimate"])
    lowest = max(LOWEST_POINTS, 100 * float(known["estimate"].min()) - 0.2)
    by_rate = list(known.groupby("bits_per_second"))
    with style():
        figure, panels = new_figure(3.1, max(1, len(by_rate)))
        figure.set_layout_engine("constrained", wspace=0.08)
        for axes in panels[1:]:
            axes.sharey(panels[0])
            axes.tick_params(labelleft=False)
        for axes, (bits, own) in zip(panels, by_rate, strict=False):
            _loss_panel(axes, own, margin, lowest)
            axes.set_title(f"Links of {rate(float(str(bits)))}")
            axes.set_xlabel("step, ms (log scale)")
        panels[0].set_ylabel("points against SGD; above: better")
        figure.draw_without_rendering()
        for axes, (_, own) in zip(panels, by_rate, strict=False):
            _name_frontier(axes, own[own["frontier"]], lowest)
    return figure


def _loss_panel(axes: Axes, own: pd.DataFrame, margin: float | None, lowest: float) -> None:
    xs, ys = 1e3 * own["seconds"], (100 * own["estimate"]).clip(lower=lowest)
    axes.set_xscale("log")
    low, high = float(xs.min()) * 0.9, float(xs.max()) * 1.2
    axes.set_xlim(low, max(high, low * 2.5))
    axes.set_ylim(lowest - 0.08, 0.4)
    if margin:
        axes.axhspan(-100 * margin, 100 * margin, color="#eaf2e3", zorder=0)
    seen = 100 * own["estimate"] >= lowest
    errors = [100 * (own["estimate"] - own["low"])[seen], 100 * (own["high"] - own["estimate"])[seen]]
    axes.errorbar(xs[seen], ys[seen], yerr=errors, fmt="none", ecolor="#bbbbbb", elinewidth=0.8, zorder=1)
    colours = pd.Series([colour_of(name) for name in own["algorithm"]], own.index)
    for which, marker in ((seen, "o"), (~seen, "v")):
        axes.scatter(xs[which], ys[which], s=14, c=colours[which], marker=marker, zorder=3)
    frontier = own[own["frontier"]].sort_values("seconds")
    axes.plot(1e3 * frontier["seconds"], 100 * frontier["estimate"], color="#333333", linewidth=0.8, zorder=2)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(axes.get_xlim()[1])) + 1)
    tries = [[sub * 10.0**power for power in decades for sub in subs] for subs in ((1, 2, 3, 5), (1, 3), (1,))]
    within = [[tick for tick in ticks if low <= tick <= axes.get_xlim()[1]] for ticks in tries]
    _plain_ticks(axes.xaxis, next((ticks for ticks in within if len(ticks) <= 4), within[-1]))


def _name_frontier(axes: Axes, frontier: pd.DataFrame, lowest: float) -> None:
    """Names in a column right of the frontier, in the order of its points, so that no leader crosses another."""
    figure, box = axes.get_figure(root=True), axes.get_window_extent()
    assert figure is not None, "axes are made with their figure"
    frontier = frontier.sort_values("estimate")
    ends = list(zip(1e3 * frontier["seconds"], (100 * frontier["estimate"]).clip(lower=lowest), strict=True))
    pixels = axes.transData.transform(ends)
    gap = 1.3 * SIZE * figure.dpi / 72
    heights = spread(pixels[:, 1].tolist(), gap, box.y0 + gap, box.y1 - gap)
    offsets = 72 / figure.dpi * (np.column_stack([np.full(len(ends), pixels[:, 0].max()), heights]) - pixels)
    for end, (across, up), label, name in zip(ends, offsets, frontier["label"], frontier["algorithm"], strict=True):
        offset: dict[str, Any] = {"textcoords": "offset points", "va": "center", "color": colour_of(name)}
        leader = {"arrowstyle": "-", "linewidth": 0.5, "color": "#999999", "shrinkA": 0, "shrinkB": 2}
        axes.annotate("", end, (across + 13, up), arrowprops=leader, **offset)
        axes.annotate(label, end, (across + 14, up), **offset)
