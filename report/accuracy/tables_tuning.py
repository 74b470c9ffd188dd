"""The tables of tuning: what it took, best of k, every trial, and both rules of selection side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.records.experiment import Choice
from report.accuracy.findings import Finding, Study
from report.accuracy.records import RowRuns
from report.accuracy.row_cells import AT_END, head_cells, head_columns, ratio_cells
from report.accuracy.tuning import GridPoint, Tuned
from report.kit.document import Cell, Column, Table, numbers, texts
from report.kit.statistics import mean_of, median_best_of, pair, summarise
from report.kit.wording import NONE, bounds, count_of, percent, points, ratio_name, share, short


def tuning_table(study: Study, tuned: Sequence[Tuned]) -> Table:
    """What choosing took per row, and what the other rule would have chosen."""
    heads = ("trials", "runs", "diverged", "selected rate", "by training loss")
    columns = (*head_columns(study), *numbers(*heads))
    rows = tuple(_tuning_row(study, entry) for entry in tuned)
    known = [entry for entry in tuned if entry.by_loss is not None]
    same = sum(entry.selected_point == entry.by_loss for entry in known)
    runs = sum(point.planned for entry in tuned for point in entry.points)
    found = (
        f"Tuning took {count_of(runs, 'run')}; least training loss selects the same in {same} of "
        f"{count_of(len(known), 'row')}."
    )
    notes = (
        "Trials: pairs of settings and learning rate. By training loss: the rate that the least mean training loss "
        "chooses.",
        *_marks(tuned),
    )
    return Table("What tuning took", found, columns, rows, notes=notes)


def _marks(tuned: Sequence[Tuned]) -> tuple[str, ...]:
    return (AT_END,) if any(entry.at_end for entry in tuned) else ()


def _head(study: Study, entry: Tuned) -> tuple[Cell, ...]:
    return (Cell(entry.name, strong=entry.role is not None), *ratio_cells(study, entry.plan))


def _tuning_row(study: Study, tuned: Tuned) -> tuple[Cell, ...]:
    ids = _ids(tuned)
    done = sum(len(point.scores) + point.diverged for point in tuned.points)
    return (
        *_head(study, tuned),
        Cell(str(tuned.num_trials), ids),
        Cell(share(done, sum(point.planned for point in tuned.points)), ids),
        Cell(str(sum(point.diverged for point in tuned.points)), ids),
        Cell(short(tuned.selected), ids),
        Cell(short(tuned.by_loss.learning_rate if tuned.by_loss else None), ids),
    )


def _ids(tuned: Tuned) -> tuple[str, ...]:
    return tuple(run_id for point in tuned.points for run_id in point.run_ids)


def best_of_table(study: Study, tuned: Sequence[Tuned]) -> Table:
    """What fewer trials would have found, held-out accuracies in percent."""
    most = max(len(entry.points) for entry in tuned)
    columns = (*head_columns(study), *numbers(*map(str, range(1, most + 1))))
    rows = tuple((*_head(study, entry), *_best_of_cells(entry, most)) for entry in tuned)
    notes = (
        "Held-out accuracy in percent: the median, over all choices of k of the trials, of the best one among them. A "
        "trial with a diverged run ranks below every number and shows as div.",
        *_marks(tuned),
    )
    return Table("Best of k trials", _best_of_found(tuned), columns, rows, notes=notes)


def _best_of(tuned: Tuned, count: int) -> float | None:
    return median_best_of([point.score for point in _tried(tuned)], count)


def _tried(tuned: Tuned) -> list[GridPoint]:
    return [point for point in tuned.points if point.scores or point.diverged]


def _best_of_cells(tuned: Tuned, most: int) -> list[Cell]:
    tried, ids = len(_tried(tuned)), _ids(tuned)
    scores = [_best_of(tuned, count) for count in range(1, tried + 1)]
    cells = [Cell("div." if score is None else percent(score), ids) for score in scores]
    return cells + [Cell(NONE)] * (most - tried)


def _best_of_found(tuned: Sequence[Tuned]) -> str:
    gains = []
    for entry in tuned:
        tried = len(_tried(entry))
        one, all_ = (_best_of(entry, 1), _best_of(entry, tried)) if tried else (None, None)
        if one is not None and all_ is not None:
            gains.append((all_ - one, entry))
    if not gains:
        return "No row has trials to choose from yet."
    most, entry = max(gains, key=lambda gain: gain[0])
    return (
        f"Tuning matters most for {entry.method} at ratio {ratio_name(entry.ratio)}: the best of all trials is "
        f"{points(most).lstrip('+')} points above the median one."
    )


def points_table(tuned: Sequence[Tuned]) -> Table:
    """Every pair of settings and learning rate that was tried, the chosen one in bold."""
    first = (*texts("method"), *numbers("ratio"), *texts("settings"))
    columns = (*first, *numbers("rate", "n", "held-out", "training loss"), *texts(""))
    rows = tuple(row for entry in tuned for row in _trial_rows(entry))
    several = [entry for entry in tuned if entry.num_candidates > 1]
    found = f"{count_of(len(rows), 'trial')} of {count_of(len(tuned), 'row')}"
    found += f"; {len(several)} of the rows had several tables of settings to choose from." if several else "."
    notes = (
        "Held-out accuracy in percent and training loss at the end, means over the seeds that a trial was run with "
        "(n). by loss: least training loss chooses it. A trial with a diverged run cannot be chosen.",
        *_marks(tuned),
    )
    return Table("Every trial", found, columns, rows, notes=notes)


def _trial_rows(entry: Tuned) -> Iterator[tuple[Cell, ...]]:
    """Settings stand at the first of their rates alone, since they are long."""
    shown: set[int] = set()
    for point in entry.points:
        yield _point_row(entry, point, "" if point.candidate in shown else point.settings)
        shown.add(point.candidate)


def _point_row(entry: Tuned, point: GridPoint, settings: str) -> tuple[Cell, ...]:
    chosen, ids = point == entry.selected_point, point.run_ids
    said = ["chosen"] if chosen else []
    said += ["by loss"] if point == entry.by_loss else []
    said += [f"diverged {point.diverged} of {point.planned}"] if point.diverged else []
    return (
        Cell(entry.name, strong=entry.role is not None),
        Cell(ratio_name(entry.ratio)),
        Cell(settings),
        Cell(short(point.learning_rate), ids, strong=chosen),
        Cell(share(len(point.scores) + point.diverged, point.planned), ids),
        Cell(percent(point.score), ids, strong=chosen),
        Cell(short(point.loss), ids),
        Cell(", ".join(said), ids, strong=chosen),
    )


def by_loss_rows(study: Study) -> dict[str, RowRuns]:
    """Rows that least training loss chose otherwise, by the row that they repeat."""
    steps = {finding.records.row.row: finding.records.row.num_steps for finding in study.findings}
    chosen = [rows for rows in study.records.rows if rows.row.rule == "training_loss"]
    return {r.row.base: r for r in chosen if r.row.base is not None and steps.get(r.row.base) == r.row.num_steps}


def rules_table(study: Study) -> Table | None:
    """Both rules of selection side by side; None where the plan knows of one rule alone."""
    tuning, other = study.records.experiment.tuning, by_loss_rows(study)
    choices = tuning.choices_by_training_loss if tuning else {}
    shown = [f for f in study.findings if f.records.row.row in other or f.records.row.row in choices]
    if not shown:
        return None
    columns = (
        *head_columns(study),
        Column("by held-out accuracy", "left", below=True),
        Column("test accuracy, by held-out"),
        Column("by training loss", "left", below=True),
        Column("test accuracy, by loss"),
        *numbers("n", "difference", "95 % interval"),
    )
    rows = tuple(_rules_row(study, f, other.get(f.records.row.row), choices.get(f.records.row.row)) for f in shown)
    notes = (
        "Both rules choose among the same trials. Difference: least training loss minus held-out accuracy, in "
        "percentage points of test accuracy, paired by seed, with a two-sided t interval.",
        *((AT_END,) if any(f.at_end for f in shown) else ()),
    )
    found = _rules_found(study, shown, other)
    return Table("Both rules of selection", found, columns, rows, notes=notes)


def _chosen(rows: RowRuns) -> str:
    return f"{rows.row.words}; rate {short(rows.row.learning_rate)}"


def _same(study: Study, finding: Finding, choice: Choice) -> bool:
    tuning = study.records.experiment.tuning
    held_out = tuning.choices.get(finding.records.row.row) if tuning else None
    first = (held_out.candidate, held_out.learning_rate) if held_out else (0, finding.records.row.learning_rate)
    return first == (choice.candidate, choice.learning_rate)


def _rules_row(study: Study, finding: Finding, other: RowRuns | None, choice: Choice | None) -> tuple[Cell, ...]:
    ids = finding.records.finished_ids
    head = (
        *head_cells(study, finding),
        Cell(_chosen(finding.records), ids),
        Cell(percent(finding.summary.mean if finding.summary else None), ids),
    )
    if other is None:
        text = f"{choice.words}; rate {short(choice.learning_rate)}: not run" if choice else NONE
        same = choice is None or _same(study, finding, choice)
        return (*head, Cell("the same choice" if same else text), *(Cell(NONE) for _ in range(4)))
    paired, summary = pair(other.accuracy, finding.records.accuracy), summarise(list(other.accuracy.values()))
    both = ids + other.finished_ids
    n = share(len(other.accuracy), len(other.runs)) if not other.diverged else f"diverged {len(other.diverged)}"
    mark = "†" if choice and choice.at_end else ""
    return (
        *head,
        Cell(_chosen(other) + mark, other.run_ids),
        Cell(percent(summary.mean if summary else None), other.finished_ids),
        Cell(n, other.run_ids),
        Cell(points(paired.difference) if paired else NONE, both),
        Cell(bounds(paired.low, paired.high) if paired else NONE, both),
    )


def _rules_found(study: Study, shown: Sequence[Finding], other: dict[str, RowRuns]) -> str:
    tuning = study.records.experiment.tuning
    choices = tuning.choices_by_training_loss if tuning else {}
    alone = [f for f in shown if f.records.row.row not in other]
    same = sum(_same(study, f, choices[f.records.row.row]) for f in alone)
    text = f"The rules choose the same for {same} of {count_of(len(shown), 'row')}"
    both = [(other[f.records.row.row], f.records) for f in shown if f.records.row.row in other]
    differences = [found.difference for loss, held in both if (found := pair(loss.accuracy, held.accuracy))]
    if not differences:
        return f"{text}."
    return (
        f"{text}; in the others least training loss changes test accuracy by {points(min(differences))} to "
        f"{points(max(differences))} points, {points(mean_of(differences))} in the mean."
    )
