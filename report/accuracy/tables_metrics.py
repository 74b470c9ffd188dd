"""Tables of text tasks: every metric in its unit and direction, and what each method made of some sentences."""

from __future__ import annotations

from collections.abc import Iterable

from harness.records.metrics import METRICS, Metric, value_in
from harness.records.store import RunRecord
from report.accuracy.findings import Finding, Study
from report.accuracy.row_cells import head_cells, head_columns
from report.kit.document import Cell, Table, numbers, texts
from report.kit.statistics import mean_of, pair, summarise
from report.kit.wording import MINUS, NONE, count_of, short


def metrics_of(study: Study) -> tuple[Metric, ...]:
    """Those that the finished runs have, where they have any beside accuracy and loss; else none."""
    runs = list(_finished(study))
    if not any(run.result and run.result.metrics for run in runs):
        return ()
    return tuple(
        metric
        for metric in METRICS.values()
        if any(run.result and value_in(run.result, metric) is not None for run in runs)
    )


def _finished(study: Study) -> Iterable[RunRecord]:
    return (run for finding in study.findings for run in finding.records.finished.values())


def metrics_table(study: Study) -> Table:
    """Every row with each metric: mean, standard deviation, and difference to the baseline paired by seed."""
    metrics = metrics_of(study)
    heads = [f"{metric.label}{f', {metric.unit}' if metric.unit else ''} {metric.arrow}" for metric in metrics]
    columns = (*head_columns(study), *numbers(*heads))
    rows = tuple(
        (*head_cells(study, finding), *(_cell(study, finding, metric) for metric in metrics))
        for finding in study.findings
    )
    signatures = next((run.result.signatures for run in _finished(study) if run.result and run.result.signatures), None)
    notes = (
        "↑: more is better, ↓: less is. Mean over seeds ± the sample's standard deviation, and in brackets the mean "
        "difference to the baseline, paired by seed.",
        *(f"{METRICS[name].label} by sacreBLEU, {signature}." for name, signature in (signatures or {}).items()),
    )
    return Table("All metrics", _found(study, metrics), columns, rows, notes=notes)


def values_of(finding: Finding, metric: Metric) -> dict[int, float]:
    """By seed, of the finished runs."""
    found = {seed: value_in(run.result, metric) for seed, run in finding.records.finished.items() if run.result}
    return {seed: value for seed, value in found.items() if value is not None}


def _cell(study: Study, finding: Finding, metric: Metric) -> Cell:
    values = values_of(finding, metric)
    summary = summarise(list(values.values()))
    if summary is None:
        return Cell(NONE)
    text = _shown(summary.mean, metric)
    if summary.standard_deviation is not None:
        text += f" ± {_shown(summary.standard_deviation, metric)}"
    paired = pair(values, values_of(study.baseline, metric)) if study.baseline else None
    if paired and finding is not study.baseline:
        text += f" ({'+' if paired.difference >= 0 else ''}{_shown(paired.difference, metric)})"
    return Cell(text, finding.records.finished_ids)


def _shown(value: float, metric: Metric) -> str:
    return f"{100 * value:.2f}".replace("-", MINUS) if metric.is_share else short(value)


def _found(study: Study, metrics: tuple[Metric, ...]) -> str:
    """Whether the metrics agree on which row is best."""
    best: dict[str, list[str]] = {}
    for metric in metrics:
        means = {f.name: mean_of(list(own.values())) for f in study.compared if (own := values_of(f, metric))}
        if means:
            sign = 1 if metric.higher_is_better else -1
            best.setdefault(max(means, key=lambda name: sign * means[name]), []).append(metric.label)
    if len(best) == 1:
        return f"Of the compared rows {next(iter(best))} is the best by each of {count_of(len(metrics), 'metric')}."
    parts = [f"{name} by {' and '.join(labels)}" for name, labels in best.items()]
    return f"The best of the compared rows is {', '.join(parts)}." if parts else "No compared row is finished yet."


def translations_table(study: Study) -> Table | None:
    """What each method's average made of the same sentences at its first seed; None where no run recorded any."""
    shown = [(f, run) for f in study.findings for run in list(f.records.finished.values())[:1] if run.result]
    said = [(f, run, run.result.translations) for f, run in shown if run.result and run.result.translations]
    if not said:
        return None
    examples = said[0][2]
    rows = [
        (Cell(method, ids, strong=not ids), *(Cell(text, ids) for text in texts))
        for method, ids, texts in (
            ("source", (), [each.source for each in examples]),
            ("expected", (), [each.expected for each in examples]),
            *((f"{f.name}, ratio {f.ratio:g}", (run.run.run_id,), [each.said for each in own]) for f, run, own in said),
        )
    ]
    wrong = [f for f, _, own in said if any(each.said != each.expected for each in own)]
    sentences = count_of(len(examples), "sentence")
    found = f"{len(wrong)} of {count_of(len(said), 'row')} differ from what was expected in one of {sentences}."
    columns = texts("row", *(f"sentence {n}" for n in range(1, len(examples) + 1)))
    notes = (
        "Of the scored sentences in the order of their length, those at equal distances; the workers' average, at the "
        "first seed.",
    )
    return Table("What they said", found, columns, tuple(rows), notes=notes)
