"""The tables of what is sent: bits counted against their formula, and rows of equal bits side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from report.accuracy.findings import Finding, RatioGroup, Study
from report.accuracy.row_cells import has_models, head_cells, head_columns, marks, ratio_columns
from report.accuracy.tables import share_text
from report.accuracy.traffic import RowTraffic, traffic_of
from report.kit.document import Cell, Column, Table, numbers, texts
from report.kit.wording import NONE, amount, count_of, listed, percent, points, ratio_name, share, whole


def bits_table(study: Study) -> Table:
    """Bits one worker sent per run: the formula, counted against expected, collectives, evaluation apart."""
    traffic = [(finding, traffic_of(finding.records)) for finding in study.findings]
    columns = (
        *head_columns(study),
        Column("settings", "left", below=True),
        *texts("formula"),
        *numbers("counted bits", "expected bits"),
        *texts("equal", "collectives"),
        *numbers("counted ratio", "evaluation bits"),
    )
    rows = tuple(_bits_row(study, finding, entry) for finding, entry in traffic)
    have = [entry for _, entry in traffic if entry]
    equal = sum(entry.equal for entry in have)
    found = f"Counted and expected bits agree to the bit in {equal} of {count_of(len(have), 'row')} with finished runs."
    notes = (
        "Payload bits that one worker sent per run to train (gradient, error and model together), of finished runs. "
        "Expected: what the closed form and the plan say. What evaluation sent is no part of the ratio."
        " Formula: bits per step, in the symbols of the method's module.",
        *marks(study.findings),
    )
    return Table("Bits", found if have else "No finished run yet.", columns, rows, notes=notes)


def _bits_row(study: Study, finding: Finding, traffic: RowTraffic | None) -> tuple[Cell, ...]:
    row = finding.records.row
    head = (*head_cells(study, finding), Cell(row.words), Cell(row.formula))
    if traffic is None:
        return (*head, Cell(NONE), Cell(whole(row.expected_bits)), *(Cell(NONE) for _ in range(4)))
    ids = traffic.run_ids
    collectives = listed([f"{_span(counts)} {purpose}" for purpose, counts in traffic.collectives.items()])
    ratios = sorted({f"{ratio:.6g}" if math.isfinite(ratio) else "nothing sent" for ratio in traffic.ratios})
    return (
        *head,
        Cell(_span(traffic.counted), ids),
        Cell(_span((*traffic.expected, traffic.planned)), ids),
        Cell("yes" if traffic.equal else "NO", ids, strong=not traffic.equal),
        Cell(collectives or "none", ids),
        Cell(listed(ratios) if ratios else NONE, ids),
        Cell(_span(traffic.evaluation), ids),
    )


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return whole(low) if low == high else f"{whole(low)} to {whole(high)}"


def equal_bits_table(study: Study) -> Table:
    """At each ratio all rows by their mean, between the bounds of all ratios: ceiling first, then average and floor."""
    columns = (
        *ratio_columns(study),
        *numbers("place"),
        *texts("method"),
        *numbers("payload bits", "n", "mean", "difference", *(("share of the gap, %",) if study.floor else ())),
        *texts("word"),
    )
    rows = [_equal_row(study, NONE, study.baseline)] if study.baseline else []
    for group in study.groups:
        rows += [_equal_row(study, str(place), f) for place, f in enumerate(group.ordered(), start=1)]
    last = (*study.others, *((study.floor,) if study.floor else ()))
    rows += [_equal_row(study, NONE, finding) for finding in last if finding.summary]
    notes = (
        "Rows of one ratio send the same number of bits up to the rounding of blocks; sorted by mean accuracy.",
        *((LINK,) if has_models(study) else ()),
        *marks(study.findings),
    )
    return Table("Equal bits", _equal_found(study), columns, tuple(rows), notes=notes)


LINK = "Link models: what one worker's link carries. At equal payload an all-gather (top-k) costs more of it."


def _equal_row(study: Study, place: str, finding: Finding) -> tuple[Cell, ...]:
    ids, gap = finding.records.finished_ids, Cell(share_text(finding.gap_share), finding.pair_ids)
    name, *sent = head_cells(study, finding)
    return (
        *sent,
        Cell(place),
        name,
        Cell(whole(finding.records.row.expected_bits)),
        Cell(share(len(ids), finding.planned), ids),
        Cell(percent(finding.summary.mean if finding.summary else None), ids),
        Cell(points(finding.comparison.difference) if finding.comparison else NONE, finding.pair_ids),
        *((gap,) if study.floor else ()),
        Cell(finding.said(), finding.pair_ids or finding.records.run_ids),
    )


def _equal_found(study: Study) -> str:
    text = _group_found(study.main_group) if study.main_group else ""
    return f"{text}.{_link_found(study)}" if text else "No finished run at the main ratio yet."


def _group_found(group: RatioGroup) -> str:
    ordered = group.ordered()
    if not ordered:
        return ""
    best = ordered[0]
    text = f"At ratio {group.ratio:g} {best.method} has the best mean ({percent(_mean(best))} %)"
    plain = next((f for f in ordered if f.records.row.algorithm == "local_sgd"), None)
    if plain is None or plain is best:
        return text
    behind = points(_mean(best) - _mean(plain)).lstrip("+")
    return f"{text} and {plain.method} is {ordered.index(plain) + 1} of {len(ordered)}, {behind} points behind"


def _mean(finding: Finding) -> float:
    return finding.summary.mean if finding.summary else float("nan")


def link_cost(finding: Finding) -> float | None:
    """Models on one worker's link for each model sent; None where the records do not say."""
    row = finding.records.row
    return row.link_models / row.models_sent if row.link_models is not None and row.models_sent else None


def _link_found(study: Study) -> str:
    costs = [(cost, f) for group in study.groups for f in group.findings if (cost := link_cost(f))]
    if not costs:
        return ""
    (least, _), (most, finding) = min(costs, key=lambda c: c[0]), max(costs, key=lambda c: c[0])
    if most < 1.05 * least:
        return f" All put {amount(most)} models on a link for each model sent."
    name = f"{finding.method} at ratio {ratio_name(finding.ratio)}"
    return f" For each model sent {name} puts {amount(most)} models on a link, the least is {amount(least)}."
