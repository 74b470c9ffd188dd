"""The rows of an experiment as they are run.

They are the rows once chosen, those by the other rule, those after restarts, and those at other
rates and lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

from cser_bench.harness.plan.rows import PlannedRow, TooShortError, plan_row
from cser_bench.harness.plan.search import neighbouring_rates
from cser_bench.harness.plan.tuning import Chosen
from cser_bench.harness.spec.rows import RowSpec
from cser_bench.harness.spec.spec import Spec


def expand(spec: Spec, chosen: Chosen) -> tuple[list[PlannedRow], list[str]]:
    """Return all rows, and a sentence on each that would be too short at another length.

    Raises SpecError: a setting that cannot be used.
    """
    # Records and reports keep this order.
    rows = [
        *_rows(spec, chosen),
        *_rows_by_training_loss(spec, chosen),
        *_restarted_rows(spec, chosen),
        *_rows_at_other_rates(spec, chosen),
    ]
    rows_at_lengths, left_out = _rows_at_lengths(spec, chosen)
    return [*rows, *rows_at_lengths], left_out


def _rows(spec: Spec, chosen: Chosen) -> Iterator[PlannedRow]:
    """Return the rows themselves, those in cells among them."""
    for row in chosen.rows.values():
        if row.learning_rate is not None:
            held_back = row.cell is not None and row.cell.held_back
            yield plan_row(
                spec,
                row,
                _seeds_of(spec, row),
                base=row.repeated_row,
                held_back=held_back,
            )


def _seeds_of(spec: Spec, row: RowSpec) -> list[int]:
    """Return the seeds of a row: its cell's, or the baseline's own, or else the experiment's."""
    if row.cell is not None and row.cell.seeds:
        return row.cell.seeds
    if row.row == spec.statistics.baseline and spec.statistics.baseline_seeds:
        return spec.statistics.baseline_seeds
    return spec.statistics.seeds


def _rows_by_training_loss(spec: Spec, chosen: Chosen) -> Iterator[PlannedRow]:
    """Return the rows for which the rule of least training loss chooses otherwise.

    There are none where the spec does not ask for them.
    """
    if spec.tuning is None or not spec.tuning.both_rules:
        return
    seeds = spec.tuning.both_rules_seeds or spec.statistics.seeds
    for name, row in chosen.by_training_loss.items():
        yield plan_row(
            spec, row, seeds, f"{name}~loss", base=name, rule="training_loss"
        )


def _restarted_rows(spec: Spec, chosen: Chosen) -> Iterator[PlannedRow]:
    """Return the rows whose workers lose a part of their state."""
    for restart in spec.restarts:
        row = chosen.rows[restart.row].restarted(restart)
        yield plan_row(spec, row, spec.statistics.seeds)


def _rows_at_other_rates(spec: Spec, chosen: Chosen) -> Iterator[PlannedRow]:
    """Return rows again at the rates below and above theirs.

    They are those of the main ratio group, and those without a group.
    """
    if spec.sensitivity is None:
        return
    for row in chosen.rows.values():
        # A row of group 1 compresses nothing, and counts as one without a group.
        if row.ratio_group not in (None, 1, spec.statistics.main_ratio_group):
            continue
        assert row.learning_rate is not None, "a settled row has one"
        for rate in neighbouring_rates(row.learning_rate):
            yield plan_row(
                spec,
                row.model_copy(update={"learning_rate": rate}),
                spec.sensitivity.seeds,
                f"{row.row}^{rate:g}",
                base=row.row,
                rule="sensitivity",
            )


def _rows_at_lengths(spec: Spec, chosen: Chosen) -> tuple[list[PlannedRow], list[str]]:
    """Return all rows at other lengths, and a sentence on each that is too short there."""
    rows: list[PlannedRow] = []
    left_out: list[str] = []
    if spec.lengths is None:
        return rows, left_out
    for num_epochs in spec.lengths.num_epochs:
        for row in chosen.rows.values():
            name = f"{row.row}@{num_epochs}"
            try:
                planned = plan_row(
                    spec, row, spec.lengths.seeds, name, num_epochs, base=row.row
                )
            except TooShortError as error:
                # A length is chosen for the rows as a whole, so one that it does not fit ends
                # nothing.
                left_out.append(f"{name} is left out: {error.why}")
            else:
                rows.append(planned)
    return rows, left_out
