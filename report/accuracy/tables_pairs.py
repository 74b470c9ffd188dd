"""The matrices of all pairs of methods, one for each ratio."""

from __future__ import annotations

from collections.abc import Sequence

from report.accuracy.findings import Finding, RatioGroup, Study
from report.accuracy.pairs import Pair
from report.accuracy.row_cells import has_models, marks
from report.kit.document import Cell, Table, numbers, texts
from report.kit.statistics import pair
from report.kit.wording import NONE, amount, points

_MOST_METHODS = 12
"""A wider matrix would need letters too small to read; csv/pairs.csv holds every pair."""


def shown_groups(study: Study) -> list[RatioGroup]:
    """The ratios whose matrix fits a page and whose methods have one row each."""
    return [g for g in study.groups if g.one_row_a_method and 2 <= len(g.findings) <= _MOST_METHODS]


def pairs_table(study: Study, pairs: Sequence[Pair], group: RatioGroup) -> Table:
    """Row minus column in percentage points; the bounds of all ratios stand at the right."""
    methods, bounds = group.findings, study.bounds
    columns = (*texts("row − column"), *numbers(*(f.name for f in (*methods, *bounds))))
    by_name = {(p.left.method, p.right.method): p for p in pairs if p.group is group}
    rows = tuple(
        (
            Cell(row.name, row.records.run_ids, strong=row.role is not None),
            *(_cell(by_name, row, column) for column in methods),
            *(_bound_cell(row, bound) for bound in bounds),
        )
        for row in methods
    )
    found, sent = _found([p for p in pairs if p.group is group]), ""
    if has_models(study):
        low, high = (amount(pick(f.models for f in methods)) for pick in (min, max))
        sent = f", {low if low == high else f'{low} to {high}'} models sent"
    notes = (
        f"Percentage points, paired by seed. *: the two differ, by a two-sided t test after Holm's correction over all "
        f"{len(pairs)} pairs of all ratios together. div.: a run diverged. Columns of ceiling, average at the end and "
        "floor are differences alone, not tested here. Intervals and p in csv/pairs.csv.",
        *marks((*methods, *bounds)),
    )
    return Table(f"All pairs at ratio {group.ratio:g}{sent}", found, columns, rows, notes=notes)


def _cell(by_name: dict[tuple[str, str], Pair], row: Finding, column: Finding) -> Cell:
    if row is column:
        return Cell("")
    straight = by_name.get((row.method, column.method))
    found = straight or by_name[column.method, row.method]
    if found.diverged:
        return Cell("div.", found.run_ids)
    if found.paired is None:
        return Cell(NONE, found.run_ids)
    difference = found.paired.difference if straight else -found.paired.difference
    return Cell(points(difference) + ("*" if found.differs else ""), found.run_ids, strong=found.differs)


def _bound_cell(row: Finding, bound: Finding) -> Cell:
    found = pair(row.records.accuracy, bound.records.accuracy)
    ids = row.records.run_ids + bound.records.run_ids
    return Cell(points(found.difference) if found else NONE, ids)


def _found(pairs: Sequence[Pair]) -> str:
    differ = [p for p in pairs if p.differs]
    if not differ:
        return f"None of {len(pairs)} pairs is shown to differ."
    return f"{len(differ)} of {len(pairs)} pairs are shown to differ."
