"""Figures: step time against bandwidth, timed points on modelled curves."""

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
from report.speed.study import Bench
from report.speed.tables_agreement import agreement_sentence
from report.speed.units import milliseconds

FEW = ("ddp", "ddp_fp16", "powersgd_2", "mcser_32", "mcser", "mcser_1024", "diloco")
"""Methods, by name, that figures show by default: the baselines to beat, and the proposed one at its ratios."""

_ALWAYS = ("ddp", "mcser")
"""Those that every panel of many methods shows, to compare the others with."""

_BELOW = 30
"""A figure of one workload begins at so many times less than the slowest link on which it was timed."""


def draw_step_times(bench: Bench, path: Path) -> bool:
    """One workload, few methods; lines where a network was swept, markers where steps were timed.

    False where there are neither.
    """
    if not _shows(bench):
        return False
    figure, [[axes]] = panels(1, 1, 2.5)
    labels = _panel(axes, bench, few_of(bench), _lowest(bench), 0.2)
    settle(figure)
    end_labels(axes, labels, room=0.2, left=True)
    save(figure, path)
    return True


def draw_others(benches: Sequence[Bench], path: Path) -> bool:
    """A panel for each of several workloads, few methods; False where there is none."""
    shown = [(bench, few_of(bench), bench.workload.name) for bench in benches if _shows(bench)]
    return _draw_panels(shown, path, LOWEST)


def draw_groups(bench: Bench, path: Path) -> bool:
    """All methods of one workload, a panel for each kind; False where there is nothing to draw."""
    shown = [(bench, methods, words) for words, methods in groups_of(bench).items()]
    return bool(_shows(bench)) and _draw_panels(shown, path, _lowest(bench))


def groups_of(bench: Bench) -> dict[str, list[Method]]:
    """Its methods by kind, each with the two that all are compared with."""
    kinds: dict[str, list[Method]] = {}
    always = [method for name in _ALWAYS if (method := bench.method(name))]
    for method in bench.methods:
        kind = (
            "baselines"
            if method.baseline
            else "overlapped"
            if method.overlap
            else "relatives: all-reduce"
            if method.name in ("diloco", "ef21_sgdm", "powersgd", "sparta")
            else "relatives: neighbours"
            if any(message.collective == "exchange" for message in method.messages)
            else "the family"
        )
        kinds.setdefault(kind, list(always))
        if method not in always:
            kinds[kind].append(method)
    return {kind: methods for kind, methods in kinds.items() if len(methods) > len(always)}


def few_of(bench: Bench) -> tuple[Method, ...]:
    """Those that a figure shows by default; all of a workload that has none of them."""
    return tuple(method for method in bench.methods if method.name in FEW) or bench.methods


def _shows(bench: Bench) -> bool:
    return bench.is_modelled or any(_spots(bench, method) for method in bench.methods)


def _lowest(bench: Bench) -> float:
    rates = [bits for timing in bench.curve if (bits := timing.fabric.stands_for_bits_per_second)]
    return max(LOWEST, min(rates, default=LOWEST) / _BELOW)


def _draw_panels(shown: Sequence[tuple[Bench, Sequence[Method], str]], path: Path, lowest: float) -> bool:
    if not shown:
        return False
    columns = 1 if len(shown) == 1 else 2
    room = 0.2 if columns == 1 else 0.52
    figure, grid = panels(math.ceil(len(shown) / columns), columns, 2.3, share_x=False)
    places = [axes for line in grid for axes in line]
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    labels = []
    for axes, (bench, methods, title) in zip(places, shown, strict=False):
        labels.append(_panel(axes, bench, methods, lowest, room))
        axes.set_title(title, loc="left")
        axes.set_ylabel("")
        axes.set_xlabel("bandwidth of a machine's link")
    settle(figure)
    for axes, names in zip(places, labels, strict=False):
        end_labels(axes, names, room=room, left=True)
    save(figure, path)
    return True


def _panel(
    axes: Axes, bench: Bench, methods: Sequence[Method], lowest: float, room: float
) -> list[tuple[float, float, str, str]]:
    """Draws the lines and markers; returns where they begin, with names and colours."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    labels = []
    rates = log_grid(lowest, HIGHEST)
    for method in methods:
        look, spots = look_of(method.label), _spots(bench, method)
        ends = list(spots)
        if bench.is_modelled:
            ends = [(bits / 1e6, 1e3 * bench.clock_seconds(method, bits)) for bits in rates]
            xs, ys = zip(*ends, strict=True)
            axes.plot(xs, ys, color=look.colour, dashes=look.dashes, linewidth=0.9, zorder=2 + (not method.baseline))
        if spots:
            xs, ys = zip(*spots, strict=True)
            axes.plot(xs, ys, color=look.colour, marker=look.marker, markersize=3, linestyle="none", zorder=4)
        if ends:
            labels.append((*ends[0], method.label, look.colour))
    _scales(axes, lowest / 1e6, HIGHEST / 1e6, room)
    axes.set_title(f"{bench.workload.name} ({bench.basis} points, modelled lines)", loc="left")
    axes.set_xlabel("bandwidth of each machine's link, each way (log scale)")
    axes.set_ylabel("time of a step (log scale)")
    return labels


def _scales(axes: Axes, low: float, high: float, room: float) -> None:
    axes.set_xlim(low / (high / low) ** (room / (1 - room)), high)
    step = 1 if room < 0.3 else 2
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1, step)
    axes.set_xticks([10.0**power for power in powers])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} Mb/s" if value < 1e3 else f"{value / 1e3:g} Gb/s")
    axes.minorticks_off()
    bottom, top = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top / bottom < 1e3 else (1,), numticks=12))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} ms" if value < 1e3 else f"{value / 1e3:,g} s")


def _spots(bench: Bench, method: Method) -> list[tuple[float, float]]:
    """Rate in megabits a second and milliseconds of what was timed on the curves' layout, from slow to fast."""
    spots = []
    for timing in bench.curve:
        point, bits = bench.point(timing, method.name), timing.fabric.stands_for_bits_per_second
        if point and bits:
            spots.append((bits / 1e6, 1e3 * point.timed.seconds))
    return spots


def found_step_times(benches: Sequence[Bench]) -> str:
    """What a figure shows."""
    names = listed([f"{bench.workload.name} ({bench.basis})" for bench in benches])
    return f"Steps of {names}. {agreement_sentence([point for bench in benches for point in bench.points])}"


def step_times_note(benches: Sequence[Bench]) -> str:
    """What a curve assumes."""
    alphas = []
    for bench in benches:
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
