"""The CSV files: every number of the report at full precision, with the ids of the runs behind it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.records.metrics import ACCURACY, Metric, score_in
from harness.records.store import Record, RunRecord, write_text_atomically
from report.accuracy.findings import Finding, Study
from report.accuracy.records import Records, RowRuns, best_training_loss
from report.accuracy.traffic import EVALUATION, TRAINING, bookkeeping_bits, traffic_of
from report.accuracy.tuning import Tuned
from report.kit.statistics import mean_of

Value = str | int | float | None


def write_exports(folder: Path, study: Study, tuned: Sequence[Tuned], all_records: Sequence[Records]) -> None:
    """Write csv/*.csv. Only attempts.csv holds anything of time or of how often a run was started.

    Raises:
        OSError: the folder cannot be written.
    """
    write_csv(folder / "accuracy.csv", _ACCURACY, (_accuracy(finding) for finding in study.findings))
    write_csv(folder / "per_seed.csv", _PER_SEED, _per_seed(study))
    write_csv(folder / "bits.csv", _BITS, _bits(study))
    write_csv(folder / "curves.csv", _CURVES, _curves(study))
    write_csv(folder / "tuning.csv", _TUNING, _tuning(tuned))
    write_csv(folder / "attempts.csv", _ATTEMPTS, _attempts(all_records))


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
    """Write one table, its head first.

    Raises:
        OSError: the folder cannot be written.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_text_atomically(path, buffer.getvalue(), durable=False)


def names(text: str) -> tuple[str, ...]:
    """The head of a table from its words."""
    return tuple(text.split())


_ACCURACY = names(
    "row method algorithm ratio learning_rate planned finished diverged mean standard_deviation "
    "interval_low interval_high pairs difference lower_bound upper_bound p_value word "
    "non_inferior_after_holm reason role rate_at_end models_sent true_ratio link_models share_of_gap share_low "
    "share_high run_ids baseline_run_ids"
)


def _accuracy(finding: Finding) -> Sequence[Value]:
    rows, summary, comparison, gap = finding.records, finding.summary, finding.comparison, finding.gap_share
    spread = (summary.mean, summary.standard_deviation, summary.low, summary.high) if summary else (None,) * 4
    paired: tuple[Value, ...] = (0, None, None, None, None)
    if comparison:
        bounds = (comparison.lower, comparison.upper, comparison.p_value)
        paired = (len(comparison.seeds), comparison.difference, *bounds)
    return (
        *_head(finding),
        rows.row.learning_rate,
        finding.planned,
        len(rows.finished),
        len(rows.diverged),
        *spread,
        *paired,
        finding.word or finding.role,
        "yes" if finding.holm else "no",
        finding.refused,
        finding.role,
        "yes" if finding.at_end else "no",
        *sent(rows),
        *((gap.mean, gap.low, gap.high) if gap else (None,) * 3),
        " ".join(rows.run_ids),
        " ".join(finding.baseline_ids),
    )


def _head(finding: Finding) -> tuple[Value, ...]:
    row = finding.records.row
    return (row.row, finding.method, row.algorithm, row.ratio)


def sent(rows: RowRuns) -> tuple[Value, ...]:
    """Models sent, true ratio and link models, as in every table of rows."""
    return (rows.row.models_sent, rows.true_ratio, rows.row.link_models)


_PER_SEED = names(
    "row method algorithm ratio base rule num_steps seed run_id status test_accuracy test_correct test_count test_loss "
    "train_loss best_train_loss diverged_at_step workers_mean workers_least baseline_accuracy difference "
    "parameters_sha256"
)


def _per_seed(study: Study) -> Iterable[Sequence[Value]]:
    """All rows, of other lengths and of the other rule too, each beside the baseline of its length."""
    reference = {assay.num_steps: assay.ceiling.accuracy for assay in study.assays if assay.ceiling}
    for rows in study.records.rows:
        row, accuracy = rows.row, reference.get(rows.row.num_steps, {})
        head = (row.row, rows.method, row.algorithm, row.ratio, row.base, row.rule, row.num_steps)
        for seed, run in rows.runs.items():
            yield (*head, seed, row.runs[str(seed)], *_run_values(run, accuracy.get(seed), rows.metric))


def _run_values(run: RunRecord | None, baseline: float | None, metric: Metric) -> tuple[Value, ...]:
    if run is None or run.result is None:
        status = "not started" if run is None else "failed" if run.failure else "not done"
        return (status, *(None,) * 9, baseline, None, None)
    result = run.result
    accuracy, own = score_in(result, metric), result.worker_accuracy if metric is ACCURACY else None
    difference = None if accuracy is None or baseline is None else accuracy - baseline
    return (
        result.status,
        accuracy,
        result.test_correct,
        result.test_count,
        result.test_loss,
        result.train_loss,
        best_training_loss(run),
        result.diverged_at_step,
        mean_of(own) if own else None,
        min(own) if own else None,
        baseline,
        difference,
        result.parameters_sha256,
    )


_BITS = names(
    "row method algorithm ratio run_id purpose bits expected_bits collectives expected_collectives "
    "counted_ratio formula"
)


def _bits(study: Study) -> Iterable[Sequence[Value]]:
    for finding in study.findings:
        if traffic_of(finding.records) is None:
            continue
        for run in finding.records.finished.values():
            result = run.result
            for purpose in (*TRAINING, EVALUATION) if result else ():
                sent = result.traffic.get(purpose) if result else None
                expected = result.expected_traffic.get(purpose) if result else None
                yield (
                    *_head(finding),
                    run.run.run_id,
                    purpose,
                    sent.bits if sent else 0,
                    expected.bits if expected else None,
                    sent.collectives if sent else 0,
                    expected.collectives if expected else None,
                    result.overall_ratio if result else None,
                    finding.records.row.formula,
                )


_EVENT = names("step epoch learning_rate train_loss test_loss")
_EVENT_SENT = names("bits_sent error_norm worker_distance")
_CURVES = (*names("row method algorithm ratio seed run_id"), *_EVENT, "test_accuracy", *_EVENT_SENT)


def _curves(study: Study) -> Iterable[Sequence[Value]]:
    for finding in study.findings:
        head = _head(finding)
        for seed, run in finding.records.runs.items():
            for event in run.events if run else ():
                score, run_id = score_in(event, finding.records.metric), run.run.run_id if run else ""
                yield (*head, seed, run_id, *_of(event, _EVENT), score, *_of(event, _EVENT_SENT))


def _of(record: Record, fields: Sequence[str]) -> tuple[Value, ...]:
    return tuple(getattr(record, name) for name in fields)


_TUNING = names(
    "row method ratio candidate settings learning_rate selected by_training_loss planned finished diverged "
    "mean_held_out_accuracy mean_train_loss run_ids"
)


def _tuning(tuned: Sequence[Tuned]) -> Iterable[Sequence[Value]]:
    for entry in tuned:
        for point in entry.points:
            yield (
                entry.row,
                entry.method,
                entry.ratio,
                point.candidate,
                point.settings,
                point.learning_rate,
                "yes" if point == entry.selected_point else "no",
                "yes" if point == entry.by_loss else "no",
                point.planned,
                len(point.scores),
                point.diverged,
                point.score,
                point.loss,
                " ".join(point.run_ids),
            )


_ATTEMPT = names("attempt started_at resumed_from_step host command launch backend device git_commit git_diff_sha256")
_ATTEMPTS = (*names("experiment row seed run_id"), *_ATTEMPT, *names("wall_seconds bookkeeping_bits"))


def _attempts(all_records: Sequence[Records]) -> Iterable[Sequence[Value]]:
    for records in all_records:
        for rows in records.rows:
            for seed, run in rows.runs.items():
                for attempt in run.run.attempts if run else ():
                    last = run.result if run and run.result and run.result.attempt == attempt.attempt else None
                    yield (
                        records.experiment.name,
                        rows.row.row,
                        seed,
                        run.run.run_id if run else "",
                        *_of(attempt, _ATTEMPT),
                        last.wall_seconds if last else None,
                        bookkeeping_bits(last.traffic) if last else None,
                    )
