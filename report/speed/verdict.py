"""The verdict: where each method beats overlapped DDP and by how much, and what the headlines ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.records.timings import Method
from report.kit.document import Bullets, Cell, Column, Paragraph, Table, Verdict
from report.kit.wording import listed
from report.speed.headlines import HEADLINES, METHODS, Headline
from report.speed.speedups import faster_spans, implied, speedup
from report.speed.study import Bench, SpeedStudy
from report.speed.tables_agreement import agreement_sentence
from report.speed.tables_modelled import AT, headline_bench, spans_text
from report.speed.units import factor, milliseconds, rate, signed_percent

COMMAND = "make speedups"
RIVALS = ("ddp", "ddp_fp16", "powersgd_2")
"""Baselines, by name, that the verdict is about: overlapped DDP in fp32, with its fp16 hook, and with its PowerSGD."""

PROPOSED = "mcser"
"""The method, by name, whose timed speed-ups the verdict lists."""
OVERLAPPED = "mcser_overlap"
"""The same, its messages begun in the backward pass."""

CLEARLY = 1.05
"""A method is said to beat a baseline where it is more than so many times as fast."""

LARGE_RATIO = 64
"""From which on methods are asked whether they differ among themselves at all."""

_SHOWN = (10e9,)


def speed_verdict(study: SpeedStudy) -> Verdict:
    """The box; it names the command where nothing was timed or swept yet."""
    if not study.benches:
        text = f"Nothing is timed yet: {COMMAND} fills this report."
        return Verdict("What was found", (Paragraph(text),))
    blocks: list[Paragraph | Bullets | Table] = [Paragraph(agreement_sentence(study.points))]
    timed = [sentence for bench in study.benches if (sentence := _timed(bench))]
    timed += [sentence for bench in study.benches if (sentence := alike_sentence(bench))]
    blocks += [Bullets(tuple(timed))] if timed else []
    blocks += [_table(bench) for bench in study.benches if bench.is_modelled and bench.compared]
    if any(bench.is_modelled for bench in study.benches):
        blocks.append(Bullets(tuple(said for headline in HEADLINES for said in _headline(study, headline))))
    else:
        blocks.append(
            Paragraph(
                f"No network of the kind that they ran on was swept, so nothing is modelled: {COMMAND} sweeps it."
            )
        )
    return Verdict("What was found", tuple(blocks))


def _timed(bench: Bench) -> str:
    """What the clock said of the proposed method, on every network of the curves' layout."""
    layout = (bench.main.fabric.num_machines, bench.main.fabric.workers_per_machine)
    seconds: dict[float, dict[str, float]] = {}
    for point in bench.points:
        fabric = point.timing.fabric
        if fabric.stands_for_bits_per_second and (fabric.num_machines, fabric.workers_per_machine) == layout:
            seconds.setdefault(fabric.stands_for_bits_per_second, {})[point.method.name] = point.timed.seconds
    proposed = bench.method(PROPOSED)
    rivals = [rival for name in RIVALS if (rival := bench.method(name))]
    gains, hidden = [], []
    for bits, found in sorted(seconds.items()):
        own, overlapped = found.get(PROPOSED), found.get(OVERLAPPED)
        if own is None:
            continue
        over = [f"{factor(found[each.name] / own)} (over {each.label})" for each in rivals if each.name in found]
        gains += [f"at {rate(bits)} {listed(over)}"] if over else []
        hidden += [f"{signed_percent(overlapped / own - 1)} at {rate(bits)}"] if overlapped else []
    if proposed is None or not gains:
        return ""
    without = " without encoding and update" if bench.basis == "emulated" else ""
    overlap = f" Overlapping it changes its step by {listed(hidden)}." if hidden else ""
    return f"{bench.workload.name}, {bench.basis}{without}: {proposed.label}'s speed-up is {'; '.join(gains)}.{overlap}"


def _table(bench: Bench) -> Table:
    rivals = [rival for name in RIVALS if (rival := bench.method(name))]
    columns = [Column("method", "left")]
    for rival in rivals:
        columns.append(Column(f"beats {rival.label}", "left"))
        columns += [Column(f"at {rate(bits)}") for bits in _SHOWN]
    rows = tuple((Cell(method.label), *_against(bench, method, rivals)) for method in bench.compared)
    device = f"{bench.main.fabric.num_workers} workers, {bench.workload.device}"
    title = f"{bench.workload.name}, {device}: where a step is over {100 * (CLEARLY - 1):.0f} % faster, and by how much"
    return Table(f"{title} (modelled)", "", tuple(columns), rows)


def _against(bench: Bench, method: Method, rivals: Sequence[Method]) -> list[Cell]:
    cells = []
    for rival in rivals:
        cells.append(Cell(spans_text(faster_spans(bench, method, rival, CLEARLY))))
        cells += [Cell(factor(speedup(bench, method, rival, bits))) for bits in _SHOWN]
    return cells


def alike_sentence(bench: Bench) -> str:
    """How much the methods of a large ratio gain over DDP by the clock, and how much over one another; "" if too few
    were timed."""
    layout = (bench.main.fabric.num_machines, bench.main.fabric.workers_per_machine)
    seconds = {
        point.method.name: point.timed.seconds
        for point in bench.points
        if (point.timing.fabric.num_machines, point.timing.fabric.workers_per_machine) == layout
        and point.timing.fabric.stands_for_bits_per_second == AT
    }
    large = [method for method in bench.methods if method.ratio >= LARGE_RATIO and method.name in seconds]
    if len(large) < 3 or "ddp" not in seconds:
        return ""
    times = [seconds[method.name] for method in large]
    said = (
        f"{bench.workload.name} at {rate(AT)}: all {len(large)} methods of ratio {LARGE_RATIO:g} and more are "
        f"{factor(seconds['ddp'] / max(times))} to {factor(seconds['ddp'] / min(times))} as fast as DDP in fp32, and "
        f"the fastest of them is {factor(max(times) / min(times))} as fast as the slowest"
    )
    base = bench.method("ddp")
    if bench.is_modelled and base:
        gains = [speedup(bench, method, base, AT) for method in large]
        said += f" (modelled, with encoding: {factor(min(gains))} to {factor(max(gains))})"
    return f"{said}. So choose among them by accuracy."


def _headline(study: SpeedStudy, headline: Headline) -> list[str]:
    """A sentence for each ratio of the proposed method: where it would reach the published factor."""
    bench = headline_bench(study, headline)
    found = [method for name in METHODS if bench and (method := bench.method(name))]
    if bench is None or not found:
        return [f"{headline.words}: no step of {headline.workload} is modelled yet, {COMMAND} fills this in."]
    now = bench.workload.forward_seconds + bench.workload.backward_seconds
    given = f"{milliseconds(now)} ms of compute a step ({bench.workload.device})"
    return [
        f"{headline.words}, ratio {method.ratio:.0f}: with {given} M-CSER would reach it (modelled) "
        f"{'; '.join(_reached(bench, method, headline.target))}."
        for method in found
    ]


def _reached(bench: Bench, method: Method, target: float) -> Iterator[str]:
    for baseline in (base for name in (*RIVALS, "all_reduce") if (base := bench.method(name))):
        asked = implied(bench, method, baseline, target, AT)
        over = f"over {baseline.label}"
        if asked.bits_per_second is None:
            yield f"{over} never"
            continue
        compute = asked.compute_seconds
        limit = "" if compute is None else f", at {rate(AT)} for at most {milliseconds(compute)} ms of compute"
        yield f"{over} up to {rate(asked.bits_per_second)}{limit}"
