"""What an experiment that ships found, in a person's sentence, and the gaps that it rests on: `findings.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict

from cser_bench.harness.records.shipped import ships
from cser_bench.report.contrasts_section import compared_name, row_name
from cser_bench.report.frame import Frames
from cser_bench.report.statistics import UNKNOWN, difference
from cser_bench.report.wording import gap_in_prose

FILE = Path(__file__).parent / "findings.toml"


class Finding(BaseModel):
    """A sentence, what to do, and the rows and pairs of rows that they rest on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    finding: str
    use: str
    rows: list[str] = []
    pairs: list[tuple[str, str]] = []
    note: str | None = None


@cache
def findings() -> dict[str, Finding]:
    """Return all findings by the name of their experiment."""
    tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: Finding(**table) for name, table in tables.items()}


def finding_of(frames: Frames) -> Finding | None:
    """Return what the experiment found; None where nobody wrote it, or the records are one's own."""
    if not ships(frames.folder):
        return None
    return findings().get(frames.experiment.name)


def estimates_of(written: Finding, frames: Frames, accuracy: pd.DataFrame) -> list[str]:
    """Return the gaps that a finding rests on, each with its interval: "EF 4-bit: 0.36 points (...)".

    Args:
        accuracy: as `accuracy_frame` has it.
    """
    unit = frames.metric.loss_unit
    lines = {line["row"]: line for line in accuracy.to_dict("records")}
    estimates = []
    for row in written.rows:
        line = lines[row]
        ends = (line["difference"], line["difference_low"], line["difference_high"])
        estimates.append(f"{row_name(frames, row)}: {gap_in_prose(*ends, unit)}")
    for row, reference in written.pairs:
        found = difference(frames, row, reference) or UNKNOWN
        low, high = found.interval()
        # Not as numpy's numbers, which round halves to even.
        words = gap_in_prose(float(found.estimate), float(low), float(high), unit)
        estimates.append(f"{compared_name(frames, row, reference)}: {words}")
    return estimates
