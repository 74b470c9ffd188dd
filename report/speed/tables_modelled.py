"""Tables of the model: break-even rates, layouts side by side, what the headlines ask for, ratios that are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.records.hardware import Machine, machines
from harness.records.timings import Method, Timing
from report.kit.document import Cell, Column, Table
from report.kit.wording import count_of
from report.speed.cost_model import Algorithm, Network
from report.speed.headlines import HEADLINES, METHODS, RIVALS, Headline
from report.speed.speedups import CLEARLY, HIGHEST, LOWEST, RateRange, faster_spans, implied, speedup
from report.speed.study import Bench, SpeedStudy, bits_inside
from report.speed.units import factor, milliseconds, rate

AT = 10e9
"""Bits per second at which layouts are compared and the headlines' compute time is sought."""

STRONGEST = "ddp"
"""The baseline, by name, that layouts are compared with: overlapped buckets in fp32."""


def break_even_table(bench: Bench) -> Table:
    """At which rates each method is clearly faster than each of the strong baselines, and how much at one rate."""
    rivals = [rival for name in RIVALS if (rival := bench.method(name))]
    columns = [Column("method", "left")]
    for rival in rivals:
        columns += [Column(f"faster than {rival.label}", "left"), Column(f"at {rate(AT)}")]
    spans = {(m.name, rival.name): faster_spans(bench, m, rival, CLEARLY) for m in bench.compared for rival in rivals}
    rows = []
    for method in bench.compared:
        cells = [Cell(method.label)]
        for rival in rivals:
            gain = speedup(bench, method, rival, AT)
            cells += [Cell(spans_text(spans[method.name, rival.name])), Cell(factor(gain))]
        rows.append(tuple(cells))
    never = sum(not each for each in spans.values())
    always = sum(each == [RateRange(LOWEST, HIGHEST)] for each in spans.values())
    found = (
        f"Of {count_of(len(spans), 'pair')} of method and baseline the method is over {100 * (CLEARLY - 1):.0f} % "
        f"faster at every rate in {always}, at none in {never}, and up to some rate or between two in the rest."
    )
    notes = (
        f"Modelled with encoding, from {rate(LOWEST)} to {rate(HIGHEST)} of each machine's link, "
        f"{bench.main.fabric.num_machines} x {bench.main.fabric.workers_per_machine} workers, "
        f"{bench.workload.device}. All baselines, and where a step is shorter by 1 % or by however little, are in "
        "csv/break_even.csv.",
    )
    title = f"{bench.workload.name}: rates at which a method is faster than a baseline, and by how much"
    return Table(title, found, tuple(columns), tuple(rows), notes)


def spans_text(spans: Sequence[RateRange]) -> str:
    """ "below 3.2 Gb/s", "always", "never"."""
    return " and ".join(_span_text(span) for span in spans) or "never"


def _span_text(span: RateRange) -> str:
    if span == RateRange(LOWEST, HIGHEST):
        return "always"
    if span.low == LOWEST:
        return f"below {rate(span.high)}"
    return f"above {rate(span.low)}" if span.high == HIGHEST else f"{rate(span.low)} to {rate(span.high)}"


@dataclass(frozen=True)
class MachineLayout:
    """Machines and workers a machine, with the way that a collective takes through them."""

    machines: int
    workers: int
    algorithm: Algorithm

    @property
    def head(self) -> str:
        return f"{self.machines} x {self.workers}, {self.algorithm}"


def layouts_of(num_workers: int) -> list[MachineLayout]:
    """Every worker in a machine of its own, two machines, and all in one."""
    alone = [MachineLayout(num_workers, 1, "ring"), MachineLayout(num_workers, 1, "tree")]
    two = [MachineLayout(2, num_workers // 2, "ring"), MachineLayout(2, num_workers // 2, "hierarchical")]
    return [*alone, *(two if num_workers % 2 == 0 and num_workers > 2 else []), MachineLayout(1, num_workers, "ring")]


def layout_network(bench: Bench, layout: MachineLayout) -> Network | None:
    """The modelled network of a layout, with the inside links of the records or else of the price table's device."""
    recorded = [inside for t in bench.timings if (inside := bits_inside(t.fabric)) is not None]
    priced = [machine.inside_bits_per_second for machine in machines() if _is_on(machine, bench)]
    inside = max(priced or recorded, default=0.0)
    return bench.network(AT, (layout.machines, layout.workers), inside or None, layout.algorithm)


def _is_on(machine: Machine, bench: Bench) -> bool:
    return machine.device in bench.workload.device and bool(machine.inside_bits_per_second)


def layouts_table(bench: Bench) -> Table:
    """The layouts side by side: those that were timed, and all as the model has them."""
    timings = _nearest(bench)
    layouts = layouts_of(bench.main.fabric.num_workers)
    columns = [Column("method", "left")]
    columns += [Column(f"{bench.name_of(timing)}, {timing.basis}") for timing in timings]
    columns += [Column(f"{layout.head}, modelled") for layout in layouts]
    points = {(id(point.timing), point.method.name): point.timed.seconds for point in bench.points}
    networks = [layout_network(bench, layout) for layout in layouts]
    base = bench.method(STRONGEST)
    rows = []
    for method in bench.methods:
        timed = [(points.get((id(t), method.name)), points.get((id(t), STRONGEST))) for t in timings]
        modelled = [
            (bench.seconds(method, network), base and bench.seconds(base, network)) if network else (None, None)
            for network in networks
        ]
        rows.append((Cell(method.label), *(Cell(_against(*pair)) for pair in (*timed, *modelled))))
    notes = (
        f"Milliseconds a step, in brackets the speed-up over overlapped DDP in fp32 on the same layout. Modelled: "
        f"{rate(AT)} between machines; inside them the fastest link of the price table for the device, else that of "
        "the records, else no limit. Timed: the network nearest to that rate, by layout; emulated steps are without "
        "the codec.",
    )
    found = _layouts_found(bench, layouts, networks)
    return Table(f"{bench.workload.name}: layouts side by side", found, tuple(columns), tuple(rows), notes)


def _nearest(bench: Bench) -> list[Timing]:
    """Of each layout that was timed, the timing whose rate is nearest to the one that is modelled."""
    best: dict[tuple[int, int], Timing] = {}
    for timing in sorted(bench.timings, key=lambda t: abs((t.fabric.stands_for_bits_per_second or 0.0) - AT)):
        best.setdefault((timing.fabric.num_machines, timing.fabric.workers_per_machine), timing)
    return [best[layout] for layout in sorted(best, reverse=True)]


def _against(seconds: float | None, baseline: float | None) -> str:
    if seconds is None:
        return "not timed"
    return milliseconds(seconds) if baseline is None else f"{milliseconds(seconds)} ({factor(baseline / seconds)})"


def _layouts_found(bench: Bench, layouts: Sequence[MachineLayout], networks: Sequence[Network | None]) -> str:
    base = bench.method(STRONGEST)
    parts = []
    for layout, network in zip(layouts, networks, strict=True):
        if base and network and bench.compared and layout.algorithm == "ring":
            gains = [(bench.seconds(base, network) / bench.seconds(m, network), m.label) for m in bench.compared]
            gain, label = max(gains)
            parts.append(f"{layout.machines} x {layout.workers} {factor(gain)} ({label})")
    return f"Modelled, the most that any method gains over overlapped DDP: {'; '.join(parts)}." if parts else ""


def headline_bench(study: SpeedStudy, headline: Headline) -> Bench | None:
    """The workload that a headline is about, if it was timed and can be modelled."""
    return next((b for b in study.benches if b.workload.name == headline.workload and b.is_modelled), None)


def main_bench(study: SpeedStudy) -> Bench | None:
    """The workload that stands first: that of the first headline, or else the first that was timed."""
    return headline_bench(study, HEADLINES[0]) or next(iter(study.benches), None)


def headlines_table(study: SpeedStudy) -> Table:
    """At which rate, and with which compute time, each published speed-up would hold against each baseline."""
    heads = ("holds up to", f"at {rate(AT)} it is", f"at {rate(AT)} it would hold for compute up to, ms")
    texts = ("published", "method", "against")
    columns = (*(Column(text, "left") for text in texts), *(Column(head) for head in heads))
    rows: list[tuple[Cell, ...]] = []
    notes = [
        "Modelled; never: at no rate from 1 Mb/s to 400 Gb/s, or with no compute time from a thousandth of the "
        "device's to a thousand times it. What the publication's baseline overlapped is not known here."
    ]
    holding = 0
    for headline in HEADLINES:
        bench = headline_bench(study, headline)
        if bench is None:
            rows.append((Cell(headline.words), Cell("not timed"), Cell("make speedups"), *[Cell("–")] * 3))
            continue
        compute = bench.workload.forward_seconds + bench.workload.backward_seconds
        notes.append(
            f"{bench.workload.name}: {milliseconds(compute)} ms of compute a step, batch {bench.workload.batch_size}, "
            f"{bench.workload.device} ({bench.workload.source})."
        )
        for method in (each for name in METHODS if (each := bench.method(name))):
            rivals = (each for name in (*RIVALS, "all_reduce") if (each := bench.method(name)))
            lines = [_headline_row(bench, headline, method, baseline) for baseline in rivals]
            holding += sum(held for held, _ in lines)
            rows += [row for _, row in lines]
    found = (
        f"At {rate(AT)} and the device's compute time the published factor is reached in {holding} of "
        f"{count_of(len(rows), 'line')}."
    )
    return Table("What the published speed-ups ask for", found, columns, tuple(rows), notes=tuple(notes))


def _headline_row(bench: Bench, headline: Headline, method: Method, base: Method) -> tuple[bool, tuple[Cell, ...]]:
    asked = implied(bench, method, base, headline.target, AT)
    rate_text = "never" if asked.bits_per_second is None else rate(asked.bits_per_second)
    compute_text = "never" if asked.compute_seconds is None else milliseconds(asked.compute_seconds)
    texts = (headline.words, method.label, base.label, rate_text, factor(asked.at_rate), compute_text)
    return asked.at_rate >= headline.target, tuple(Cell(text) for text in texts)
