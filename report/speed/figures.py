"""The figures of the report of speed: speed-ups over a link's rate, and accuracy drop over step time."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cser_bench.report.plotting import (
    colour_of,
    end_labels,
    new_figure,
    shape_of,
    style,
)
from cser_bench.report.speed.comparisons import (
    DDP,
    PROPOSED,
    RIVALS,
    log_grid,
    speedups_frame,
)
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel
from cser_bench.report.wording import rate

LOW = 1e9
HIGH = 100e9
"""Bits per second, of figures over rates."""

SHOWN = ("ddp_fp16", "powersgd_2", "ef_sgd", "diloco", PROPOSED, "mcser_overlap")
"""Methods, by name, of the figure of speed-ups."""

MOST_DROP = 0.8
"""Largest accuracy drop that is drawn, in points; beyond it a row is an arrow at the top."""

BEYOND = "$\u2191$"
"""Mark of a larger drop than is drawn: an arrow upwards."""

ALL_SENT = "DDP (fp32)"
"""What accuracy drops are against, by label."""

COMPARED = ("M-CSER top-k", "local SGD")
"""Methods, by label, that are named in the figure of drops even where a frontier leaves them out."""

RIVAL_COLOURS = {"ddp_fp16": "#B8860B", "powersgd_2": "#00797F"}

# Room for the labels at the right of a panel, in decades of the axis.
_LABEL_DECADES = 2.6

_GIGA = 1e9

# Where an axis over some decades has ticks; the first with few enough labels is taken.
_TICKS_A_DECADE = ((1, 2, 3, 5), (1, 3), (1,))
_MOST_TICKS = 4


def draw_speedups(
    study: SpeedStudy, model: WorkloadModel, families: Mapping[str, str]
) -> Figure:
    """Draw two panels over the rate of a link: over DDP in fp32, and over the best baseline.

    Lines are modelled, dots timed.
    """
    modelled = speedups_frame(model, log_grid(LOW, HIGH))
    timed = _shown_steps(study.timed_steps, model.workload.name)
    colours = {
        name: RIVAL_COLOURS.get(name, colour_of(method.algorithm, families))
        for name, method in model.methods.items()
    }
    with style():
        figure, (over_ddp, over_best) = new_figure(2.9, 2)
        ddp = timed[timed["method"] == DDP]
        over_ddp.set(title="Over DDP in fp32")
        over_ddp_ends = _draw_curves(
            over_ddp, model, modelled, "over_ddp", timed, ddp, colours
        )
        _set_rate_axis(over_ddp, _LABEL_DECADES)
        over_ddp.set(ylim=(0, None))
        over_ddp.set_ylabel("times as fast (linear)")

        over_best.set(title="Over the fastest baseline")
        baselines = _complete_baselines(timed)
        ends = _draw_curves(
            over_best, model, modelled, "over_best", timed, baselines, colours
        )
        _set_rate_axis(over_best, _LABEL_DECADES)
        over_best.set(ylim=(0.8, 1.2))
        end_labels(over_ddp, over_ddp_ends)
        end_labels(over_best, ends)
    return figure


def _shown_steps(steps: pd.DataFrame, workload: str) -> pd.DataFrame:
    """Return what was timed on the curves' layout and rates, where it was not crowded."""
    # A crowded cell is slow by this host's cores, which says nothing of a GPU.
    is_own = (steps["workload"] == workload) & (steps["workers_per_machine"] == 1)
    # A rate is timed as the dilation lets it be, not quite at the end of the axis.
    is_shown = steps["bits_per_second"].between(0.99 * LOW, 1.01 * HIGH)
    return steps[is_own & ~steps["crowded"] & is_shown]


def _complete_baselines(timed: pd.DataFrame) -> pd.DataFrame:
    """Return the baselines of timings that have all of them.

    Where one was not timed, which is best is not known.
    """
    complete = []
    for number, methods in timed.groupby("timing")["method"]:
        if set(RIVALS) <= set(methods):
            complete.append(number)
    return timed[timed["baseline"] & timed["timing"].isin(complete)]


def _draw_curves(
    axes: Axes,
    model: WorkloadModel,
    modelled: pd.DataFrame,
    column: str,
    timed: pd.DataFrame,
    baselines: pd.DataFrame,
    colours: Mapping[str, str],
) -> list[tuple[float, float, str, str]]:
    """Draw the speed-ups of one panel, and return the ends of the lines with label and colour."""
    # Index: timing. Dots are compared with baselines of their own session alone.
    fastest = baselines.groupby("timing")["seconds"].min()
    gains = timed["timing"].map(fastest) / timed["seconds"]
    ends = []
    for name in SHOWN:
        if name not in model.methods:
            continue
        method = model.methods[name]
        colour = colours[name]
        dashes = "-"
        # Baselines all overlap, which needs no mark.
        if method.overlap and not method.baseline:
            dashes = "--"
        curve = modelled[modelled["method"] == name]
        axes.plot(
            curve["bits_per_second"] / _GIGA,
            curve[column],
            color=colour,
            linestyle=dashes,
        )
        is_own = timed["method"] == name
        axes.plot(
            timed["bits_per_second"][is_own] / _GIGA,
            gains[is_own],
            "o",
            color=colour,
            markersize=3,
            zorder=4,
        )
        # The caption says that hooks are DDP's.
        name = method.label.removeprefix("DDP + ")
        ends.append((HIGH / _GIGA, float(curve[column].iloc[-1]), name, colour))
    axes.hlines(1, LOW / _GIGA, HIGH / _GIGA, colors="#999999", linewidth=0.8)
    return ends


def _set_rate_axis(axes: Axes, decades_beyond: float) -> None:
    """Set the axis of rates, with room beyond the last for labels."""
    # Lines end at `HIGH`, which is 10^2 Gb/s.
    right = 10 ** (2 + decades_beyond)
    axes.set(xscale="log", xlim=(LOW / _GIGA, right))
    _plain_ticks(axes.xaxis, (1, 2, 5, 10, 25, 50, 100))
    axes.set_xlabel("rate of each machine's link, Gb/s (log scale)")


def _plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_loss_and_step(
    lines: pd.DataFrame, margin: float | None, families: Mapping[str, str]
) -> Figure:
    """Draw the accuracy drop over the emulated step, a panel a rate.

    The frontier is joined; its methods are named, and those that all are compared with.
    """
    drawn = lines.dropna(subset=["seconds", "estimate"])
    drawn = drawn.assign(
        colour=[colour_of(name, families) for name in drawn["algorithm"]],
        shape=[shape_of(name, families) for name in drawn["algorithm"]],
    )
    drawn = drawn.assign(drop=-100 * drawn["estimate"])
    most = min(MOST_DROP, float(drawn["drop"].max()) + 0.2)
    by_rate = list(drawn.groupby("bits_per_second"))
    with style():
        figure, panels = new_figure(3.1, max(1, len(by_rate)))
        figure.set_layout_engine("constrained", wspace=0.08)
        for axes in panels[1:]:
            axes.sharey(panels[0])
            axes.tick_params(labelleft=False)
        for axes, (bits, points) in zip(panels, by_rate, strict=False):
            _drop_panel(axes, points, margin, most)
            axes.set(
                title=f"Links of {rate(float(str(bits)))}",
                xlabel="step, ms (log scale)",
            )
        panels[0].set_ylabel("accuracy drop, points")
        # Labels are placed by the limits of the axes, which all panels share by now.
        for axes, (_, points) in zip(panels, by_rate, strict=False):
            _label_points(axes, points, most)
    return figure


def _drop_panel(
    axes: Axes, points: pd.DataFrame, margin: float | None, most: float
) -> None:
    """Draw the drops of one rate over their steps; those beyond `most` are arrows at the top."""
    milliseconds = 1e3 * points["seconds"]
    drops = points["drop"]
    shown = drops.clip(upper=most)
    is_seen = drops <= most
    _set_limits(axes, milliseconds, most)
    if margin:
        axes.axhspan(-100 * margin, 100 * margin, color="#eaf2e3", zorder=0)
    # Lengths of bars. A drop is minus an estimate, so the ends of its interval are swapped.
    below = drops + 100 * points["high"]
    above = -100 * points["low"] - drops
    axes.errorbar(
        milliseconds[is_seen],
        shown[is_seen],
        yerr=[below[is_seen].abs(), above[is_seen].abs()],
        fmt="none",
        ecolor="#bbbbbb",
        elinewidth=0.8,
        zorder=1,
    )
    for line, drop in zip(points.to_dict("records"), shown, strict=True):
        marker = BEYOND
        if line["drop"] <= most:
            marker = line["shape"]
        axes.scatter(
            1e3 * line["seconds"], drop, s=16, c=line["colour"], marker=marker, zorder=3
        )
    frontier = points[points["frontier"]].sort_values("seconds")
    axes.plot(
        1e3 * frontier["seconds"],
        frontier["drop"],
        color="#333333",
        linewidth=0.8,
        zorder=2,
    )
    _set_step_ticks(axes)


def _set_limits(axes: Axes, milliseconds: pd.Series, most: float) -> None:
    left = float(milliseconds.min()) * 0.9
    right = float(milliseconds.max()) * 1.2
    axes.set_xscale("log")
    # Steps that are nearly alike would fill the axis and look far apart.
    axes.set_xlim(left, max(right, left * 2.5))
    axes.set_ylim(-0.4, most + 0.08)


def _set_step_ticks(axes: Axes) -> None:
    """Set as many ticks as have room for their labels."""
    left, right = axes.get_xlim()
    decades = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
    ticks: list[float] = []
    for factors in _TICKS_A_DECADE:
        ticks = [factor * 10.0**power for power in decades for factor in factors]
        ticks = [tick for tick in ticks if left <= tick <= right]
        if len(ticks) <= _MOST_TICKS:
            break
    _plain_ticks(axes.xaxis, ticks)


def _label_points(axes: Axes, points: pd.DataFrame, most: float) -> None:
    """Name the methods of the frontier, those that all are compared with, and those beyond the axis."""
    ends = []
    is_named = points["frontier"] | points["label"].isin(COMPARED)
    # An arrow too, whose drop is not on the axis.
    is_named |= points["drop"] > most
    for line in points[is_named].sort_values("drop").to_dict("records"):
        ends.append(
            (
                1e3 * line["seconds"],
                min(line["drop"], most),
                line["label"],
                line["colour"],
            )
        )
    end_labels(axes, ends)
    for line in points[points["label"] == ALL_SENT].to_dict("records"):
        # It is far slower, at the right end, where a name has no room next to it.
        axes.annotate(
            # The caption says in which precision; a longer name would touch the others.
            "DDP",
            (1e3 * line["seconds"], line["drop"]),
            xytext=(4, 5),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=line["colour"],
        )
