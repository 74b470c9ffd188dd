"""The tables of accuracies: baseline card, accuracy, and each seed with the workers' own models."""

from __future__ import annotations

from collections.abc import Sequence

from harness.records.metrics import ACCURACY
from report.accuracy.findings import Finding, Study
from report.accuracy.row_cells import BOUNDS, has_models, head_cells, head_columns, marks, sent_notes
from report.kit.document import Cell, Table, numbers, texts
from report.kit.statistics import INTERVAL, Summary, mean_of
from report.kit.wording import NONE, count_of, interval, listed, percent, points, ratio_name, share, short

SEED_COLUMNS = 8
"""With more seeds than this the single values are in csv/per_seed.csv only."""


def baseline_card(study: Study) -> Table:
    """What the others are compared with, as two columns."""
    rows = study.baseline.records if study.baseline else study.records.rows[0]
    runs = [run for run in rows.runs.values() if run]
    attempts = [attempt for run in runs for attempt in run.run.attempts]
    settings = study.records.experiment.settings
    config = runs[0].run.config if runs else {}
    workers = sorted({str(run.result.world_size) for run in runs if run.result})
    bits = rows.row.expected_bits / (rows.row.num_parameters * rows.row.num_steps)
    launch = sorted({f"{a.launch}, {a.backend} backend, {a.device}" for a in attempts})
    entries = {
        "algorithm": f"{rows.row.label} ({rows.row.algorithm}; {rows.row.words})",
        "learning rate": short(rows.row.learning_rate),
        "precision": settings.get("precision") or str(config.get("precision") or "not recorded"),
        "bits sent per parameter and step": short(bits),
        "workers": listed(workers) or settings.get("workers", "no run yet"),
        "launch and backend": "; ".join(launch) or "no run yet",
        "timing": "no timing claims are made here",
    }
    found = "What every difference in this report is a difference to." if study.baseline else "No baseline is named."
    cells = tuple((Cell(name), Cell(text, rows.run_ids)) for name, text in entries.items())
    return Table("Baseline card", found, texts("what", "which"), cells)


def accuracy_table(study: Study) -> Table:
    """Every row with its mean, spread, paired difference, share of the gap and word. Accuracies in percent."""
    experiment = study.records.experiment
    seeds = () if has_models(study) else _seeds(study)
    heads = ("learning rate", "n", "mean", "s.d.", f"{100 * INTERVAL:g} % interval")
    columns = (
        *head_columns(study),
        *numbers(*heads, *(f"seed {seed}" for seed in seeds)),
        *numbers("difference", f"lower {100 * experiment.confidence:g} % bound"),
        *numbers(*(("share of the gap, %",) if study.floor else ())),
        *texts("word"),
    )
    rows = tuple(_accuracy_row(study, finding, seeds) for finding in study.findings)
    notes = (*_accuracy_notes(study), BOUNDS, *sent_notes(study), *marks(study.findings))
    return Table(_title(study), _accuracy_found(study), columns, rows, notes=notes)


def _title(study: Study) -> str:
    label = study.records.metric.score_label
    return label[:1].upper() + label[1:]


def other_metric(study: Study) -> tuple[str, ...]:
    """What accuracy stands for, where rows are compared by something else."""
    metric = study.records.metric
    if metric is ACCURACY:
        return ()
    return (f"Accuracy here and in all that follows is {metric.score_label}, and its points are those of it.",)


def _seeds(study: Study) -> Sequence[int]:
    seeds = study.records.experiment.seeds
    return seeds if len(seeds) <= SEED_COLUMNS else ()


def margin_of(study: Study) -> str:
    """The margin in words, with its reason."""
    experiment = study.records.experiment
    if experiment.margin is None:
        return "Margin: not set."
    text = f"Margin: {points(experiment.margin).lstrip('+')} percentage points."
    return f"{text} Why: {experiment.margin_reason.rstrip('.')}." if experiment.margin_reason else text


def _accuracy_notes(study: Study) -> tuple[str, ...]:
    holm, total = sum(finding.holm for finding in study.compared), len(study.compared)
    notes: tuple[str, ...] = (
        *other_metric(study),
        f"{margin_of(study)} Confidence of each one-sided bound: {100 * study.records.experiment.confidence:g} %. "
        "Accuracies in percent, differences in percentage points. s.d. is the sample's; the interval of the mean is "
        "Student's t.",
        "Difference: mean over seeds of method minus baseline, paired by seed, with the lower one-sided t bound. "
        "non-inferior: the lower bound is above minus the margin; inferior: the upper one-sided bound is below it; "
        "inconclusive: neither, or fewer than two pairs. Diverged runs are not filled in: the numbers are of the "
        "finished runs, and such a row is never called non-inferior.",
        "The bounds are per row and not corrected for the number of rows that are compared; after Holm's correction "
        f"over all of them {holm} of {total} are still non-inferior.",
    )
    refused = next((finding.refused for finding in study.compared if finding.refused), None)
    if refused:
        notes += (f"cannot tell: the numbers would make the row non-inferior, but of this experiment {refused}.",)
    if study.floor:
        notes += (
            "Share of the gap: (accuracy - floor) / (ceiling - floor), mean over seeds with its "
            f"{100 * INTERVAL:g} % t interval; the floor has 0, the ceiling 100.",
        )
    return notes


def _accuracy_row(study: Study, finding: Finding, seeds: Sequence[int]) -> tuple[Cell, ...]:
    rows, summary, comparison = finding.records, finding.summary, finding.comparison
    ids = rows.finished_ids
    gap = Cell(share_text(finding.gap_share), finding.pair_ids)
    return (
        *head_cells(study, finding),
        Cell(short(rows.row.learning_rate)),
        Cell(share(len(ids), finding.planned), rows.run_ids),
        Cell(percent(summary.mean if summary else None), ids),
        Cell(percent(summary.standard_deviation if summary else None), ids),
        Cell(interval(summary.low, summary.high) if summary else NONE, ids),
        *(_seed_cell(finding, seed) for seed in seeds),
        Cell(points(comparison.difference) if comparison else NONE, finding.pair_ids),
        Cell(points(comparison.lower) if comparison else NONE, finding.pair_ids),
        *((gap,) if study.floor else ()),
        Cell(finding.said(), finding.pair_ids or rows.run_ids),
    )


def share_text(gap_share: Summary | None) -> str:
    """A share of the gap as "97 (95 to 99)", in percent."""
    if gap_share is None:
        return NONE
    mean = f"{100 * gap_share.mean:.0f}"
    if gap_share.low is not None and gap_share.high is not None:
        mean += f" ({100 * gap_share.low:.0f} to {100 * gap_share.high:.0f})"
    return mean.replace("-", "−")


def _seed_cell(finding: Finding, seed: int) -> Cell:
    rows, run = finding.records, finding.records.runs.get(seed)
    text = percent(rows.accuracy.get(seed)) if seed not in rows.diverged else "diverged"
    return Cell(text, (run.run.run_id,) if run else ())


def _accuracy_found(study: Study) -> str:
    judged = [finding for finding in study.compared if finding.comparison]
    if not judged:
        return "No row can be compared with the baseline yet."
    worst = min(judged, key=lambda f: f.comparison.difference if f.comparison else 0.0)
    best = max(judged, key=lambda f: f.comparison.difference if f.comparison else 0.0)
    parts = [
        f"{f.method} at ratio {ratio_name(f.ratio)} ({points(f.comparison.difference)} points)"
        for f in (best, worst)
        if f.comparison
    ]
    span = f"the mean differences to the baseline run from {parts[0]} to {parts[1]}."
    if any(finding.refused for finding in judged) or (study.assay and study.assay.reason):
        return f"Whether a row is without loss this experiment cannot tell; {span}"
    good = sum(finding.word == "non-inferior" for finding in judged)
    return f"{good} of {count_of(len(study.compared), 'compared row')} are non-inferior; {span}"


def seeds_table(study: Study) -> Table:
    """Accuracy of each seed, and of the single workers' own models at the end, in percent."""
    seeds = _seeds(study)
    columns = (
        *head_columns(study),
        *numbers(*(f"seed {seed}" for seed in seeds)),
        *numbers("workers' average", "workers' own, mean", "workers' own, least"),
    )
    rows = tuple(_seeds_row(study, finding, seeds) for finding in study.findings)
    notes = (
        "Workers' average: the model that is the average of all workers' (for the floor the mean over workers of the "
        "accuracy of each one's own). Workers' own: each worker's model scored alone on the same samples, mean over "
        "workers and seeds, and the least of any worker in any seed.",
        *marks(study.findings),
    )
    return Table("Accuracy by seed and by worker", _seeds_found(study), columns, rows, notes=notes)


def _own(finding: Finding) -> list[float]:
    return [value for values in finding.records.workers_accuracy.values() for value in values]


def _seeds_row(study: Study, finding: Finding, seeds: Sequence[int]) -> tuple[Cell, ...]:
    own, ids = _own(finding), finding.records.finished_ids
    return (
        *head_cells(study, finding),
        *(_seed_cell(finding, seed) for seed in seeds),
        Cell(percent(finding.summary.mean if finding.summary else None), ids),
        Cell(percent(mean_of(own)) if own else NONE, ids),
        Cell(percent(min(own)) if own else NONE, ids),
    )


def _seeds_found(study: Study) -> str:
    behind = [(f.summary.mean - mean_of(own), f) for f in study.compared if f.summary and (own := _own(f))]
    if not behind:
        return "The single workers' models were not scored in these runs."
    most, finding = max(behind, key=lambda pair: pair[0])
    return (
        f"A single worker's own model is at most {points(most).lstrip('+')} points behind the average of all "
        f"({finding.method} at ratio {ratio_name(finding.ratio)})."
    )
