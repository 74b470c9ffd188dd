"""Tables that show what was fitted and how well the model agrees with the steps that were timed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from harness.records.timings import SweepPoint
from report.kit.document import Cell, Column, Table
from report.kit.wording import NONE, count_of, listed, whole
from report.speed.fitting import slowest_limit
from report.speed.study import Bench, Point, SpeedStudy, fabric_name
from report.speed.units import milliseconds, rate, signed_percent

AIM = 0.10
"""Relative error of a communication time that the model should stay within."""

LARGE = 0.10
"""Communication is called large where it takes more than this share of a step's compute."""

WIRE_AIM = 0.03
MEGABYTE = 1_000_000
SHOWN_BYTES = 64_000
HEADER_BYTES = 66


def agreement(points: Sequence[Point]) -> tuple[int, int, int]:
    """Of the points with a prediction: whose communication time is within the aim, whose it is when none is predicted
    (the null model), and how many there are."""
    judged = [point for point in points if point.communication_error is not None]
    return sum(map(is_within, judged)), sum(not point.communicates for point in judged), len(judged)


def is_within(point: Point) -> bool:
    """Whether the predicted communication time is within the aim."""
    return point.communication_error is not None and abs(point.communication_error) <= AIM


def is_large(point: Point) -> bool:
    """Whether its communication is called large."""
    return point.communication > LARGE * point.timed.compute and point.communication_error is not None


def verdict_sentence(points: Sequence[Point]) -> str:
    """How near the model is where there is much communication, the null model beside it; "" if there is none."""
    near, null, many = agreement([point for point in points if is_large(point)])
    within, _, count = agreement(points)
    if not many:
        return ""
    return (
        f"The modelled communication time is within {100 * AIM:g} % of the clock's in {near} of "
        f"{count_of(many, 'timed step')} in which it takes over {100 * LARGE:g} % of the compute, and that of a null "
        f"model, which predicts none, in {null}; of all {count} it is in {within}."
    )


def agreement_sentence(points: Sequence[Point]) -> str:
    """The same of all steps, and of those whose communication is large, with the worst of these."""
    within, null, count = agreement(points)
    if not count:
        return "No timed step has a sweep of its network beside it, so nothing was predicted."
    text = (
        f"The model's communication time is within {100 * AIM:g} % of the clock's in {within} of "
        f"{count_of(count, 'timed step')}, that of a null model that predicts none in {null}"
    )
    large = [point for point in points if is_large(point)]
    if not large:
        return f"{text}."
    near, nothing, many = agreement(large)
    worst = max(large, key=lambda point: abs(point.communication_error or 0.0))
    return (
        f"{text}; where it takes over {100 * LARGE:g} % of the compute, in {near} of {many} against {nothing}, and the "
        f"worst of these is {signed_percent(worst.communication_error)} ({worst.method.label}, "
        f"{worst.timing.workload.name}, {fabric_name(worst.timing.fabric)})."
    )


def agreement_table(study: SpeedStudy) -> Table:
    """Network by network: in how many steps the model, and the null model, are near the clock's communication time."""
    heads = (
        "steps",
        "model near",
        "null near",
        "large",
        "model near of large",
        "null near of large",
        "median error",
        "worst",
    )
    columns = (Column("workload", "left"), Column("network", "left"), *(Column(head) for head in heads))
    rows = []
    for bench in study.benches:
        for timing in bench.ordered:
            points = [point for point in bench.points if point.timing is timing]
            near, null, count = agreement(points)
            if not count:
                continue
            large = [point for point in points if is_large(point)]
            errors = [point.communication_error or 0.0 for point in large]
            of_large = [str(number) for number in agreement(large)]
            middle = signed_percent(median(map(abs, errors))).lstrip("+") if errors else NONE
            worst = signed_percent(max(errors, key=abs)) if errors else NONE
            texts = (str(count), str(near), str(null), of_large[2], *of_large[:2], middle, worst)
            rows.append(tuple(Cell(text) for text in (bench.workload.name, bench.name_of(timing), *texts)))
    notes = (
        f"Near: modelled communication time within {100 * AIM:g} % of the clock's (emulated or measured). The null "
        f"model predicts none. Large: it takes over {100 * LARGE:g} % of the compute; median error and worst are of "
        "these steps.",
        *filter(None, [_by_kind(study.points), _of_whole_steps(study.points)]),
    )
    return Table("The model, network by network", agreement_sentence(study.points), columns, tuple(rows), notes)


def by_kind(points: Sequence[Point]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of points with large communication, those near and all of them: by all-reduces alone, and with exchanges."""
    kinds: tuple[list[Point], list[Point]] = ([], [])
    for point in points:
        if is_large(point):
            kinds[any(m.collective == "exchange" for m in point.method.messages)].append(point)
    summed, exchanged = ((sum(map(is_within, kind)), len(kind)) for kind in kinds)
    return summed, exchanged


def _by_kind(points: Sequence[Point]) -> str:
    summed, exchanged = by_kind(points)
    if not exchanged[1]:
        return ""
    return (
        f"Of large communication the model is near in {summed[0]} of {summed[1]} steps by all-reduces alone, and in "
        f"{exchanged[0]} of {exchanged[1]} by messages to neighbours."
    )


def _of_whole_steps(points: Sequence[Point]) -> str:
    judged = [point for point in points if point.error is not None]
    if not judged:
        return ""
    own, null = (
        sum(abs(error) <= AIM for error in errors)
        for errors in ([p.error or 0.0 for p in judged], [p.null_error for p in judged])
    )
    return (
        f"Of whole steps, most of whose compute is imposed, {own} of {len(judged)} would be within {100 * AIM:g} %, "
        f"and {null} by the null model: that says little of a model of communication."
    )


_DRAWS = (
    "When an overlapped method's blocks are there depends on the step's draw: few draws were timed, and the model "
    "takes the mean over fifty."
)


def prediction_table(bench: Bench) -> Table:
    """Every method on every fabric of a workload: its communication by the clock, and the model's error."""
    heads = tuple(Column(bench.name_of(timing)) for timing in bench.ordered)
    cells = {(id(point.timing), point.method.name): point for point in bench.points}
    rows = tuple(
        (Cell(method.label), *(_predicted(cells.get((id(timing), method.name))) for timing in bench.ordered))
        for method in bench.methods
    )
    notes = (
        f"{bench.basis.capitalize()} milliseconds of a step in which nothing is computed, encoded or updated (medians, "
        "mean over a method's period), and by how much the modelled ones are longer. Whole steps and their intervals "
        "are in csv/step_times.csv.",
        *filter(None, [_of_whole_steps(bench.points)]),
        *(_DRAWS,) * any(message.ready_draws for method in bench.methods for message in method.messages),
    )
    title = f"{bench.workload.name}: {bench.basis} communication time of a step and the model's error"
    return Table(title, agreement_sentence(bench.points), (Column("method", "left"), *heads), rows, notes)


def _predicted(point: Point | None) -> Cell:
    if point is None:
        return Cell("not timed")
    if not point.communicates:
        return Cell(f"none ({milliseconds(point.predicted_communication)})")
    error = point.communication_error
    return Cell(f"{milliseconds(point.communication)} ({'no sweep' if error is None else signed_percent(error)})")


def fits_table(study: SpeedStudy) -> Table:
    """Alpha and beta of every sweep."""
    heads = ("alpha, µs a hop", "p", "fitted rate", "limit", "reached", "sizes", "worst error")
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
            f"{fit.link.power:g}",
            rate(fitted),
            rate(slowest_limit(fabric)),
            NONE if fit.efficiency is None else f"{100 * fit.efficiency:.0f} %",
            str(fit.num_points),
            signed_percent(fit.worst).lstrip("+"),
        )
        rows.append(tuple(Cell(text) for text in cells))
    found = _fits_found(study)
    notes = (
        "Measured on the network as it is, by its own clock, and fitted as a flat ring by least squares of logarithms. "
        "p: a hop takes the p-norm of its latency and its sending; 1 is their sum, a large p the longer of the two, as "
        "where one piece is sent while another is handled.",
    )
    return Table("Alpha, beta and p of the networks", found, columns, tuple(rows), notes=notes)


def _fits_found(study: SpeedStudy) -> str:
    worst: dict[str, float] = {}
    for fit in study.fits:
        name = fit.collective.replace("_", "-")
        worst[name] = max(worst.get(name, 0.0), fit.worst)
    if not worst:
        return "No sweep is at hand, so nothing is modelled: run make speedups."
    parts = [f"{100 * error:.0f} % of every swept {name}" for name, error in worst.items()]
    return f"The fitted times are within {listed(parts)}."


def wire_table(study: SpeedStudy) -> Table:
    """Bytes on a machine's link beside the formula's, and what the rest is, for the sizes swept in the lab."""
    heads = ("payload, bytes", "counted on the link", "by the formula", "headers", "other")
    columns = (Column("network", "left"), Column("collective", "left"), *(Column(head) for head in heads))
    shown = {(s.fabric.num_machines, s.fabric.workers_per_machine): s for s in study.records.sweeps}
    rows = tuple(
        (Cell(fabric_name(sweep.fabric)), *_wire_cells(point))
        for sweep in shown.values()
        for point in sweep.points
        if point.wire_bytes is not None and point.payload_bytes >= SHOWN_BYTES
    )
    notes = (
        "Measured, one machine's link, one way, a repetition; one sweep of each layout and messages of "
        f"{SHOWN_BYTES // 1000} kB and more, all are in csv/sweeps.csv. The "
        f"formula counts payload alone. Headers: {HEADER_BYTES} bytes (Ethernet 14, IP 20, TCP 32) of every frame "
        "counted, those that only acknowledge among them. Other: the backend's own messages and what was sent again.",
    )
    return Table("Bytes on the wire", _wire_found(study), columns, rows, notes=notes)


def _wire_found(study: SpeedStudy) -> str:
    large = [
        point
        for sweep in study.records.sweeps
        for point in sweep.points
        if point.wire_bytes is not None and point.payload_bytes >= MEGABYTE
    ]
    if not large:
        return "No message of a megabyte and more was counted on a link."
    wholes = [_shares(point)[0] for point in large]
    others = [_shares(point)[1] for point in large]
    within, explained = (sum(abs(share) <= WIRE_AIM for share in shares) for shares in (wholes, others))
    return (
        f"{within} of {count_of(len(large), 'message')} of a megabyte and more are within {100 * WIRE_AIM:g} % of the "
        f"formula as they are (at most {signed_percent(max(wholes, key=abs))}), and {explained} once the headers are "
        f"taken off (at most {signed_percent(max(others, key=abs))})."
    )


def _shares(point: SweepPoint) -> tuple[float, float]:
    """What was counted beyond the formula, over the formula: all of it, and without headers."""
    rest = (point.wire_bytes or 0.0) - point.formula_bytes
    return rest / point.formula_bytes, (rest - HEADER_BYTES * (point.wire_frames or 0.0)) / point.formula_bytes


def _wire_cells(point: SweepPoint) -> tuple[Cell, ...]:
    counted = (point.payload_bytes, round(point.wire_bytes or 0), round(point.formula_bytes))
    rest, other = _shares(point)
    headers = NONE if point.wire_frames is None else signed_percent(rest - other)
    numbers = (*(whole(number) for number in counted), headers, signed_percent(other))
    return (Cell(point.collective), *(Cell(text) for text in numbers))
