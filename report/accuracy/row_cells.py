"""The cells that every table of rows shares: the name with its marks, the ratio, and what is sent."""

from __future__ import annotations

from collections.abc import Iterable

from harness.records.experiment import Row
from report.accuracy.findings import Finding, Study
from report.kit.document import Cell, Column, numbers, texts
from report.kit.wording import amount, ratio_name

AT_END = (
    "† The learning rate is the smallest or largest that was tried with these settings: a better one may lie outside."
)
BOUNDS = (
    "In bold: bounds. The ceiling sends everything, the floor is a worker alone that sends nothing; SGD that "
    "accumulates gradients and one average at the end are what anyone could do."
)
SENT = (
    "Models sent: training payload of one worker in a run over 32 bits a parameter, with one exchange of the full "
    "model at the end where the workers' models differ. True ratio: steps over models sent. Link models: what one "
    "worker's link carries for it, 2 (n - 1) / n of what is all-reduced and n - 1 times what is all-gathered."
)

TO_NEIGHBOURS = "What goes straight to neighbours, a link carries once."


def has_models(study: Study) -> bool:
    """Whether the records say what is sent in models."""
    return any(rows.row.models_sent is not None for rows in study.records.main_rows)


def sent_notes(study: Study) -> tuple[str, ...]:
    """What models sent and link models are, where the records have them."""
    if not has_models(study):
        return ()
    mixes = any(rows.row.spectral_gap is not None for rows in study.records.main_rows)
    return (f"{SENT} {TO_NEIGHBOURS}" if mixes else SENT,)


def head_columns(study: Study) -> tuple[Column, ...]:
    """Method, ratio, and where the records have it what is sent."""
    return (*texts("method"), *ratio_columns(study))


def ratio_columns(study: Study) -> tuple[Column, ...]:
    """As `head_columns` without the method."""
    sent = ("models sent", "true ratio", "link models") if has_models(study) else ()
    return numbers("ratio", *sent)


def head_cells(study: Study, finding: Finding) -> tuple[Cell, ...]:
    """The cells under `head_columns`; a bound is set bold."""
    name = Cell(finding.name, finding.records.run_ids, strong=finding.role is not None)
    return (name, *ratio_cells(study, finding.records.row))


def ratio_cells(study: Study, row: Row) -> tuple[Cell, ...]:
    """The cells under `ratio_columns`."""
    if not has_models(study):
        return (Cell(ratio_name(row.ratio)),)
    true_ratio = row.num_steps / row.models_sent if row.models_sent else None
    return (Cell(ratio_name(row.ratio)), *(Cell(amount(x)) for x in (row.models_sent, true_ratio, row.link_models)))


def marks(findings: Iterable[Finding]) -> tuple[str, ...]:
    """The note on learning rates at an end of the grid, where any is."""
    return (AT_END,) if any(finding.at_end for finding in findings) else ()
