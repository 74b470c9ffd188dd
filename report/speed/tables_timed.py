"""Tables of what the clock said: the methods' cards, the split of a step, and the codecs."""

from __future__ import annotations

from harness.timings import Method
from report.document import Cell, Column, Table
from report.speed.study import Bench, SpeedStudy, table_of
from report.speed.tables_agreement import fabric_name
from report.speed.units import milliseconds
from report.wording import NONE, count_of, listed, short, whole


def cards_table(study: SpeedStudy) -> Table:
    """Every baseline and method as it was timed."""
    heads = ("method", "role", "overlapped", "settings", "backend")
    columns = (*(Column(head, "left") for head in heads[:3]), Column("ratio"), *(Column(h, "left") for h in heads[3:]))
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


def split_table(bench: Bench, number: int) -> Table:
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
    )
    return Table(f"{bench.workload.name}: what a step is made of", found, columns, rows, number, notes=notes)


def codec_table(study: SpeedStudy, number: int) -> Table:
    """Seconds of encoding, decoding and update: timed here, and as the model takes them for the device."""
    benches = study.benches
    columns = [Column("method", "left")]
    for bench in benches:
        columns += [Column(f"{bench.workload.name}, measured here"), Column(f"{bench.workload.device}, modelled")]
    names = dict.fromkeys(method.name for bench in benches for method in bench.methods)
    rows, share, most = [], 0.0, ""
    for name in names:
        cells: list[Cell] = []
        label = name
        for bench in benches:
            method = bench.method(name)
            timed = [point.timed.codec for point in bench.points if point.method.name == name]
            modelled = bench.codec_seconds(method) if method else None
            label = method.label if method else label
            cells += [
                Cell(milliseconds(sorted(timed)[len(timed) // 2]) if timed else NONE),
                Cell(milliseconds(modelled)),
            ]
            compute = bench.workload.forward_seconds + bench.workload.backward_seconds
            if modelled is not None and modelled / compute > share:
                share, most = modelled / compute, f"{label} on {bench.workload.name}"
        rows.append((Cell(label), *cells))
    found = f"The model's largest is {100 * share:.1f} % of the compute ({most})." if most else "Nothing was timed yet."
    return Table("Encoding, decoding and update", found, tuple(columns), tuple(rows), number, notes=_codec_notes(study))


def _codec_notes(study: SpeedStudy) -> tuple[str, ...]:
    sizes = listed([f"{b.workload.name} {whole(b.workload.num_parameters)}" for b in study.benches])
    sources = [
        f"{device['part']}: {device['bytes_per_second'] / 1e9:g} GB/s ({device['source']})"
        for device in table_of("devices.toml")["devices"]
        if any(device["part"] in bench.workload.device for bench in study.benches)
    ]
    notes = [
        f"Milliseconds a step, mean over a method's period. Parameters: {sizes}. Measured: on this machine's CPU, by "
        "the clock. Modelled: linear in the number of parameters; for a workload whose steps were measured the line "
        "through those measurements, and for an emulated one the bytes moved over the device's memory bandwidth, "
        "orthogonalisation and kernel launches left out, which favours PowerSGD."
    ]
    return (*notes, f"Memory bandwidth: {listed(sources)}.") if sources else tuple(notes)
