"""Table: what the cost model says of a measurement that others published, DiLoCo over links of known rate."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from report.kit.document import Cell, Column, Table
from report.kit.wording import count_of
from report.speed.cost_model import Link, Links, Network, collective_seconds
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


def published_links_table() -> Table:
    """Each published point beside the model's, whose one unknown is solved from one of them."""
    file, points = published()
    syncs = {
        link["bits_per_second"]: sync_seconds(file["num_parameters"], file["num_workers"], link["bits_per_second"])
        for link in file["links"]
    }
    [from_point] = [p for p in points if (p.bits_per_second, p.sync_interval) == tuple(file["solved_from"].values())]
    errors = _errors(from_point, points, syncs)
    step = compute_seconds(from_point, syncs[from_point.bits_per_second])
    columns = (
        Column("link", "left"),
        Column("one all-reduce, s"),
        *(Column(f"H = {h}") for h in file["sync_intervals"]),
    )
    rows = [
        (
            Cell(rate(bits)),
            Cell(f"{sync:.3g}"),
            *(_cell(p, utilisation(step, p.sync_interval, sync), p == from_point) for p in _at(points, bits)),
        )
        for bits, sync in syncs.items()
    ]
    predicted = [abs(error) for point, error in errors.items() if point != from_point]
    found = (
        f"Of {count_of(len(predicted), 'utilisation')} that were published, {sum(e <= NEAR for e in predicted)} are "
        f"within {100 * NEAR:g} % of what the model says from the one other; the median error is "
        f"{100 * median(predicted):.0f} %, the worst {signed_percent(max(errors.values(), key=abs))}."
    )
    return Table(
        "A published measurement beside the model", found, columns, tuple(rows), _notes(file, points, syncs, step)
    )


def _at(points: list[Measured], bits_per_second: float) -> list[Measured]:
    return [point for point in points if point.bits_per_second == bits_per_second]


def _errors(known: Measured, points: list[Measured], syncs: dict[float, float]) -> dict[Measured, float]:
    """The model's relative error at every point, its compute solved from the known one."""
    step = compute_seconds(known, syncs[known.bits_per_second])
    return {
        point: utilisation(step, point.sync_interval, syncs[point.bits_per_second]) / point.utilisation - 1
        for point in points
    }


def _cell(point: Measured, modelled: float, is_known: bool) -> Cell:
    said = "solved" if is_known else f"{100 * modelled:.3g}, {signed_percent(modelled / point.utilisation - 1)}"
    return Cell(f"{100 * point.utilisation:g} ({said})")


def _notes(file: dict[str, Any], points: list[Measured], syncs: dict[float, float], step: float) -> tuple[str, ...]:
    worst = [max(map(abs, _errors(known, points, syncs).values())) for known in points]
    return (
        f"Source: {file['source']}. Not our measurement, and nothing here was run at these numbers. In brackets the "
        "cost model's value and by how much it is above the published one.",
        f"Modelled: {file['num_workers']} nodes in a ring, {file['num_parameters']:,} parameters of "
        f"{BYTES_PER_PARAMETER} bytes, one all-reduce every H steps that overlaps nothing, no latency, all of the link "
        f"used (a constant share of it would change nothing but the compute). The compute of a step, "
        f"{milliseconds(step)} ms, is solved from H = {file['solved_from']['sync_interval']} at "
        f"{rate(file['solved_from']['bits_per_second'])}. Solved from another of the points, the worst error is "
        f"{100 * min(worst):.0f} to {100 * max(worst):.0f} %: the published utilisations are not those of one compute "
        "time, and those below 1 % are given in one or two digits.",
    )
