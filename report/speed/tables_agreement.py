"""Tables that show what was fitted and how well the model agrees with the steps that were timed."""

from __future__ import annotations

from collections.abc import Sequence

from harness.timings import Fabric, SweepPoint
from report.document import Cell, Column, Table
from report.speed.fitting import slowest_limit
from report.speed.study import Bench, Point, SpeedStudy
from report.speed.units import milliseconds, rate, signed_percent
from report.wording import NONE, count_of, whole

AIM = 0.10
"""Relative error of a step time that the model should stay within."""

WIRE_AIM = 0.03
MEGABYTE = 1_000_000


def fabric_name(fabric: Fabric) -> str:
    """ "8 x 1, 200 Mb/s": machines, workers a machine, and the rate that the slowest link stands for."""
    limit = slowest_limit(fabric)
    return f"{fabric.num_machines} x {fabric.workers_per_machine}, {rate(limit and limit * fabric.dilation)}"


def agreement(points: Sequence[Point]) -> tuple[int, int, Point | None]:
    """How many of the points that have a prediction are within the aim, of how many, and the worst."""
    errors = [(abs(point.error), index) for index, point in enumerate(points) if point.error is not None]
    within = sum(error <= AIM for error, _ in errors)
    return within, len(errors), points[max(errors)[1]] if errors else None


def agreement_sentence(points: Sequence[Point]) -> str:
    """The same in words."""
    within, count, worst = agreement(points)
    if worst is None:
        return "No timed step has a sweep of its network beside it, so nothing was predicted."
    return (
        f"{within} of {count_of(count, 'predicted step time')} are within {100 * AIM:g} % of the clock's; the worst is "
        f"{signed_percent(worst.error)} ({worst.method.label}, {worst.timing.workload.name}, "
        f"{fabric_name(worst.timing.fabric)})."
    )


def prediction_table(bench: Bench, number: int) -> Table:
    """Every method on every fabric of a workload: seconds by the clock, and the model's error."""
    heads = tuple(Column(fabric_name(timing.fabric)) for timing in bench.timings)
    cells = {(id(point.timing), point.method.name): point for point in bench.points}
    rows = tuple(
        (Cell(method.label), *(_predicted(cells.get((id(timing), method.name))) for timing in bench.timings))
        for method in bench.methods
    )
    codec = "without encoding, decoding and update" if bench.basis == "emulated" else "all of the step"
    notes = (
        f"{bench.basis.capitalize()} milliseconds a step ({codec}; medians, mean over a method's period), and by how "
        "much the modelled step is longer. Intervals are in csv/step_times.csv.",
    )
    title = f"{bench.workload.name}: {bench.basis} step times and the model's error"
    wide = len(bench.timings) > 4
    return Table(title, agreement_sentence(bench.points), (Column("method", "left"), *heads), rows, number, wide, notes)


def _predicted(point: Point | None) -> Cell:
    if point is None:
        return Cell("not timed")
    error = "no sweep" if point.error is None else signed_percent(point.error)
    return Cell(f"{milliseconds(point.timed.seconds)} ({error})")


def fits_table(study: SpeedStudy, number: int) -> Table:
    """Alpha and beta of every sweep."""
    heads = ("alpha, µs a hop", "fitted rate", "limit", "reached", "sizes", "worst error")
    columns = (Column("network", "left"), Column("collective", "left"), *(Column(head) for head in heads))
    rows = []
    for fit in study.fits:
        fabric = fit.fabric
        dilated = f", clock slowed {fabric.dilation:g} times" if fabric.dilation != 1 else ""
        fitted = 8 / fit.link.beta if fit.link.beta > 0 else None
        cells = (
            f"{fabric.kind} {fabric.num_machines} x {fabric.workers_per_machine}, {fabric.backend}{dilated}",
            fit.collective,
            f"{1e6 * fit.link.alpha:,.0f}",
            rate(fitted),
            rate(slowest_limit(fabric)),
            NONE if fit.efficiency is None else f"{100 * fit.efficiency:.0f} %",
            str(fit.num_points),
            signed_percent(fit.worst).lstrip("+"),
        )
        rows.append(tuple(Cell(text) for text in cells))
    worst = max((fit.worst for fit in study.fits), default=None)
    found = (
        "No sweep is at hand, so nothing is modelled: run make speedups."
        if worst is None
        else f"A straight line in the size is within {100 * worst:.0f} % of every swept time."
    )
    notes = (
        "Measured on the network as it is, by its own clock, and fitted as a flat ring by relative least squares.",
    )
    return Table("Alpha and beta of the networks", found, columns, tuple(rows), number, notes=notes)


def wire_table(study: SpeedStudy, number: int) -> Table:
    """Bytes on a machine's link beside the formula's, for every size that was swept in the lab."""
    heads = ("payload, bytes", "counted on the link", "by the formula", "the rest")
    columns = (Column("network", "left"), Column("collective", "left"), *(Column(head) for head in heads))
    rows, rests = [], []
    shown = {(s.fabric.num_machines, s.fabric.workers_per_machine): s for s in study.records.sweeps}
    for sweep in study.records.sweeps:
        for point in sweep.points:
            if point.wire_bytes is None:
                continue
            rest = point.wire_bytes / point.formula_bytes - 1
            if point.payload_bytes >= MEGABYTE:
                rests.append(rest)
            if sweep in shown.values():
                rows.append((Cell(fabric_name(sweep.fabric)), *_wire_cells(point, rest)))
    within = sum(abs(rest) <= WIRE_AIM for rest in rests)
    found = (
        f"{within} of {count_of(len(rests), 'message')} of a megabyte and more are within {100 * WIRE_AIM:g} % of the "
        f"formula; the largest rest is {signed_percent(max(rests, key=abs))}."
        if rests
        else "No message of a megabyte and more was counted on a link."
    )
    notes = (
        "Measured, one machine's link, one way, a repetition; one sweep of each layout, all are in csv/sweeps.csv. The "
        "formula counts payload alone. The rest is what carries it: Ethernet, IP and TCP headers (66 bytes to a frame, "
        "up to 64 kB a frame between namespaces, so 0.1 % to 4.6 %), acknowledgements of what comes the other way, and "
        "the backend's own small messages, which weigh most where the payload is small.",
    )
    return Table("Bytes on the wire", found, columns, tuple(rows), number, notes=notes)


def _wire_cells(point: SweepPoint, rest: float) -> tuple[Cell, ...]:
    counted = (point.payload_bytes, round(point.wire_bytes or 0), round(point.formula_bytes))
    return (Cell(point.collective), *(Cell(whole(number)) for number in counted), Cell(signed_percent(rest)))
