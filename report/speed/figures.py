"""The figures of the report of speed: speed-ups over the rate of a link, and loss over the time of
a step."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cser_bench.report.plotting import colour_of, end_labels, new_figure, style
from cser_bench.report.speed.comparisons import DDP, PROPOSED, RIVALS, log_grid, speedups_frame
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel
from cser_bench.report.wording import rate

LOW, HIGH = 1e9, 100e9
"""Bits per second, of figures over rates."""
SHOWN = ("ddp_fp16", "powersgd_2", "ef_sgd", "diloco", PROPOSED, "mcser_overlap")
"""Methods, by name, of the figure of speed-ups."""
LOWEST_POINTS = -0.8
"""Against SGD, of the figure of losses; rows that lose more are triangles at its foot."""
RIVAL_COLOURS = {"ddp_fp16": "#B8860B", "powersgd_2": "#00797F"}


def draw_speedups(study: SpeedStudy, model: WorkloadModel) -> Figure:
    """Two panels over the rate of a link: over DDP in fp32, and over the best baseline; lines
    modelled, dots timed."""
    frame = speedups_frame(model, log_grid(LOW, HIGH))
    cells = study.cells[
        (study.cells["workload"] == model.workload.name) & (study.cells["workers_per_machine"] == 1)
    ]
    cells = cells[~cells["crowded"] & cells["bits_per_second"].between(0.99 * LOW, 1.01 * HIGH)]
    titles = {
        "over_ddp": "Speed-up over DDP in fp32",
        "over_best": "Speed-up over the best baseline",
    }
    with style():
        figure, panels = new_figure(2.9, 2)
        for axes, (column, title) in zip(panels, titles.items(), strict=True):
            bases = cells[cells["baseline"] if column == "over_best" else cells["method"] == DDP]
            if column == "over_best":  # where one of them was not timed, which is best is not known
                whole = [
                    number
                    for number, own in cells.groupby("timing")["method"]
                    if {*RIVALS} <= {*own}
                ]
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
                    cells["bits_per_second"][timed] / 1e9,
                    gains[timed],
                    "o",
                    color=colour,
                    markersize=3,
                    zorder=4,
                )
                ends.append((HIGH / 1e9, float(own[column].iloc[-1]), method.label, colour))
            axes.hlines(1, LOW / 1e9, HIGH / 1e9, colors="#999999", linewidth=0.8)
            axes.set(
                xscale="log", xlim=(LOW / 1e9, 10 ** (2 + (2 if column == "over_best" else 0.1)))
            )
            _plain_ticks(axes.xaxis, (1, 2, 5, 10, 25, 50, 100))
            axes.set(ylim=(0, None) if column == "over_ddp" else (0.8, 1.2), title=title)
            axes.set_xlabel("rate of each machine's link, Gb/s (log scale)")
            if column == "over_best":
                end_labels(axes, ends, leaders=True)
        panels[0].set_ylabel("times as fast (linear)")
    return figure


def _plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_loss_and_step(frame: pd.DataFrame, margin: float | None) -> Figure:
    """Points lost against SGD over the emulated step, a panel a rate; the frontier is joined and
    named."""
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
            axes.set(title=f"Links of {rate(float(str(bits)))}", xlabel="step, ms (log scale)")
        panels[0].set_ylabel("points against SGD; above: better")
        for axes, (_, own) in zip(panels, by_rate, strict=False):
            frontier = own[own["frontier"]].sort_values("estimate")
            ends = zip(
                1e3 * frontier["seconds"],
                (100 * frontier["estimate"]).clip(lower=lowest),
                strict=True,
            )
            names = zip(ends, frontier["label"], frontier["algorithm"].map(colour_of), strict=True)
            end_labels(axes, [(*end, label, colour) for end, label, colour in names], leaders=True)
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
    errors = [
        100 * (own["estimate"] - own["low"])[seen],
        100 * (own["high"] - own["estimate"])[seen],
    ]
    axes.errorbar(
        xs[seen], ys[seen], yerr=errors, fmt="none", ecolor="#bbbbbb", elinewidth=0.8, zorder=1
    )
    colours = pd.Series([colour_of(name) for name in own["algorithm"]], own.index)
    for which, marker in ((seen, "o"), (~seen, "v")):
        axes.scatter(xs[which], ys[which], s=14, c=colours[which], marker=marker, zorder=3)
    frontier = own[own["frontier"]].sort_values("seconds")
    axes.plot(
        1e3 * frontier["seconds"],
        100 * frontier["estimate"],
        color="#333333",
        linewidth=0.8,
        zorder=2,
    )
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(axes.get_xlim()[1])) + 1)
    tries = [
        [sub * 10.0**power for power in decades for sub in subs]
        for subs in ((1, 2, 3, 5), (1, 3), (1,))
    ]
    within = [[tick for tick in ticks if low <= tick <= axes.get_xlim()[1]] for ticks in tries]
    _plain_ticks(axes.xaxis, next((ticks for ticks in within if len(ticks) <= 4), within[-1]))
