"""The table of assay sensitivity: at each length, whether the experiment could have shown a loss."""

from __future__ import annotations

from report.accuracy.assay import DEVIATIONS, MARGINS, Assay, epochs_of, margin_cost
from report.accuracy.findings import Study
from report.accuracy.records import RowRuns
from report.accuracy.tables import margin_of
from report.kit.document import Cell, Table, numbers, texts
from report.kit.statistics import mean_of
from report.kit.wording import NONE, amount, count_of, percent, points, short, whole


def assay_table(study: Study) -> Table:
    """Ceiling, floor and the gap between them in margins and in standard deviations, per length."""
    heads = ("steps", "epochs", "ceiling", "floor", "gap, points", "in margins", "s.d. between seeds", "in s.d.")
    columns = (*numbers(*heads), *texts("can tell"))
    margin = study.records.experiment.margin
    rows = tuple(_row(assay, margin) for assay in study.assays)
    notes = (
        f"The experiment can tell where the gap holds {MARGINS} margins and {DEVIATIONS} standard deviations between "
        "seeds (of ceiling or floor, whichever spreads more). Elsewhere no row is called non-inferior.",
        " ".join(filter(None, (margin_of(study), margin_cost(study.assays, margin)))),
    )
    return Table("Whether the experiment can tell", _found(study), columns, rows, notes=notes)


def _row(assay: Assay, margin: float | None) -> tuple[Cell, ...]:
    ids, gap, deviation = assay.run_ids, assay.gap, assay.deviation
    epochs = epochs_of(assay.ceiling) if assay.ceiling else None
    return (
        Cell(whole(assay.num_steps)),
        Cell(short(epochs), ids),
        Cell(_mean(assay.ceiling), ids),
        Cell(_mean(assay.floor), ids),
        Cell(points(gap), ids),
        Cell(NONE if gap is None or not margin else amount(gap / margin), ids),
        Cell(percent(deviation), ids),
        Cell(NONE if gap is None or not deviation else amount(gap / deviation), ids),
        Cell("no" if assay.reason else "yes", ids, strong=bool(assay.reason)),
    )


def _mean(rows: RowRuns | None) -> str:
    return percent(mean_of(list(rows.accuracy.values())) if rows and rows.accuracy else None)


def _found(study: Study) -> str:
    able = [assay for assay in study.assays if assay.reason is None]
    total = len(study.assays)
    if total and len(able) == total:
        return f"It can, at {'all' if total > 1 else 'its'} {count_of(total, 'length')}."
    text = "; ".join(f"at {whole(a.num_steps)} steps {a.reason}" for a in study.assays if a.reason)
    return f"It can at {len(able)} of {count_of(total, 'length')}: {text}." if able else f"It cannot: {text}."
