"""Tables of what the clock said: the methods' cards, and the split of a step."""

from __future__ import annotations

from harness.records.timings import Method
from report.kit.document import Cell, Column, Table
from report.kit.wording import NONE, count_of, short
from report.speed.study import Bench, SpeedStudy
from report.speed.tables_codecs import codec_note
from report.speed.units import factor, milliseconds


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


CROWDED = (
    "*: too long. The clock was slowed so little that this machine's encoding, which is not slowed, did not fit behind "
    "the passes, as it would on the device."
)


def steps_table(bench: Bench) -> Table:
    """Every method's step by the clock on every network, with its speed-up over overlapped DDP."""
    columns = (Column("method", "left"), Column("ratio"), *(Column(bench.name_of(t)) for t in bench.ordered))
    bases = [bench.point(timing, "ddp") for timing in bench.ordered]
    rows, most, crowded = [], list[tuple[float, str, str]](), False
    for method in bench.methods:
        cells = []
        for timing, base in zip(bench.ordered, bases, strict=True):
            point = bench.point(timing, method.name)
            gain = base.timed.seconds / point.timed.seconds if base and point else None
            over = f" ({factor(gain)})" if gain else ""
            mark = " *" if point and point.is_crowded else ""
            crowded |= bool(mark)
            cells.append(f"{milliseconds(point.timed.seconds)}{over}{mark}" if point else NONE)
            most += [(gain, method.label, bench.name_of(timing))] if gain else []
        rows.append(tuple(Cell(text) for text in (method.label, short(method.ratio), *cells)))
    found = "The most over DDP in fp32: {1} on {2}, {0}.".format(factor(max(most)[0]), *max(most)[1:]) if most else ""
    without = ", without encoding and update" if bench.basis == "emulated" else ""
    notes = (
        f"{bench.basis.capitalize()} milliseconds a step{without}, in brackets the speed-up over overlapped DDP in "
        "fp32 on the same network. Intervals and whole steps: csv/step_times.csv.",
        *(CROWDED,) * crowded,
    )
    return Table(f"{bench.workload.name}: steps by the clock", found, columns, tuple(rows), notes)


def split_table(bench: Bench) -> Table:
    """Compute, codec, waiting and transfer of every method, on one network of the curves."""
    heads = ("compute", "encode, decode, update", "waiting for others", "transfer not hidden", "steps")
    columns = (Column("method", "left"), *(Column(head) for head in heads))
    shown = [point for point in bench.points if point.timing is bench.main]
    rows = tuple(
        (
            Cell(point.method.label),
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
            f"Transfer is the largest part for {share.method.label} on {bench.name_of(share.timing)}: "
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
