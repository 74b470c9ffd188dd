"""Tables of what the clock said: the methods' cards, the split of a step, and the codecs."""

from __future__ import annotations

from statistics import median

from harness.records.timings import Method
from report.kit.document import Cell, Column, Table
from report.kit.wording import NONE, count_of, listed, short, whole
from report.speed.study import Bench, SpeedStudy
from report.speed.tables_agreement import fabric_name
from report.speed.units import milliseconds


def cards_table(study: SpeedStudy) -> Table:
    """Every baseline and method as it was timed."""
    heads = ("method", "role", "overlapped", "settings", "backend")
    columns = (
        *(Column(head, "left", head == "settings") for head in heads[:3]),
        Column("ratio"),
        *(Column(h, "left", h == "settings") for h in heads[3:]),
    )
    methods: dict[str, tuple[Method, str]] = {}
    for bench in study.benches:
        for method in bench.methods:
            attempt, fabric = bench.main.attempt, bench.main.fabric
            version = f"NCCL {attempt.nccl}" if attempt.nccl else f"torch {attempt.packages.get('torch', 'unknown')}"
            methods.setdefault(method.name, (method, f"{fabric.backend}, {version}"))
    ordered = sorted(methods.values(), key=lambda pair: not pair[0].baseline)
    rows = tuple(
        (
            Cell(method.label),
            Cell("baseline" if method.baseline else "compared"),
            Cell("yes" if method.overlap else "no"),
            Cell(short(method.ratio)),
            Cell(method.settings),
            Cell(backend),
        )
        for method, backend in ordered
    )
    baselines = [method.label for method, _ in ordered if method.baseline]
    found = (
        f"{count_of(len(baselines), 'baseline')} beside {count_of(len(ordered) - len(baselines), 'compared method')}."
    )
    return Table("Baseline card", found if rows else "Nothing was timed yet.", columns, rows)


def split_table(bench: Bench) -> Table:
    """Compute, codec, waiting and transfer of every method, on the fabric of the curves and on each other."""
    heads = ("compute", "encode, decode, update", "waiting for others", "transfer not hidden", "steps")
    columns = (Column("method", "left"), Column("network", "left"), *(Column(head) for head in heads))
    slowest = min(bench.timings, key=lambda t: t.fabric.stands_for_bits_per_second or float("inf"))
    shown = [point for point in bench.points if point.timing is bench.main or point.timing is slowest]
    rows = tuple(
        (
            Cell(point.method.label),
            Cell(fabric_name(point.timing.fabric)),
            Cell(milliseconds(point.timed.compute)),
            Cell(milliseconds(point.timed.codec)),
            Cell("in transfer" if point.timed.waiting is None else milliseconds(point.timed.waiting)),
            Cell(milliseconds(point.timed.transfer)),
            Cell(str(point.timed.num_steps)),
        )
        for point in shown
    )
    share = max(shown, key=lambda point: point.timed.transfer / point.timed.seconds, default=None)
    found = "No step was timed yet."
    if share is not None:
        part = share.timed.transfer / share.timed.seconds
        found = (
            f"Transfer is the largest part for {share.method.label} on {fabric_name(share.timing.fabric)}: "
            f"{100 * part:.0f} % of its step."
        )
    emulated = (
        "; the codec is as on the clock, the rest with the slowed clock undone" if bench.basis == "emulated" else ""
    )
    notes = (
        f"{bench.basis.capitalize()} milliseconds, means over workers, medians over steps{emulated}. Every network is "
        "in csv/step_times.csv.",
        *filter(None, [codec_note(bench)]),
    )
    return Table(f"{bench.workload.name}: what a step is made of", found, columns, rows, notes=notes)


EXAMPLE = "mcser"
"""The method, by name, on which the different times of a codec are explained."""


def codec_note(bench: Bench) -> str:
    """Why the codec of a step is not that of a worker alone, nor that of the model; "" where one is missing."""
    in_steps = [p.timed.codec for p in bench.points if p.method.name == EXAMPLE and p.timing is bench.main]
    method = next((each for each in bench.main.methods if each.name == EXAMPLE), None)
    device = bench.emulated_device
    alone = [
        each.codec_alone_seconds
        for timing in bench.timings
        for each in timing.methods
        if each.name == EXAMPLE and each.codec_alone_seconds is not None
    ]
    if not in_steps or method is None or not alone or device is None:
        return ""
    workers, cores = bench.main.fabric.num_workers, bench.main.attempt.num_cpus
    return (
        f"The codec is told three times. {method.label}'s is {milliseconds(in_steps[0])} ms in these steps, in which "
        f"{count_of(workers, 'worker')} share {count_of(cores, 'core')} and their memory, and each waits for the last "
        f"to be through; {milliseconds(median(alone))} ms for a worker with a core to itself; and "
        f"{milliseconds(bench.codec_seconds(method))} ms in the model, for a {device.device} moves the same bytes at "
        f"{device.bytes_per_second / 1e9:g} GB/s. Emulated steps are shown without it, modelled ones with the last."
    )


def codec_table(study: SpeedStudy) -> Table:
    """Seconds of encoding, decoding and update: timed here, and as the model takes them for an emulated device."""
    columns = [Column("method", "left")]
    for bench in study.benches:
        columns.append(Column(f"{bench.workload.name}, measured here"))
        if bench.emulated_device:
            columns.append(Column(f"{bench.workload.device}, modelled"))
    names = dict.fromkeys(method.name for bench in study.benches for method in bench.methods)
    rows, shares = [], []
    for name in names:
        methods = [(bench, bench.method(name)) for bench in study.benches]
        label = next(method.label for _, method in methods if method)
        rows.append((Cell(label), *(cell for bench, method in methods for cell in _codec_cells(bench, method))))
        shares += [(_codec_share(bench, method), label, bench.workload.name) for bench, method in methods if method]
    share, label, name = max(shares)
    found = f"The model's largest is {100 * share:.1f} % of the compute ({label} on {name})."
    notes = _codec_notes(study)
    return Table("Encoding, decoding and update", found, tuple(columns), tuple(rows), notes)


def _codec_cells(bench: Bench, method: Method | None) -> list[Cell]:
    timed = [point.timed.codec for point in bench.points if method and point.method.name == method.name]
    alone = [m.codec_alone_seconds for t in bench.timings for m in t.methods if method and m.name == method.name]
    known = [seconds for seconds in alone if seconds is not None] or timed
    cells = [Cell(milliseconds(median(known)) if known else NONE)]
    if bench.emulated_device:
        cells.append(Cell(milliseconds(bench.codec_seconds(method)) if method else NONE))
    return cells


def _codec_share(bench: Bench, method: Method) -> float:
    return bench.codec_seconds(method) / (bench.workload.forward_seconds + bench.workload.backward_seconds)


def _codec_notes(study: SpeedStudy) -> tuple[str, ...]:
    sizes = listed([f"{b.workload.name} {whole(b.workload.num_parameters)}" for b in study.benches])
    devices = {d.device: d for bench in study.benches if (d := bench.emulated_device)}
    sources = [f"{d.device}: {d.bytes_per_second / 1e9:g} GB/s ({d.source})" for d in devices.values()]
    note = (
        f"Milliseconds a step, mean over a method's period. Parameters: {sizes}. Measured: by the clock of this "
        "machine, of a worker with a core to itself where that was timed, else in the steps. The model takes a line in "
        "the number of parameters: for an emulated device of the table the bytes moved over its memory bandwidth, "
        "orthogonalisation and kernel launches left out, which favours PowerSGD; else the line through what was "
        "measured here."
    )
    explained = next((said for bench in study.benches if (said := codec_note(bench))), "")
    explained = explained.replace("in these steps", "in the timed steps")
    return (*filter(None, [explained]), note, *([f"Memory bandwidth: {listed(sources)}."] if sources else []))
