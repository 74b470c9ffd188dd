"""The verdict box: what was found for each method at each ratio, in plain words, from the statistics alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from report.document import Bullets, Cell, Column, Paragraph, Table, Verdict
from report.findings import Finding, RatioGroup, Study
from report.traffic import traffic_of
from report.wording import count_of, listed, percent, points, short


def verdict_of(study: Study) -> Verdict:
    """The box; it says so where nothing was run yet."""
    records = study.records
    if records.ended == 0:
        text = f"No run is done yet: 0 of {records.planned} runs. The report fills in as runs end."
        return Verdict("What was found", (Paragraph(text),))
    blocks: list[Paragraph | Bullets | Table] = [Paragraph(progress_of(study)), Paragraph(_counts(study))]
    if study.baseline and study.compared:
        blocks.append(_matrix(study))
    blocks.append(Bullets(tuple(_group(study, group) for group in study.groups) + tuple(_alone(study))))
    blocks.append(Paragraph(_bits(study)))
    return Verdict("What was found", tuple(blocks))


def progress_of(study: Study) -> str:
    """How many runs are done, diverged and failed, in a sentence or two."""
    records = study.records
    diverged = sum(len(rows.diverged) for rows in records.rows)
    if records.ended == records.planned:
        text = f"All {records.planned} runs are done"
    else:
        text = f"{records.ended} of {records.planned} runs are done; what follows is of these alone"
    text += f", {diverged} of them diverged." if diverged else ", none diverged."
    if records.failed:
        text += f" {count_of(len(records.failed), 'run')} failed and can be run again (see How it was run)."
    return text


def _counts(study: Study) -> str:
    experiment = study.records.experiment
    if study.baseline is None:
        return "The experiment names no baseline, so nothing is compared here."
    if study.baseline.summary is None:
        return f"The baseline {study.baseline.method} has no finished run yet, so nothing can be compared."
    name, summary = study.baseline.method, study.baseline.summary
    text = f"The baseline {name} reaches {percent(summary.mean)} % (mean of {count_of(summary.n, 'run')}). "
    if experiment.margin is None:
        return text + "The experiment sets no margin, so differences are given and not judged."
    words = Counter(finding.word for finding in study.compared)
    total = len(study.compared)
    parts = [f"{words[word]} {word}" for word in ("non-inferior", "inferior", "inconclusive") if words[word]]
    if words["diverged"]:
        parts.append(f"{words['diverged']} with diverged runs")
    holm = sum(finding.holm for finding in study.compared)
    return (
        f"{text}At a margin of {points(experiment.margin).lstrip('+')} percentage points and one-sided "
        f"{100 * experiment.confidence:g} % bounds, the {count_of(total, 'compared row')} are: {listed(parts)}. "
        f"The bounds are per row and not corrected for the number of rows; after Holm's correction over all of them "
        f"{holm} of {total} are still non-inferior."
    )


def _matrix(study: Study) -> Table:
    columns = (Column("method", "left"), *(Column(f"ratio {group.ratio:g}", "left") for group in study.groups))
    grouped = {finding.method for group in study.groups for finding in group.findings}
    rows = []
    for method in (method for method in study.methods if method in grouped):
        cells = [Cell(method)]
        for group in study.groups:
            finding = next((f for f in group.findings if f.method == method), None)
            cells.append(Cell("–") if finding is None else Cell(_brief(finding), finding.pair_ids))
        rows.append(tuple(cells))
    return Table("Word and mean difference to the baseline in percentage points", "", columns, tuple(rows))


def _brief(finding: Finding) -> str:
    difference = finding.comparison.difference if finding.comparison else None
    return finding.said() if difference is None else f"{finding.said()}, {points(difference)}"


def _group(study: Study, group: RatioGroup) -> str:
    head = f"Ratio {group.ratio:g}: "
    if study.baseline is None or study.records.experiment.margin is None:
        return head + _order(group.ordered())
    phrases = {
        "non-inferior": ("is shown to lose less than the margin", "are shown to lose less than the margin"),
        "inferior": ("is shown to lose more than the margin", "are shown to lose more than the margin"),
        "inconclusive": ("cannot be told from these runs", "cannot be told from these runs"),
    }
    parts = []
    for word, (one, many) in phrases.items():
        names = [f.method for f in group.findings if f.word == word and f.comparison]
        if names:
            parts.append(f"{listed(names)} {one if len(names) == 1 else many}")
    parts.extend(f"{f.method} {f.said()}" for f in group.findings if f.word == "diverged")
    waiting = [f.method for f in group.findings if f.word != "diverged" and not f.comparison]
    if waiting:
        parts.append(f"no runs to compare yet: {listed(waiting)}")
    return f"{head}{'; '.join(parts)}. {_order(group.ordered())}"


def _order(findings: Sequence[Finding]) -> str:
    if not findings:
        return "No means yet."
    names = " > ".join(f"{f.method} {percent(f.summary.mean if f.summary else None)}" for f in findings)
    return f"Observed order of the means (not a test): {names}."


def _alone(study: Study) -> list[str]:
    return [f"{f.method} (ratio {short(f.ratio)}): {_brief(f)}{' points' * bool(f.comparison)}." for f in study.others]


def _bits(study: Study) -> str:
    traffic = [t for t in (traffic_of(finding.records) for finding in study.findings) if t]
    unequal = sum(not t.equal for t in traffic)
    rows = count_of(len(traffic), "row")
    if unequal == 0:
        return f"Bits: in all {rows} with finished runs the counted bits equal the formula's, to the bit."
    return f"Bits: in {unequal} of {rows} the counted bits are NOT the formula's; see the bits table."
