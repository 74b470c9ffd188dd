"""What an experiment found, in a person's sentence: `findings.toml`, whose claims the records are held against."""

from __future__ import annotations

import math
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict

from cser_bench.report.contrasts_section import compared_name, row_name
from cser_bench.report.frame import Frames
from cser_bench.report.statistics import UNKNOWN, difference, rows_by_place
from cser_bench.report.wording import SIGNIFICANT, gap_in_prose

FILE = Path(__file__).parent / "findings.toml"

_MOST_ORDERS = 5
"""Orders of a finding whose gaps are printed."""


class Finding(BaseModel):
    """A sentence, and what it claims of rows; `findings.toml` says what each claim means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    finding: str
    use: str
    order: list[list[str]] = []
    smallest: list[str] = []
    largest: str | None = None
    everywhere: list[list[str]] = []
    except_at: list[tuple[int, int]] = []
    significant: list[tuple[str, str]] = []
    inconclusive: list[tuple[str, str]] = []
    note: str | None = None


@cache
def findings() -> dict[str, Finding]:
    """Return all findings by the name of their experiment."""
    tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: Finding(**table) for name, table in tables.items()}


def finding_of(
    frames: Frames, accuracy: pd.DataFrame, contrasts: pd.DataFrame
) -> Finding | None:
    """Return what the experiment found; None where nobody wrote it or the records say otherwise.

    Args:
        accuracy: as `accuracy_frame` has it. contrasts: as `contrasts_frame` has it.
    """
    written = findings().get(frames.experiment.name)
    if written is None or broken_claims(written, frames, accuracy, contrasts):
        return None
    return written


def broken_claims(
    written: Finding, frames: Frames, accuracy: pd.DataFrame, contrasts: pd.DataFrame
) -> list[str]:
    """Return the claims of a finding that the records do not bear out."""
    # Index: row. More is better, also of a loss, whose negative is the score.
    means = accuracy.set_index("row")["mean"]
    broken = [f"order {rows}" for rows in written.order if not _falls(means, rows)]
    broken += _broken_extremes(written, accuracy)
    for rows in written.everywhere:
        broken += _broken_places(written, frames, means, rows)
    pairs = zip(contrasts["row"], contrasts["reference"], strict=True)
    verdicts = dict(zip(pairs, contrasts["verdict"], strict=True))
    for kind, is_wanted in (("significant", True), ("inconclusive", False)):
        for pair in getattr(written, kind):
            verdict = verdicts.get(pair)
            if verdict is None or (verdict in SIGNIFICANT) != is_wanted:
                broken.append(f"{kind} {pair}: {verdict}")
    return broken


def _falls(means: pd.Series, rows: list[str]) -> bool:
    """Return whether the rows' means fall; a row without a mean breaks the claim."""
    # A comparison with NaN is false.
    return all(
        means.get(one, math.nan) > means.get(next_, math.nan)
        for one, next_ in pairwise(rows)
    )


def _broken_extremes(written: Finding, accuracy: pd.DataFrame) -> list[str]:
    """Return the claims on whose drop is the smallest and the largest that do not hold."""
    # DDP has ratio 1, no communication an infinite one: neither is a method that is compared.
    is_compressed = (accuracy["ratio"] > 1) & (accuracy["ratio"] < math.inf)
    compared = accuracy[accuracy["is_own"] & ~accuracy["is_bound"] & is_compressed]
    means = compared.set_index("row")["mean"].dropna()
    # The highest mean has the smallest drop.
    rows = list(means.sort_values(ascending=False, kind="stable").index)
    broken = []
    if written.smallest != rows[: len(written.smallest)]:
        broken.append(f"smallest {written.smallest}")
    if written.largest is not None and rows[-1:] != [written.largest]:
        broken.append(f"largest {written.largest}")
    return broken


def estimates_of(written: Finding, frames: Frames, accuracy: pd.DataFrame) -> list[str]:
    """Return the gaps that a finding rests on, each with its interval: "EF 4-bit: 0.36 points (...)".

    They are those of the rows with the smallest drops, and of pairs whose comparison is significant. Where it names
    neither, they are those of the last row of its first orders against the first.

    Args:
        accuracy: as `accuracy_frame` has it.
    """
    unit = frames.metric.loss_unit
    lines = {line["row"]: line for line in accuracy.to_dict("records")}
    estimates = []
    for row in written.smallest:
        line = lines[row]
        ends = (line["difference"], line["difference_low"], line["difference_high"])
        estimates.append(f"{row_name(frames, row)}: {gap_in_prose(*ends, unit)}")
    pairs = list(written.significant)
    if not estimates and not pairs:
        pairs = [(rows[-1], rows[0]) for rows in written.order[:_MOST_ORDERS]]
    for row, reference in pairs:
        found = difference(frames, row, reference) or UNKNOWN
        low, high = found.interval()
        # Not as numpy's numbers, which round halves to even.
        words = gap_in_prose(float(found.estimate), float(low), float(high), unit)
        estimates.append(f"{compared_name(frames, row, reference)}: {words}")
    return estimates


def _broken_places(
    written: Finding, frames: Frames, means: pd.Series, rows: list[str]
) -> list[str]:
    """Return the sizes and lengths where an order does not hold, or holds against an exception."""
    # Of each row the names of its repetitions, by (parameters, steps); where all were run counts.
    by_place = [rows_by_place(frames, row) for row in rows]
    places = set.intersection(*map(set, by_place))
    broken = []
    for place in sorted(places):
        holds = _falls(means, [names[place] for names in by_place])
        if holds == (place in written.except_at):
            broken.append(f"everywhere {rows} at {place}")
    if not places:
        return [f"everywhere {rows}: at no place"]
    return broken
