"""Table: what model and emulator say of a measurement that others published, DiLoCo over links of known rate."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness.records.timings import Step, Timing, ring_bytes
from report.kit.document import Cell, Column, Table
from report.kit.wording import count_of, listed
from report.speed.cost_model import Link, Links, Network, collective_seconds
from report.speed.study import Bench
from report.speed.units import milliseconds, rate, signed_percent

_FILE = Path(__file__).parent / "diloco_links.toml"
BYTES_PER_PARAMETER = 4
NEAR = 0.10


@dataclass(frozen=True)
class Measured:
    """One published point: the share of its time in which a node computes."""

    bits_per_second: float
    sync_interval: int
    utilisation: float


def published() -> tuple[dict[str, Any], list[Measured]]:
    """The file, and its points in order."""
    file = tomllib.loads(_FILE.read_text())
    return file, [
        Measured(link["bits_per_second"], interval, percent / 100)
        for link in file["links"]
        for interval, percent in zip(file["sync_intervals"], link["percent"], strict=True)
    ]


def sync_seconds(num_parameters: int, num_workers: int, bits_per_second: float) -> float:
    """Of one ring all-reduce of the parameters, by a link that is all used and has no latency."""
    links = Links(Link(0.0, 8 / bits_per_second), Link(0.0, 0.0))
    network = Network(num_workers, 1, {"all_reduce": links})
    return collective_seconds(network, "all_reduce", BYTES_PER_PARAMETER * num_parameters)


def compute_seconds(point: Measured, sync: float) -> float:
    """Of a step, so that H of them and one synchronisation have the point's utilisation."""
    return point.utilisation / (1 - point.utilisation) * sync / point.sync_interval


def utilisation(step_seconds: float, sync_interval: int, sync: float) -> float:
    """Share of the time that is compute, where nothing overlaps."""
    return sync_interval * step_seconds / (sync_interval * step_seconds + sync)


def emulated_sync_seconds(bench: Bench, file: dict[str, Any], bits_per_second: float) -> float | None:
    """The same all-reduce over the emulated links, by the latency and rate that their sweeps had; None without."""
    network = bench.network(bits_per_second, (file["num_workers"], 1))
    size = BYTES_PER_PARAMETER * file["num_parameters"]
    return collective_seconds(network, "all_reduce", size) if network else None


def published_links_table(bench: Bench | None) -> Table:
    """Each published point, the model's beside it and the emulator's, whose one unknown is solved from one of them.

    Args:
        bench: whose emulated links are asked; None: nothing was swept.
    """
    file, points = published()
    links = [link["bits_per_second"] for link in file["links"]]
    ways = {"modelled": {b: sync_seconds(file["num_parameters"], file["num_workers"], b) for b in links}}
    if bench is not None and bench.is_modelled:
        ways["emulated links"] = {b: emulated_sync_seconds(bench, file, b) or math.inf for b in links}
    [known] = [p for p in points if (p.bits_per_second, p.sync_interval) == tuple(file["solved_from"].values())]
    heads = (Column("link", "left"), Column("what", "left"), Column("one all-reduce, s"))
    columns = (*heads, *(Column(f"H = {h}") for h in file["sync_intervals"]))
    rows = []
    for bits in links:
        own = _at(points, bits)
        rows.append(
            (Cell(rate(bits)), Cell("published, %"), Cell(""), *(Cell(f"{100 * p.utilisation:g}") for p in own))
        )
        for words, syncs in ways.items():
            step = compute_seconds(known, syncs[known.bits_per_second])
            said = [_cell(p, utilisation(step, p.sync_interval, syncs[bits]), p == known) for p in own]
            rows.append((Cell(""), Cell(f"{words}, %"), Cell(f"{syncs[bits]:.3g}"), *said))
    found = " ".join(_found(words, known, points, syncs) for words, syncs in ways.items())
    return Table(
        "A published measurement beside model and emulator", found, columns, tuple(rows),
        _notes(file, points, ways["modelled"], known, bench),
    )  # fmt: skip


def _found(words: str, known: Measured, points: list[Measured], syncs: dict[float, float]) -> str:
    errors = _errors(known, points, syncs)
    predicted = [abs(error) for point, error in errors.items() if point != known]
    subject = (
        f"Of {count_of(len(predicted), 'utilisation')} that were published, {sum(e <= NEAR for e in predicted)} are "
        f"within {100 * NEAR:g} % of what the model says from the one other"
        if words == "modelled"
        else f"Over the emulated links it is {sum(e <= NEAR for e in predicted)}"
    )
    return (
        f"{subject}; the median error is {100 * median(predicted):.0f} %, the worst "
        f"{signed_percent(max(errors.values(), key=abs))}."
    )


def _at(points: list[Measured], bits_per_second: float) -> list[Measured]:
    return [point for point in points if point.bits_per_second == bits_per_second]


def _errors(known: Measured, points: list[Measured], syncs: dict[float, float]) -> dict[Measured, float]:
    """The relative error at every point, the compute of a step solved from the known one."""
    step = compute_seconds(known, syncs[known.bits_per_second])
    return {
        point: utilisation(step, point.sync_interval, syncs[point.bits_per_second]) / point.utilisation - 1
        for point in points
    }


def _cell(point: Measured, modelled: float, is_known: bool) -> Cell:
    if is_known:
        return Cell("solved")
    return Cell(f"{100 * modelled:.3g} ({signed_percent(modelled / point.utilisation - 1)})")


def _notes(
    file: dict[str, Any], points: list[Measured], syncs: dict[float, float], known: Measured, bench: Bench | None
) -> tuple[str, ...]:
    worst = [max(map(abs, _errors(each, points, syncs).values())) for each in points]
    step = compute_seconds(known, syncs[known.bits_per_second])
    solved_from = f"H = {known.sync_interval} at {rate(known.bits_per_second)}"
    notes = [
        f"Source: {file['source']}. Not our measurement. In brackets by how much it is above the published one.",
        f"Modelled: {file['num_workers']} nodes in a ring, {file['num_parameters']:,} parameters of "
        f"{BYTES_PER_PARAMETER} bytes, one all-reduce every H steps that overlaps nothing, no latency, all of the link "
        f"used. The compute of a step, {milliseconds(step)} ms, is solved from {solved_from}. Solved "
        f"from another of the points, the worst error is "
        f"{100 * min(worst):.0f} to {100 * max(worst):.0f} %: the published utilisations are not those of one compute "
        "time, and those below 1 % are given in one or two digits.",
        "Emulated links: the same, but the all-reduce takes the latency and the share of the link that the sweeps of "
        "the emulated network had. A share that is the same at all rates changes the compute alone.",
    ]
    shares = diloco_shares(bench) if bench else {}
    if bench and shares:
        clock = listed([f"{100 * share:.0f} % at {rate(bits)}" for bits, share in shares.items()])
        notes.append(
            f"DiLoCo itself was timed on {bench.workload.name} ({bench.basis}): its synchronisation used, of the link, "
            f"{clock}."
        )
    return tuple(notes)


def _steps(timing: Timing, synchronises: bool) -> list[Step]:
    return [step for step in timing.steps if step.method == "diloco" and step.synchronises == synchronises]


def diloco_shares(bench: Bench) -> dict[float, float]:
    """By rate, the time that the bytes of DiLoCo's synchronisation need over the time that it took by the clock."""
    found = {}
    for timing in bench.curve:
        point, bits = bench.point(timing, "diloco"), timing.fabric.stands_for_bits_per_second
        if point is None or bits is None or timing.fabric.workers_per_machine != 1:
            continue
        ordinary, synchronising = (
            median(step.seconds - step.codec_seconds for step in _steps(timing, synchronises))
            for synchronises in (False, True)
        )
        payload = sum(message.payload_bytes for message in point.method.messages)
        needed = 8 * ring_bytes("all_reduce", payload, timing.fabric.num_workers) / bits
        found[bits] = needed / ((synchronising - ordinary) / timing.fabric.dilation)
    return found
