"""What the records say: every row compared with the baseline, rows of equal ratio side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from report.accuracy.assay import Assay, assays_of
from report.accuracy.bounds import Role, at_end_of_grid, is_final_average, role_of
from report.accuracy.records import Records, RowRuns
from report.kit.statistics import Comparison, Summary, Word, compare, holm, judge, summarise

SAME_RATIO = 1.05
"""Rows whose ratios differ by less than this factor are set side by side."""


@dataclass(frozen=True)
class Finding:
    """One row of the accuracy table.

    `gap_share` is what a row closes of the gap between floor and ceiling, a share by seed summed up. `refused` says why
    the row may not be called non-inferior, where its numbers alone would. `at_end`: its learning rate lies at an end of
    what was tried. `holm` tells whether "non-inferior" stands after Holm's correction.
    """

    records: RowRuns
    role: Role | None
    summary: Summary | None
    comparison: Comparison | None
    word: Word | None
    gap_share: Summary | None = None
    refused: str | None = None
    at_end: bool = False
    holm: bool = False
    baseline_ids: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name, the same over all ratios."""
        return self.records.method

    @property
    def name(self) -> str:
        """The method's name as tables print it: a bound is marked, and so is a learning rate at an end of the grid."""
        return f"{self.method}{f' ({self.role})' if self.role else ''}{'†' if self.at_end else ''}"

    @property
    def ratio(self) -> float:
        """How many times fewer bits than uncompressed it sends, by its plan."""
        return self.records.row.ratio

    @property
    def models(self) -> float:
        """Models that one worker sends in a run; where the plan does not say, its payload without a final exchange."""
        row = self.records.row
        return row.expected_bits / (32 * row.num_parameters) if row.models_sent is None else row.models_sent

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
        if self.role == "ceiling":
            return "baseline"
        if self.word == "diverged":
            return f"diverged {len(self.records.diverged)} of {self.planned}"
        pairs = len(self.comparison.seeds) if self.comparison else 0
        if pairs == 0:
            return "no runs yet"
        word = "floor" if self.word is None else self.word
        return word if pairs == self.planned else f"{word} ({pairs} of {self.planned})"


@dataclass(frozen=True)
class RatioGroup:
    """Rows that send about the same number of bits. `ratio` is that of the first."""

    ratio: float
    findings: tuple[Finding, ...]

    @property
    def one_row_a_method(self) -> bool:
        """Whether each method was given one row here; a grid of learning rates without a choice gives it several."""
        return len({finding.method for finding in self.findings}) == len(self.findings)

    def ordered(self) -> list[Finding]:
        """Those with a mean, best first; equal means keep the order of the plan."""
        scored = [finding for finding in self.findings if finding.summary]
        return sorted(scored, key=lambda finding: -(finding.summary.mean if finding.summary else 0.0))


@dataclass(frozen=True)
class Study:
    """An experiment's findings: rows of their own alone, those of other lengths and rules being other exhibits'.

    `others` are rows alone at their ratio, as a single final average; the floor is in neither `groups` nor `others`.
    """

    records: Records
    assays: tuple[Assay, ...]
    baseline: Finding | None
    floor: Finding | None
    compared: tuple[Finding, ...]
    groups: tuple[RatioGroup, ...]
    others: tuple[Finding, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All rows, the baseline first and the floor last."""
        return (*filter(None, (self.baseline,)), *self.compared, *filter(None, (self.floor,)))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the compared methods in the order of the plan."""
        return tuple(dict.fromkeys(finding.method for finding in self.compared))

    @property
    def class_counts(self) -> list[list[int]] | None:
        """Samples of each class in each worker's own shard; None where workers have none, or no run is done."""
        results = (run.result for finding in self.findings for run in finding.records.finished.values())
        return next((result.class_counts for result in results if result and result.class_counts), None)

    @property
    def bounds(self) -> tuple[Finding, ...]:
        """Ceiling, final average and floor: the bounds that belong to every ratio."""
        averages = (f for f in self.compared if is_final_average(f.records.row))
        return (*filter(None, (self.baseline,)), *averages, *filter(None, (self.floor,)))

    @property
    def assay(self) -> Assay | None:
        """The check at the baseline's own length."""
        steps = self.baseline.records.row.num_steps if self.baseline else None
        return next((assay for assay in self.assays if assay.num_steps == steps), None)

    @property
    def main_group(self) -> RatioGroup | None:
        """The ratio at which the first answers are given: the one that the experiment names, or its smallest."""
        wanted = self.records.experiment.main_ratio
        if wanted is None:
            return self.groups[0] if self.groups else None
        return next((g for g in self.groups if max(g.ratio, wanted) <= SAME_RATIO * min(g.ratio, wanted)), None)


def study_of(records: Records) -> Study:
    """Compare every row with the baseline."""
    experiment, assays = records.experiment, assays_of(records)
    roles = {rows.row.row: role_of(rows.row, experiment) for rows in records.main_rows}
    of_role = {role: rows for rows in records.main_rows if (role := roles[rows.row.row])}
    baseline, floor = of_role.get("ceiling"), of_role.get("floor")
    findings = [_finding(records, rows, roles[rows.row.row], baseline, floor, assays) for rows in records.main_rows]
    compared = _with_holm([f for f in findings if f.role not in ("ceiling", "floor")], experiment.confidence)
    groups = _groups(f for f in compared if not is_final_average(f.records.row))
    together = [group for group in groups if len(group.findings) > 1] or groups
    in_groups = {id(finding) for group in together for finding in group.findings}
    return Study(
        records,
        assays,
        next((f for f in findings if f.role == "ceiling"), None),
        next((f for f in findings if f.role == "floor"), None),
        compared,
        tuple(together),
        tuple(finding for finding in compared if id(finding) not in in_groups),
    )


def _finding(
    records: Records,
    rows: RowRuns,
    role: Role | None,
    baseline: RowRuns | None,
    floor: RowRuns | None,
    assays: Sequence[Assay],
) -> Finding:
    experiment = records.experiment
    finding = Finding(rows, role, summarise(list(rows.accuracy.values())), None, None)
    finding = replace(finding, at_end=at_end_of_grid(rows.row, experiment))
    if role == "ceiling":
        return finding
    comparison = compare(rows.accuracy, baseline.accuracy if baseline else {}, experiment.margin, experiment.confidence)
    ids = tuple(baseline.finished[seed].run.run_id for seed in comparison.seeds) if baseline and comparison else ()
    finding = replace(finding, comparison=comparison, baseline_ids=ids)
    if role == "floor":
        return finding
    word = judge(comparison, experiment.margin, len(rows.diverged))
    reason = next((assay.reason for assay in assays if assay.num_steps == rows.row.num_steps), None)
    refused = reason if word == "non-inferior" else None
    share = gap_share(rows, baseline, floor)
    return replace(finding, word="cannot tell" if refused else word, refused=refused, gap_share=share)


def gap_share(rows: RowRuns, ceiling: RowRuns | None, floor: RowRuns | None) -> Summary | None:
    """(accuracy - floor) / (ceiling - floor), by seed; None where a seed's gap is none or no seed has all three."""
    if ceiling is None or floor is None:
        return None
    seeds = sorted(rows.accuracy.keys() & ceiling.accuracy.keys() & floor.accuracy.keys())
    gaps = {seed: ceiling.accuracy[seed] - floor.accuracy[seed] for seed in seeds}
    if any(gap <= 0 for gap in gaps.values()):
        return None
    return summarise([(rows.accuracy[seed] - floor.accuracy[seed]) / gap for seed, gap in gaps.items()])


def _with_holm(findings: list[Finding], confidence: float) -> tuple[Finding, ...]:
    """A row that cannot be tested stays in the family with p = 1, or leaving runs out would help the others."""

    def p_value(finding: Finding) -> float:
        tested = finding.comparison.p_value if finding.comparison and finding.word != "diverged" else None
        return 1.0 if tested is None else tested

    kept = holm([p_value(finding) for finding in findings], 1 - confidence)
    return tuple(
        replace(finding, holm=stands and finding.word == "non-inferior")
        for finding, stands in zip(findings, kept, strict=True)
    )


def _groups(findings: Iterable[Finding]) -> list[RatioGroup]:
    groups: list[list[Finding]] = []
    for finding in sorted(findings, key=lambda finding: finding.ratio):
        if groups and finding.ratio <= groups[-1][0].ratio * SAME_RATIO:
            groups[-1].append(finding)
        else:
            groups.append([finding])
    return [RatioGroup(group[0].ratio, tuple(group)) for group in groups]
