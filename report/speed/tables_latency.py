"""Table: the same links at two latencies, which two clocks that are slowed down unequally stand for."""

from __future__ import annotations

from statistics import median

from harness.records.timings import Timing
from report.kit.document import Cell, Column, Table
from report.speed.headlines import PROPOSED
from report.speed.study import Bench
from report.speed.tables_timed import CROWDED
from report.speed.units import milliseconds, rate, signed_percent


def latency_sentence(bench: Bench) -> str:
    """What the other latency does to the proposed method and to overlapped DDP, by the clock; "" if it has one."""
    for low, high in _pairs(bench):
        changes = {}
        for name in (PROPOSED, "ddp"):
            short, long = bench.point(low, name), bench.point(high, name)
            if short and long:
                changes[short.method.label] = long.timed.seconds / short.timed.seconds - 1
        if len(changes) == 2:
            (own, change), (base, other) = changes.items()
            bits = rate(low.fabric.stands_for_bits_per_second)
            return (
                f"{bench.workload.name} at {bits}: with {_hop(bench, high)} instead of {_hop(bench, low)}, "
                f"{own}'s step changes by {signed_percent(change)}, and {base}'s by {signed_percent(other)}."
            )
    return ""


def latencies_table(bench: Bench) -> Table:
    """Every method that was timed at both latencies: its step by the clock and by the model."""
    columns, rows = [Column("method", "left")], dict[str, list[Cell]]()
    changes = list[float]()
    for low, high in _pairs(bench):
        bits = rate(low.fabric.stands_for_bits_per_second)
        columns += [Column(f"{bits}, {_hop(bench, timing)}, clock") for timing in (low, high)]
        columns += [Column("longer by, clock"), Column("longer by, modelled")]
        for method in low.methods:
            one, two = bench.point(low, method.name), bench.point(high, method.name)
            if one is None or two is None:
                continue
            changes.append(two.timed.seconds / one.timed.seconds - 1)
            mark = " *" if one.is_crowded or two.is_crowded else ""
            modelled = two.predicted / one.predicted - 1 if one.predicted and two.predicted else None
            texts = (milliseconds(one.timed.seconds), milliseconds(two.timed.seconds), signed_percent(changes[-1]))
            rows.setdefault(f"{method.label}{mark}", []).extend(
                Cell(text) for text in (*texts, signed_percent(modelled))
            )
    full = [(Cell(label), *cells) for label, cells in rows.items() if len(cells) == len(columns) - 1]
    found = latency_sentence(bench)
    if changes:
        found += f" Of all methods the median step changes by {signed_percent(median(changes))}."
    note = (
        f"{bench.basis.capitalize()} milliseconds of a step without encoding and update. The latency of a hop is this "
        "machine's over the slowing of the clock, so a clock that is slowed down more stands for a shorter one."
    )
    return Table(
        f"{bench.workload.name}: two latencies beside each other",
        found,
        tuple(columns),
        tuple(full),
        (note, *(CROWDED,) * any(label.endswith("*") for label in rows)),
    )


def _pairs(bench: Bench) -> list[tuple[Timing, Timing]]:
    """The shorter latency first."""
    pairs = []
    for one, two in bench.latencies:
        short, long = sorted((one, two), key=lambda timing: -timing.fabric.dilation)
        pairs.append((short, long))
    return pairs


def _hop(bench: Bench, timing: Timing) -> str:
    hop = bench.hop_seconds(timing)
    slowed = f"a clock slowed {timing.fabric.dilation:.4g} times"
    return slowed if hop is None else f"{1e6 * hop:.3g} µs a hop"
