"""The CSV files of comparisons: assay sensitivity, equal bits, all pairs, and both rules of selection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from report.accuracy.assay import epochs_of
from report.accuracy.exports import Value, names, sent, write_csv
from report.accuracy.findings import Finding, Study
from report.accuracy.pairs import Pair
from report.accuracy.tables_tuning import by_loss_rows
from report.kit.statistics import pair, summarise


def write_comparisons(folder: Path, study: Study, pairs: Sequence[Pair]) -> None:
    """Write csv/assay.csv, equal_bits.csv, pairs.csv and rules.csv.

    Raises:
        OSError: the folder cannot be written.
    """
    write_csv(folder / "assay.csv", _ASSAY, _assay(study))
    write_csv(folder / "equal_bits.csv", _EQUAL_BITS, _equal_bits(study))
    write_csv(folder / "pairs.csv", _PAIRS, _pairs(pairs))
    write_csv(folder / "rules.csv", _RULES, _rules(study))


_ASSAY = names("num_steps epochs ceiling floor gap margin gap_in_margins deviation gap_in_deviations can_tell reason")


def _assay(study: Study) -> Iterable[Sequence[Value]]:
    margin = study.records.experiment.margin
    for assay in study.assays:
        both = [summarise(list(rows.accuracy.values())) if rows else None for rows in (assay.ceiling, assay.floor)]
        yield (
            assay.num_steps,
            epochs_of(assay.ceiling) if assay.ceiling else None,
            *(summary.mean if summary else None for summary in both),
            assay.gap,
            margin,
            assay.gap / margin if assay.gap is not None and margin else None,
            assay.deviation,
            assay.gap / assay.deviation if assay.gap is not None and assay.deviation else None,
            "no" if assay.reason else "yes",
            assay.reason,
        )


_EQUAL_BITS = names(
    "group_ratio place row method algorithm ratio expected_bits models_sent true_ratio link_models mean difference word"
)


def _equal_bits(study: Study) -> Iterable[Sequence[Value]]:
    """The table's order; the bounds of all ratios have neither group nor place."""
    placed: list[tuple[Value, Value, Finding]] = [(None, None, study.baseline)] if study.baseline else []
    for group in study.groups:
        placed += [(group.ratio, place, finding) for place, finding in enumerate(group.ordered(), start=1)]
    placed += [(None, None, finding) for finding in (*study.others, *((study.floor,) if study.floor else ()))]
    for ratio, place, finding in placed:
        row = finding.records.row
        yield (
            ratio,
            place,
            *(row.row, finding.method, row.algorithm, row.ratio, row.expected_bits),
            *sent(finding.records),
            finding.summary.mean if finding.summary else None,
            finding.comparison.difference if finding.comparison else None,
            finding.word or finding.role,
        )


_PAIRS = names(
    "group_ratio left_row right_row left_method right_method pairs difference interval_low interval_high p_value "
    "differs_after_holm diverged"
)


def _pairs(pairs: Sequence[Pair]) -> Iterable[Sequence[Value]]:
    for each in pairs:
        paired = each.paired
        numbers = (paired.difference, paired.low, paired.high, paired.p_value) if paired else (None,) * 4
        yield (
            each.group.ratio,
            *(each.left.records.row.row, each.right.records.row.row, each.left.method, each.right.method),
            len(paired.seeds) if paired else 0,
            *numbers,
            "yes" if each.differs else "no",
            "yes" if each.diverged else "no",
        )


_RULES = names(
    "row method held_out_settings held_out_rate held_out_accuracy loss_row loss_settings loss_rate loss_accuracy pairs "
    "difference interval_low interval_high"
)


def _rules(study: Study) -> Iterable[Sequence[Value]]:
    other = by_loss_rows(study)
    for finding in study.findings:
        held, loss = finding.records, other.get(finding.records.row.row)
        if loss is None:
            continue
        paired, summary = pair(loss.accuracy, held.accuracy), summarise(list(loss.accuracy.values()))
        yield (
            *(held.row.row, finding.method, held.row.words, held.row.learning_rate),
            finding.summary.mean if finding.summary else None,
            *(loss.row.row, loss.row.words, loss.row.learning_rate),
            summary.mean if summary else None,
            len(paired.seeds) if paired else 0,
            *((paired.difference, paired.low, paired.high) if paired else (None,) * 3),
        )
