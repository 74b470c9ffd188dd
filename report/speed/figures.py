"""The figures of the report of speed: speed-ups over rates, the headlines over compute time, loss over step time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from report.plotting import colour_of, end_labels, new_figure, style
from report.speed.comparisons import DDP, HEADLINES, PROPOSED, RIVALS, headline_marks, log_grid, speedups_frame
from report.speed.workload_model import SpeedStudy, WorkloadModel
from report.wording import rate

LOW, HIGH = 1e9, 100e9
"""Bits per second, of figures over rates."""
SHOWN = ("ddp_fp16", "powersgd_2", "ef_sgd", "diloco", PROPOSED, "mcser_overlap")
"""Methods, by name, of the figure of speed-ups."""
LOWEST_POINTS = -1.5
"""Against SGD, of the figure of losses; rows that lose more are triangles at its foot."""
RIVAL_COLOURS = {DDP: "#555555", "ddp_fp16": "#B8860B", "powersgd_2": "#C23B00"}


def draw_speedups(study: SpeedStudy, model: WorkloadModel) -> Figure:
    """Two panels over the rate of a link: over DDP in fp32, and over the best baseline; lines modelled, dots timed."""
    frame = speedups_frame(model, log_grid(LOW, HIGH))
    timed = study.cells[(study.cells["workload"] == model.workload.name) & (study.cells["workers_per_machine"] == 1)]
    timed = timed[~timed["crowded"] & (timed["method"].isin(SHOWN) | timed["baseline"])]
    with style():
        figure, panels = new_figure(2.9, 2)
        for axes, column, words in zip(
            panels, ("over_ddp", "over_best"), ("DDP in fp32", "the best baseline"), strict=True
        ):
            ends = []
            for name in (name for name in SHOWN if name in model.methods):
                own, method = frame[frame["method"] == name], model.methods[name]
                colour = RIVAL_COLOURS.get(name, colour_of(method.algorithm or ""))
                dashes = "--" if method.overlap and not method.baseline else "-"
                axes.plot(own["bits_per_second"] / 1e9, own[column], color=colour, linestyle=dashes)
                xs, ys = _timed_factors(timed, name, column)
                axes.plot(xs, ys, "o", color=colour, markersize=3, zorder=4)
                ends.append((HIGH / 1e9, float(own[column].iloc[-1]), method.label, colour))
            axes.axhline(1, color="#999999", linewidth=0.8)
            axes.set_xscale("log")
            axes.set_xlim(LOW / 1e9, 10 ** (2 + (1.35 if column == "over_best" else 0.1)))
            _plain_ticks(axes.xaxis, (1, 2, 5, 10, 25, 50, 100))
            axes.set_ylim(0, None if column == "over_ddp" else 1.7)
            axes.set_xlabel("rate of each machine's link, Gb/s (log scale)")
            axes.set_title(f"Speed-up over {words}")
            if column == "over_best":
                end_labels(axes, ends)
        panels[0].set_ylabel("times as fast (linear)")
    return figure


def _timed_factors(timed: pd.DataFrame, name: str, column: str) -> tuple[list[float], list[float]]:
    """Rates in gigabits a second and speed-ups by the clock, of networks on which method and baseline were timed."""
    xs, ys = [], []
    for _, cells in timed.groupby("timing"):
        own = cells[cells["method"] == name]["seconds"]
        base = cells[cells["baseline"] if column == "over_best" else cells["method"] == DDP]["seconds"].min()
        bits = float(cells["bits_per_second"].iloc[0])
        if len(own) and LOW * 0.99 <= bits <= HIGH * 1.01:
            xs.append(bits / 1e9)
            ys.append(float(base / own.iloc[0]))
    return xs, ys


def _plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_headlines(study: SpeedStudy, frame: pd.DataFrame) -> Figure:
    """For each headline the rate up to which it holds, over compute time, with the published compute times marked."""
    frame = frame[(frame["method"] == PROPOSED) & frame["holds_up_to"].notna()].drop_duplicates(
        ["headline", "rival", "compute_seconds"]
    )
    shown = [headline for headline in HEADLINES if headline.words in set(frame["headline"])]
    with style():
        figure, panels = new_figure(2.7, max(1, len(shown)))
        for axes, headline in zip(panels, shown, strict=False):
            model = study.models[headline.workload]
            lines = frame[frame["headline"] == headline.words]
            ends = []
            for rival in RIVALS:
                own = lines[lines["rival"] == rival]
                if len(own):
                    colour = RIVAL_COLOURS[rival]
                    axes.plot(1e3 * own["compute_seconds"], own["holds_up_to"] / 1e9, color=colour)
                    last = own.iloc[-1]
                    ends.append(
                        (
                            1e3 * last["compute_seconds"],
                            last["holds_up_to"] / 1e9,
                            f"over {model.methods[rival].label}",
                            colour,
                        )
                    )
            axes.set_xlim(20, 77)
            axes.set_ylim(0, 20 if headline is HEADLINES[0] else 12)
            axes.axhline(10, color="#999999", linewidth=0.8, linestyle=":")
            axes.text(76.5, 10.2, "10 Gb/s", ha="right", va="bottom")
            for seconds in headline_marks(headline, model)["compute_seconds"]:
                axes.axvline(1e3 * seconds, color="#1A5FD0", linewidth=0.7, linestyle="--")
            _plain_ticks(axes.xaxis, (20, 30, 40, 50, 60))
            axes.set_xlabel("compute of a step, ms; dashed: published rates of a V100")
            axes.set_ylabel("Gb/s up to which it holds")
            axes.set_title(f"“{headline.words}”")
            end_labels(axes, ends)
    return figure


def draw_loss_and_step(frame: pd.DataFrame, margin: float | None) -> Figure:
    """Points lost against SGD over the emulated step, a panel a rate; the frontier is joined and named."""
    known = frame.dropna(subset=["seconds", "estimate"])
    rates = sorted(known["bits_per_second"].unique())
    lowest = max(LOWEST_POINTS, 100 * float(known["estimate"].min()) - 0.2)
    with style():
        figure, panels = new_figure(3.1, max(1, len(rates)))
        figure.set_layout_engine("constrained", wspace=0.08)
        for axes in panels[1:]:
            axes.sharey(panels[0])
            axes.tick_params(labelleft=False)
        for axes, bits in zip(panels, rates, strict=False):
            _loss_panel(axes, known[known["bits_per_second"] == bits], margin, lowest)
            axes.set_title(f"Links of {rate(bits)}")
            axes.set_xlabel("step, ms (log scale)")
        panels[0].set_ylabel("points against SGD; above: better")
        figure.draw_without_rendering()
        for axes, bits in zip(panels, rates, strict=False):
            _name_frontier(axes, known[(known["bits_per_second"] == bits) & known["frontier"]], lowest)
    return figure


def _loss_panel(axes: Axes, own: pd.DataFrame, margin: float | None, lowest: float) -> None:
    xs, ys = 1e3 * own["seconds"], (100 * own["estimate"]).clip(lower=lowest)
    axes.set_xscale("log")
    low, high = float(xs.min()) * 0.9, float(xs.max()) * 1.2
    axes.set_xlim(low, max(high, low * 2.5))
    axes.set_ylim(lowest - 0.15, 0.9)
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
    """Names beside their points, each where it touches no other name and does not leave the axes."""
    taken: list[Bbox] = []
    inside = axes.get_window_extent()
    for line in frontier.sort_values("estimate", ascending=False).to_dict("records"):
        point = (1e3 * line["seconds"], max(100 * line["estimate"], lowest))
        for across, up in ((5, y) for y in (0, 9, -9, 18, -18, 27, -27, 36, -36, 45, -45, 54, -54)):
            text = axes.annotate(
                line["label"], point, xytext=(across, up), textcoords="offset points", va="center",
                color=colour_of(line["algorithm"]),
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            )  # fmt: skip
            box = text.get_window_extent().padded(1.0)
            if not any(box.overlaps(other) for other in taken) and inside.y0 < box.y0 and box.y1 < inside.y1:
                taken.append(box)
                break
            text.remove()
