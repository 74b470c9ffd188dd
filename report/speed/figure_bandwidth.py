"""Figure: step time against bandwidth, timed points on modelled curves, a panel per workload."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from harness.records.timings import Method
from report.kit.looks import look_of
from report.kit.plotting import end_labels, panels, save, settle
from report.kit.wording import listed
from report.speed.speedups import HIGHEST, LOWEST, log_grid
from report.speed.study import Bench, SpeedStudy
from report.speed.tables_agreement import agreement_sentence
from report.speed.units import milliseconds

FEW = ("ddp", "ddp_fp16", "powersgd_2", "mcser_32", "mcser", "mcser_1024", "diloco")
"""Methods, by name, that figures show by default: the baselines to beat, and the proposed one at its ratios."""

_ROOM = 0.22


def draw_step_times(study: SpeedStudy, path: Path, everything: bool = False) -> bool:
    """Lines where something was swept, markers where something was timed; False where there are neither.

    Args:
        everything: a line for every method, and not for few of them.
    """
    shown = [bench for bench in study.benches if bench.is_modelled or any(_spots(bench, m) for m in bench.methods)]
    if not shown:
        return False
    figure, grid = panels(len(shown), 1, 2.9 if everything else 1.6, share_x=False)
    labels = [
        _panel(axes, bench, bench.methods if everything else few_of(bench))
        for [axes], bench in zip(grid, shown, strict=True)
    ]
    settle(figure)
    for [axes], names in zip(grid, labels, strict=True):
        end_labels(axes, names, room=_ROOM, left=True)
    save(figure, path)
    return True


def few_of(bench: Bench) -> tuple[Method, ...]:
    """Those that a figure shows by default; all of a workload that has none of them."""
    return tuple(method for method in bench.methods if method.name in FEW) or bench.methods


def leaves_out(study: SpeedStudy) -> bool:
    """Whether figures by default show less than there is."""
    return any(len(few_of(bench)) < len(bench.methods) for bench in study.benches)


def _panel(axes: Axes, bench: Bench, methods: Sequence[Method]) -> list[tuple[float, float, str, str]]:
    axes.set_xscale("log")
    axes.set_yscale("log")
    labels = []
    rates = log_grid(LOWEST, HIGHEST)
    swept = bench.is_modelled
    for method in methods:
        look, spots = look_of(method.label), _spots(bench, method)
        ends = list(spots)
        if swept:
            ends = [(rate / 1e6, 1e3 * bench.clock_seconds(method, rate)) for rate in rates]
            xs, ys = zip(*ends, strict=True)
            axes.plot(xs, ys, color=look.colour, dashes=look.dashes, linewidth=0.9, zorder=2 + (not method.baseline))
        if spots:
            xs, ys = zip(*spots, strict=True)
            axes.plot(xs, ys, color=look.colour, marker=look.marker, markersize=3, linestyle="none", zorder=4)
        if ends:
            labels.append((*ends[0], method.label, look.colour))
    low, high = LOWEST / 1e6, HIGHEST / 1e6
    axes.set_xlim(low / (high / low) ** (_ROOM / (1 - _ROOM)), high)
    axes.set_xticks([10.0**power for power in range(6)])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} Mb/s" if value < 1e3 else f"{value / 1e3:g} Gb/s")
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(axes) < 3 else (1,), numticks=12))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} ms" if value < 1e3 else f"{value / 1e3:,g} s")
    axes.set_title(f"{bench.workload.name} ({bench.basis} points, modelled lines)", loc="left")
    axes.set_xlabel("bandwidth of each machine's link, each way (log scale)")
    axes.set_ylabel("time of a step (log scale)")
    return labels


def _decades(axes: Axes) -> float:
    low, high = axes.get_ylim()
    return math.log10(high / low)


def _spots(bench: Bench, method: Method) -> list[tuple[float, float]]:
    """Rate in megabits a second and milliseconds of what was timed on the curves' layout, from slow to fast."""
    layout = (bench.main.fabric.num_machines, bench.main.fabric.workers_per_machine)
    spots = []
    for point in bench.points:
        fabric = point.timing.fabric
        rate = fabric.stands_for_bits_per_second
        if point.method.name == method.name and rate and (fabric.num_machines, fabric.workers_per_machine) == layout:
            spots.append((rate / 1e6, 1e3 * point.timed.seconds))
    return sorted(spots)


def found_step_times(study: SpeedStudy) -> str:
    """What the figure shows."""
    names = listed([f"{bench.workload.name} ({bench.basis})" for bench in study.benches])
    return f"Steps of {names}. {agreement_sentence(study.points)}"


def step_times_note(study: SpeedStudy) -> str:
    """What a curve assumes."""
    alphas = []
    for bench in study.benches:
        network = bench.network(HIGHEST)
        if network:
            used = network.links["all_reduce"].between.alpha
            alphas.append(f"{milliseconds(used)} ms for {bench.workload.name}")
    latency = f"; a hop's latency at the right end is the fitted one, {listed(alphas)}" if alphas else ""
    return (
        "Markers: timed here. Lines: modelled, beyond the markers an extrapolation"
        f"{latency}. Emulated workloads are shown without encoding, decoding and update, measured ones with them. "
        "Greys and orange: baselines."
    )
