"""The verdict box: the regime, at most five plain answers, and one table, from the statistics alone."""

from __future__ import annotations

from collections.abc import Sequence

from report.accuracy.answers import Exhibits, answers_of, ratio_in_words
from report.accuracy.findings import Finding, Study
from report.accuracy.pairs import Pair
from report.accuracy.row_cells import marks
from report.accuracy.traffic import traffic_of
from report.kit.document import Bullets, Cell, Paragraph, Table, Verdict, texts
from report.kit.wording import NONE, count_of, percent, points, ratio_name, whole


def verdict_of(study: Study, pairs: Sequence[Pair], exhibits: Exhibits) -> Verdict:
    """The box; it says so where nothing was run yet.

    Args:
        exhibits: those of the report by key, that the answers name.
    """
    records = study.records
    if records.ended == 0:
        text = f"No run is done yet: 0 of {records.planned} runs. The report fills in as runs end."
        return Verdict("What was found", (Paragraph(text),))
    blocks: list[Paragraph | Bullets | Table] = [Paragraph(f"{regime_of_runs(study)} {progress_of(study)}")]
    if study.baseline and study.compared:
        blocks += [Bullets(answers_of(study, pairs, exhibits)), _matrix(study)]
    else:
        blocks.append(Paragraph("The experiment names no baseline, so nothing is compared here."))
    blocks += [Paragraph(text) for text in _unequal_bits(study)]
    return Verdict("What was found", tuple(blocks))


def regime_of_runs(study: Study) -> str:
    """Where all that follows was seen: steps, models sent, workers, shards, network."""
    row = (study.baseline or study.findings[0]).records.row
    settings, group = study.records.experiment.settings, study.main_group
    parts = [f"{whole(row.num_steps)} steps"]
    parts += [f"{settings['workers']} workers"] if "workers" in settings else []
    parts += [settings[key] for key in ("batch", "data") if key in settings]
    parts += [f"{whole(sum(study.class_counts[0]))} samples each"] if study.class_counts else []
    parts.append(f"a network of {whole(row.num_parameters)} parameters ({study.records.experiment.model})")
    main = f"; the main ratio is {ratio_in_words(study, group).removeprefix('ratio ')}" if group else ""
    return f"Seen in this regime alone: {', '.join(parts)}{main}."


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


def _matrix(study: Study) -> Table:
    heads = [ratio_in_words(study, group).replace(" sent)", ")") for group in study.groups]
    apart = [finding for finding in study.others if finding.role is None]
    columns = texts("method", *heads, *(["at a ratio of its own"] if apart else []))
    grouped = {finding.method for group in study.groups for finding in group.findings}
    rows = [_bound_row(study, study.baseline)] if study.baseline else []
    for method in (method for method in study.methods if method in grouped):
        found = [next((f for f in group.findings if f.method == method), None) for group in study.groups]
        role = next((f.role for f in found if f), None)
        name = Cell(f"{method}{f' ({role})' if role else ''}", strong=role is not None)
        rows.append((name, *(Cell(NONE) if f is None else Cell(_brief(f), f.pair_ids) for f in found)))
    bounds = [finding for finding in study.others if finding.role] + ([study.floor] if study.floor else [])
    rows += [_bound_row(study, finding) for finding in bounds]
    rows = [(*row, *([Cell(NONE)] if apart else [])) for row in rows]
    rows += [_apart_row(study, finding) for finding in apart]
    title = "Word and mean difference to the baseline in percentage points"
    return Table(title, "", columns, tuple(rows), notes=marks(study.findings))


def _bound_row(study: Study, finding: Finding) -> tuple[Cell, ...]:
    """A row that belongs to every ratio; the ceiling shows its accuracy, having no difference."""
    text = _brief(finding)
    if finding.role == "ceiling":
        text = f"{percent(finding.summary.mean)} %" if finding.summary else "no runs yet"
    cell = Cell(text, finding.pair_ids or finding.records.run_ids)
    name = Cell(finding.name, finding.records.run_ids, strong=finding.role is not None)
    return (name, *(cell for _ in study.groups))


def _apart_row(study: Study, finding: Finding) -> tuple[Cell, ...]:
    """A row that is alone at its ratio."""
    text = f"{_brief(finding)} (ratio {ratio_name(finding.ratio)})"
    return (Cell(finding.method), *(Cell(NONE) for _ in study.groups), Cell(text, finding.pair_ids))


def _brief(finding: Finding) -> str:
    difference = finding.comparison.difference if finding.comparison else None
    mark = "†" if finding.at_end else ""
    return f"{finding.said()}{mark}" if difference is None else f"{finding.said()}, {points(difference)}{mark}"


def _unequal_bits(study: Study) -> list[str]:
    traffic = [t for t in (traffic_of(finding.records) for finding in study.findings) if t]
    unequal = sum(not t.equal for t in traffic)
    if not unequal:
        return []
    rows = count_of(len(traffic), "row")
    return [f"Bits: in {unequal} of {rows} the counted bits are NOT the formula's; see the bits table."]
