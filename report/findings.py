"""What the records say: every row compared with the baseline, rows of equal ratio side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from report.records import Records, RowRuns
from report.statistics import Comparison, Summary, Word, compare, holm, judge, summarise

SAME_RATIO = 1.05
"""Rows whose ratios differ by less than this factor are set side by side."""


@dataclass(frozen=True)
class Finding:
    """One row of the accuracy table. `holm` tells whether "non-inferior" stands after Holm's correction."""

    records: RowRuns
    summary: Summary | None
    comparison: Comparison | None
    word: Word | None
    holm: bool
    baseline_ids: tuple[str, ...]

    @property
    def method(self) -> str:
        """The method's name, the same over all ratios."""
        return self.records.method

    @property
    def ratio(self) -> float:
        """How many times fewer bits than uncompressed it sends, by its plan."""
        return self.records.row.ratio

    @property
    def planned(self) -> int:
        """Number of runs in the plan."""
        return len(self.records.runs)

    @property
    def pair_ids(self) -> tuple[str, ...]:
        """Ids of the runs behind the comparison: the method's and the baseline's."""
        return self.records.run_ids + self.baseline_ids

    def said(self) -> str:
        """The word as the report prints it: with counts where runs diverged or are missing."""
        if self.word is None:
            return "baseline"
        if self.word == "diverged":
            return f"diverged {len(self.records.diverged)} of {self.planned}"
        pairs = len(self.comparison.seeds) if self.comparison else 0
        if pairs == 0:
            return "no runs yet"
        return self.word if pairs == self.planned else f"{self.word} ({pairs} of {self.planned})"


@dataclass(frozen=True)
class RatioGroup:
    """Rows that send about the same number of bits. `ratio` is that of the first."""

    ratio: float
    findings: tuple[Finding, ...]

    def ordered(self) -> list[Finding]:
        """Those with a mean, best first; equal means keep the order of the plan."""
        scored = [finding for finding in self.findings if finding.summary]
        return sorted(scored, key=lambda finding: -(finding.summary.mean if finding.summary else 0.0))


@dataclass(frozen=True)
class Study:
    """An experiment's findings. `others` are rows alone at their ratio, as a single final average."""

    records: Records
    baseline: Finding | None
    compared: tuple[Finding, ...]
    groups: tuple[RatioGroup, ...]
    others: tuple[Finding, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All rows, the baseline first."""
        return ((self.baseline,) if self.baseline else ()) + self.compared

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the compared methods in the order of the plan."""
        return tuple(dict.fromkeys(finding.method for finding in self.compared))


def study_of(records: Records) -> Study:
    """Compare every row with the baseline."""
    experiment = records.experiment
    baseline_rows = next((rows for rows in records.rows if rows.row.row == experiment.baseline), None)
    others = [rows for rows in records.rows if rows is not baseline_rows]
    findings = [_finding(records, rows, baseline_rows) for rows in others]
    compared = _with_holm(findings, experiment.confidence)
    baseline = None
    if baseline_rows is not None:
        summary = summarise(list(baseline_rows.accuracy.values()))
        baseline = Finding(baseline_rows, summary, None, None, False, ())
    groups = _groups(compared)
    together = [group for group in groups if len(group.findings) > 1] or groups
    in_groups = {id(finding) for group in together for finding in group.findings}
    alone = tuple(finding for finding in compared if id(finding) not in in_groups)
    return Study(records, baseline, compared, tuple(together), alone)


def _finding(records: Records, rows: RowRuns, baseline: RowRuns | None) -> Finding:
    experiment = records.experiment
    reference = baseline.accuracy if baseline else {}
    comparison = compare(rows.accuracy, reference, experiment.margin, experiment.confidence)
    ids = tuple(baseline.finished[seed].run.run_id for seed in comparison.seeds) if baseline and comparison else ()
    word = judge(comparison, experiment.margin, len(rows.diverged))
    return Finding(rows, summarise(list(rows.accuracy.values())), comparison, word, False, ids)


def _with_holm(findings: list[Finding], confidence: float) -> tuple[Finding, ...]:
    """A row that cannot be tested stays in the family with p = 1, or leaving runs out would help the others."""

    def p_value(finding: Finding) -> float:
        tested = finding.comparison.p_value if finding.comparison and finding.word != "diverged" else None
        return 1.0 if tested is None else tested

    kept = holm([p_value(finding) for finding in findings], 1 - confidence)
    return tuple(
        Finding(f.records, f.summary, f.comparison, f.word, stands and f.word == "non-inferior", f.baseline_ids)
        for f, stands in zip(findings, kept, strict=True)
    )


def _groups(findings: Iterable[Finding]) -> list[RatioGroup]:
    groups: list[list[Finding]] = []
    for finding in sorted(findings, key=lambda finding: finding.ratio):
        if groups and finding.ratio <= groups[-1][0].ratio * SAME_RATIO:
            groups[-1].append(finding)
        else:
            groups.append([finding])
    return [RatioGroup(group[0].ratio, tuple(group)) for group in groups]
