"""Table: the compression that is needed before communication stops to matter, per rate and model (modelled)."""

from __future__ import annotations

from harness.records.timings import Message
from report.kit.document import Cell, Column, Table
from report.kit.wording import NONE
from report.speed.cost_model import Compute, Network, step_seconds
from report.speed.speedups import spans_where
from report.speed.study import Bench, SpeedStudy
from report.speed.units import rate

RATES = (1e6, 10e6, 100e6, 1e9, 10e9, 25e9, 100e9, 400e9)
NEGLIGIBLE = 1.1
"""Communication is called negligible where a step takes no longer than this factor of its compute."""

MOST = 1e6


def needed_ratio(compute: Compute, messages: list[Message], network: Network) -> float | None:
    """The least ratio, at least 1, by which every message must shrink; None where latency alone is too much."""

    def negligible(ratio: float) -> bool:
        shrunk = [m.model_copy(update={"payload_bytes": m.payload_bytes / ratio}) for m in messages]
        return step_seconds(compute, shrunk, network) <= NEGLIGIBLE * (compute.forward + compute.backward)

    spans = spans_where(negligible, 1.0, MOST)
    return spans[0].low if spans else None


def ratios_table(study: SpeedStudy) -> Table:
    """For each workload: one message after the backward pass, and DDP's buckets during it."""
    columns = (Column("model", "left"), Column("sent", "left"), *(Column(rate(bits)) for bits in RATES))
    rows, needs = [], []
    for bench in (bench for bench in study.benches if bench.is_modelled):
        for words, messages in _ways(bench).items():
            ratios = {bits: _needed(bench, messages, bits) for bits in RATES}
            large = [bits for bits, ratio in ratios.items() if ratio is None or ratio >= 256]
            if large:
                needs.append(f"{bench.workload.name} ({words}) at {rate(max(large))} and below")
            cells = ("none suffices" if ratio is None else _said(ratio) for ratio in ratios.values())
            rows.append((Cell(bench.workload.name), Cell(words), *(Cell(text) for text in cells)))
    found = (
        f"Ratios of 256 and more are needed for {'; '.join(needs)}." if needs else "No ratio of 256 or more is needed."
    )
    notes = (
        f"Modelled: the least ratio at which a step that sends it every time is at most {100 * (NEGLIGIBLE - 1):.0f} % "
        "longer than its compute; 1: none is needed; none suffices: latency alone takes longer. Encoding is left out.",
    )
    return Table("Ratio that is needed", found if rows else NONE, columns, tuple(rows), notes)


def _said(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 9.95 or ratio == 1 else f"{ratio:.1f}"


def _ways(bench: Bench) -> dict[str, list[Message]]:
    whole = Message(collective="all_reduce", payload_bytes=4 * bench.workload.num_parameters, every=1, ready=1.0)
    ddp = bench.method("ddp")
    return {"after the backward pass": [whole]} | ({"in DDP's buckets": ddp.messages} if ddp else {})


def _needed(bench: Bench, messages: list[Message], bits: float) -> float | None:
    network = bench.network(bits)
    compute = Compute(bench.workload.forward_seconds, bench.workload.backward_seconds)
    return needed_ratio(compute, messages, network) if network else None
