"""Bits: what one worker of a row sent, counted and expected, training apart from evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.records.store import RunRecord, TrafficEntry
from report.accuracy.records import RowRuns

TRAINING = ("gradient", "error", "model")
"""Purposes that the compression ratio counts."""

EVALUATION = "evaluation"
"""Purpose shown apart. Any other is bookkeeping that grows with interruptions, and is told with the attempts."""


def bookkeeping_bits(traffic: Mapping[str, TrafficEntry]) -> int:
    """Bits that one worker sent neither to train nor to evaluate."""
    return sum(entry.bits for purpose, entry in traffic.items() if purpose not in (*TRAINING, EVALUATION))


@dataclass(frozen=True)
class RowTraffic:
    """Payload bits of one worker per run, one entry per run, and collectives by purpose."""

    counted: tuple[int, ...]
    expected: tuple[int, ...]
    planned: int
    collectives: dict[str, tuple[int, ...]]
    evaluation: tuple[int, ...]
    ratios: tuple[float, ...]
    run_ids: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether every run sent, to the bit, what its formula says and what was planned."""
        return self.counted == self.expected and set(self.counted) <= {self.planned}


def training_bits(traffic: Mapping[str, TrafficEntry]) -> int:
    """Bits that one worker sent to train."""
    return sum(traffic[purpose].bits for purpose in TRAINING if purpose in traffic)


def traffic_of(rows: RowRuns) -> RowTraffic | None:
    """The traffic of a row's finished runs (a diverged run stops early, so its bits are no row's); None for no runs."""
    runs = list(rows.finished.values())
    if not runs:
        return None
    results = [run.result for run in runs if run.result]
    used = {purpose for result in results for purpose, entry in result.traffic.items() if entry.collectives}
    return RowTraffic(
        counted=tuple(training_bits(result.traffic) for result in results),
        expected=tuple(training_bits(result.expected_traffic) for result in results),
        planned=rows.row.expected_bits,
        collectives={p: _each(runs, p, "collectives") for p in TRAINING if p in used},
        evaluation=_each(runs, EVALUATION, "bits"),
        ratios=tuple(result.overall_ratio for result in results if result.overall_ratio is not None),
        run_ids=tuple(run.run.run_id for run in runs),
    )


def _each(runs: list[RunRecord], purpose: str, field: str) -> tuple[int, ...]:
    entries = [run.result.traffic.get(purpose) for run in runs if run.result]
    return tuple(int(getattr(entry, field)) if entry else 0 for entry in entries)
