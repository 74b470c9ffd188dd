"""What large ratios gain over DDP, and over one another: little, where the link is fast enough."""

from __future__ import annotations

from harness.records.timings import Timing
from report.kit.document import Cell, Column, Table
from report.kit.wording import count_of
from report.speed.speedups import speedup
from report.speed.study import Bench, Point
from report.speed.tables_modelled import AT
from report.speed.units import factor, milliseconds, rate

LARGE_RATIO = 64
"""From which on methods are asked whether they differ among themselves at all."""

ALIKE = 1.10
"""Methods are called about as fast where the fastest is no more than so many times as fast as the slowest."""

_BASE = "ddp"
_FEWEST = 3
"""Methods that are worth a sentence."""


def large_of(bench: Bench, timing: Timing) -> list[Point]:
    """The timed methods of a large ratio, fastest first."""
    found = [p for p in bench.points if p.timing is timing and p.method.ratio >= LARGE_RATIO]
    return sorted(found, key=lambda point: point.timed.seconds)


def alike_sentence(bench: Bench) -> str:
    """How much they gain over DDP by the clock at one rate, and how much over one another; "" if few were timed."""
    timing = bench.timing_at(AT)
    base = bench.point(timing, _BASE) if timing else None
    large = large_of(bench, timing) if timing else []
    if base is None or len(large) < _FEWEST:
        return ""
    fastest, slowest = large[0].timed.seconds, large[-1].timed.seconds
    advice = ", so choose among them by accuracy" if slowest / fastest <= ALIKE else ""
    return (
        f"{bench.workload.name} at {rate(AT)}: all {len(large)} methods of ratio {LARGE_RATIO:g} and more are "
        f"{factor(base.timed.seconds / slowest)} to {factor(base.timed.seconds / fastest)} as fast as DDP in fp32, and "
        f"the fastest of them is {factor(slowest / fastest)} as fast as the slowest{advice}."
    )


def large_table(bench: Bench) -> Table:
    """For every timed network, what methods of a large ratio gain over DDP in fp32 and over one another."""
    heads = ("methods", "DDP in fp32, ms", "slowest, ms", "fastest, ms", "over DDP", "over one another")
    columns = (
        Column("network", "left"),
        *(Column(head) for head in heads),
        Column("slowest", "left"),
        Column("fastest", "left"),
        Column("over DDP with encoding, modelled"),
    )
    rows, alike = [], 0
    for timing in bench.ordered:
        base, large = bench.point(timing, _BASE), large_of(bench, timing)
        if base is None or len(large) < _FEWEST:
            continue
        own, low, high = base.timed.seconds, large[0].timed.seconds, large[-1].timed.seconds
        alike += high / low <= ALIKE
        texts = (
            bench.name_of(timing),
            str(len(large)),
            *(milliseconds(seconds) for seconds in (own, high, low)),
            f"{factor(own / high)} to {factor(own / low)}",
            factor(high / low),
            large[-1].method.label,
            large[0].method.label,
            _modelled(bench, timing, large),
        )
        rows.append(tuple(Cell(text) for text in texts))
    found = (
        f"On {alike} of {count_of(len(rows), 'network')} the fastest method of ratio {LARGE_RATIO:g} and more is at "
        f"most {100 * (ALIKE - 1):.0f} % faster than the slowest: there accuracy decides."
    )
    note = f"{bench.basis.capitalize()} steps{_without(bench)}."
    return Table(
        f"{bench.workload.name}: methods of large ratios", found if rows else "", columns, tuple(rows), (note,)
    )


def _without(bench: Bench) -> str:
    return " without encoding and update" if bench.basis == "emulated" else ""


def _modelled(bench: Bench, timing: Timing, large: list[Point]) -> str:
    bits, base = timing.fabric.stands_for_bits_per_second, bench.method(_BASE)
    if not bench.is_modelled or base is None or bits is None or not any(timing is each for each in bench.curve):
        return "–"
    gains = [speedup(bench, point.method, base, bits) for point in large]
    return f"{factor(min(gains))} to {factor(max(gains))}"
