"""What encoding, decoding and updating take: on this machine and in the model, and why the longest takes so long."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

from harness.records.timings import Method
from report.kit.document import Cell, Column, Table
from report.kit.wording import NONE, count_of, listed, whole
from report.speed.study import Bench, SpeedStudy
from report.speed.units import factor, milliseconds

_FILE = Path(__file__).parent / "codecs.toml"

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
    found = f"{largest_sentence(study)} The model's largest is {100 * share:.1f} % of the compute ({label} on {name})."
    notes = _codec_notes(study)
    return Table("Encoding, decoding and update", found, tuple(columns), tuple(rows), notes)


@cache
def reasons() -> dict[str, str]:
    """Why a method's codec takes long, by its name."""
    table: dict[str, str] = tomllib.loads(_FILE.read_text())["why"]
    return table


def largest_sentence(study: SpeedStudy) -> str:
    """The longest codec of a worker alone, beside overlapped DDP's, and why; "" where none was timed alone."""
    found = max(_alone(study), key=lambda each: each[0], default=None)
    if found is None:
        return ""
    seconds, bench, method = found
    base = next((own for own, other, each in _alone(study) if other is bench and each.name == "ddp"), None)
    beside = f", {factor(seconds / base)} DDP's" if base else ""
    why = f": {reasons()[method.name]}" if method.name in reasons() else ""
    return (
        f"Encoding, decoding and update take longest, on a core of this machine, in {method.label} on "
        f"{bench.workload.name} ({milliseconds(seconds)} ms{beside}){why}."
    )


def _alone(study: SpeedStudy) -> Iterator[tuple[float, Bench, Method]]:
    """Median seconds of every method's codec, of a worker with a core to itself."""
    for bench in study.benches:
        for method in bench.methods:
            same = [each for timing in bench.timings for each in timing.methods if each.name == method.name]
            known = [each.codec_alone_seconds for each in same if each.codec_alone_seconds is not None]
            if known:
                yield median(known), bench, method


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
