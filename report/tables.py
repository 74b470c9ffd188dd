"""The tables of an accuracy experiment: baseline card, accuracy, bits, equal bits, tuning cost."""

from __future__ import annotations

from collections.abc import Sequence

from report.document import Cell, Column, Table
from report.findings import Finding, RatioGroup, Study
from report.statistics import INTERVAL, median_best_of
from report.traffic import RowTraffic, traffic_of
from report.tuning import GridPoint, Tuned
from report.wording import NONE, count_of, interval, listed, percent, points, share, short, whole

_MOST_TRIES = 7

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
        "algorithm": f"{rows.row.label} ({rows.row.algorithm}; {rows.row.settings})",
        "learning rate": short(rows.row.learning_rate),
        "precision": settings.get("precision") or str(config.get("precision") or "not recorded"),
        "bits sent per parameter and step": short(bits),
        "workers": listed(workers) or settings.get("workers", "no run yet"),
        "launch and backend": "; ".join(launch) or "no run yet",
        "timing": "no timing claims are made here",
    }
    found = "What every difference in this report is a difference to." if study.baseline else "No baseline is named."
    cells = tuple((Cell(name), Cell(text, rows.run_ids)) for name, text in entries.items())
    return Table("Baseline card", found, (Column("what", "left"), Column("which", "left")), cells)


def accuracy_table(study: Study, number: int) -> Table:
    """Every row with its mean, spread, seeds, paired difference and word. Accuracies in percent."""
    experiment = study.records.experiment
    seeds = experiment.seeds if len(experiment.seeds) <= SEED_COLUMNS else []
    heads = ("ratio", "learning rate", "n", "mean", "s.d.", f"{100 * INTERVAL:g} % interval")
    columns = (
        Column("method", "left"),
        *(Column(head) for head in heads),
        *(Column(f"seed {seed}") for seed in seeds),
        Column("difference"),
        Column(f"lower {100 * experiment.confidence:g} % bound"),
        Column("word", "left"),
    )
    rows = tuple(_accuracy_row(finding, seeds) for finding in study.findings)
    margin = "not set" if experiment.margin is None else f"{points(experiment.margin).lstrip('+')} percentage points"
    notes = (
        f"Margin: {margin}. Confidence of each one-sided bound: {100 * experiment.confidence:g} %. Accuracies in "
        "percent, differences in percentage points. s.d. is the sample's; the interval of the mean is Student's t.",
        "Difference: mean over seeds of method minus baseline, paired by seed, with the lower one-sided t bound. "
        "non-inferior: the lower bound is above minus the margin; inferior: the upper one-sided bound is below it; "
        "inconclusive: neither, or fewer than two pairs. Diverged runs are not filled in: the numbers are of the "
        "finished runs, and such a row is never called non-inferior.",
        "The bounds are per row and not corrected for the number of rows that are compared.",
    )
    return Table("Accuracy", _accuracy_found(study), columns, rows, number, wide=True, notes=notes)


def _accuracy_row(finding: Finding, seeds: Sequence[int]) -> tuple[Cell, ...]:
    rows, summary, comparison = finding.records, finding.summary, finding.comparison
    ids = tuple(run.run.run_id for run in rows.finished.values())
    cells = [
        Cell(finding.method, rows.run_ids, strong=finding.word is None),
        Cell(short(finding.ratio)),
        Cell(short(rows.row.learning_rate)),
        Cell(share(len(ids), finding.planned), rows.run_ids),
        Cell(percent(summary.mean if summary else None), ids),
        Cell(percent(summary.standard_deviation if summary else None), ids),
        Cell(interval(summary.low, summary.high) if summary else NONE, ids),
    ]
    for seed in seeds:
        run = rows.runs.get(seed)
        text = percent(rows.accuracy.get(seed)) if seed not in rows.diverged else "diverged"
        cells.append(Cell(text, (run.run.run_id,) if run else ()))
    cells += [
        Cell(points(comparison.difference) if comparison else NONE, finding.pair_ids),
        Cell(points(comparison.lower) if comparison else NONE, finding.pair_ids),
        Cell(finding.said(), finding.pair_ids),
    ]
    return tuple(cells)


def _accuracy_found(study: Study) -> str:
    judged = [finding for finding in study.compared if finding.comparison]
    if not judged:
        return "No row can be compared with the baseline yet."
    worst = min(judged, key=lambda f: f.comparison.difference if f.comparison else 0.0)
    best = max(judged, key=lambda f: f.comparison.difference if f.comparison else 0.0)
    good = sum(finding.word == "non-inferior" for finding in judged)
    parts = [
        f"{f.method} at ratio {short(f.ratio)} ({points(f.comparison.difference if f.comparison else None)} points)"
        for f in (best, worst)
    ]
    return (
        f"{good} of {count_of(len(study.compared), 'compared row')} are non-inferior; the mean differences "
        f"to the baseline run from {parts[0]} to {parts[1]}."
    )


def bits_table(study: Study, number: int) -> Table:
    """Bits one worker sent per run: the formula, counted against expected, collectives, evaluation apart."""
    traffic = [(finding, traffic_of(finding.records)) for finding in study.findings]
    columns = (
        Column("method", "left"),
        Column("ratio"),
        Column("settings", "left"),
        Column("formula", "left"),
        Column("counted bits"),
        Column("expected bits"),
        Column("equal", "left"),
        Column("collectives", "left"),
        Column("counted ratio"),
        Column("evaluation bits"),
    )
    rows = tuple(_bits_row(finding, entry) for finding, entry in traffic)
    have = [entry for _, entry in traffic if entry]
    equal = sum(entry.equal for entry in have)
    found = f"Counted and expected bits agree to the bit in {equal} of {count_of(len(have), 'row')} with finished runs."
    notes = (
        "Payload bits that one worker sent per run to train (gradient, error and model together), of finished runs. "
        "Expected: what the closed form and the plan say. What evaluation sent is no part of the ratio."
        " Formula: bits per step, in the symbols of the method's module.",
    )
    return Table("Bits", found if have else "No finished run yet.", columns, rows, number, wide=True, notes=notes)


def _bits_row(finding: Finding, traffic: RowTraffic | None) -> tuple[Cell, ...]:
    row = finding.records.row
    head = (Cell(finding.method), Cell(short(finding.ratio)), Cell(row.settings), Cell(row.formula))
    if traffic is None:
        return (*head, Cell(NONE), Cell(whole(row.expected_bits)), *(Cell(NONE) for _ in range(4)))
    ids = traffic.run_ids
    collectives = listed([f"{_span(counts)} {purpose}" for purpose, counts in traffic.collectives.items()])
    ratios = sorted({f"{ratio:.6g}" for ratio in traffic.ratios})
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


def equal_bits_table(study: Study, number: int) -> Table:
    """At each ratio all rows by their mean; rows alone at their ratio follow every time, as they send fewer bits."""
    columns = (
        Column("ratio"),
        Column("place"),
        Column("method", "left"),
        Column("bits per worker and run"),
        Column("n"),
        Column("mean"),
        Column("difference"),
        Column("word", "left"),
    )
    rows: list[tuple[Cell, ...]] = []
    for group in study.groups:
        rows += [_equal_row(f"{group.ratio:g}", str(i), f) for i, f in enumerate(group.ordered(), start=1)]
    rows += [_equal_row(short(finding.ratio), NONE, finding) for finding in study.others if finding.summary]
    notes = ("Rows of one ratio send the same number of bits up to the rounding of blocks; sorted by mean accuracy.",)
    return Table("Equal bits", _equal_found(study), columns, tuple(rows), number, notes=notes)


def _equal_row(ratio: str, place: str, finding: Finding) -> tuple[Cell, ...]:
    ids = tuple(run.run.run_id for run in finding.records.finished.values())
    return (
        Cell(ratio),
        Cell(place),
        Cell(finding.method),
        Cell(whole(finding.records.row.expected_bits)),
        Cell(share(len(ids), finding.planned), ids),
        Cell(percent(finding.summary.mean if finding.summary else None), ids),
        Cell(points(finding.comparison.difference) if finding.comparison else NONE, finding.pair_ids),
        Cell(finding.said(), finding.pair_ids),
    )


def _equal_found(study: Study) -> str:
    parts = [text for text in (_group_found(group) for group in study.groups) if text]
    for finding in study.others:
        if finding.summary:
            parts.append(f"{finding.method} at ratio {short(finding.ratio)} reaches {percent(finding.summary.mean)} %")
    return "; ".join(parts) + "." if parts else "No finished run yet."


def _group_found(group: RatioGroup) -> str:
    ordered = group.ordered()
    if not ordered:
        return ""
    best = ordered[0]
    text = f"at ratio {group.ratio:g} {best.method} has the best mean ({percent(_mean(best))} %)"
    plain = next((f for f in ordered if f.method.lower().replace("-", " ").startswith("local sgd")), None)
    if plain is None or plain is best:
        return text
    behind = points(_mean(best) - _mean(plain)).lstrip("+")
    return f"{text} and {plain.method} is {ordered.index(plain) + 1} of {len(ordered)}, {behind} points behind"


def _mean(finding: Finding) -> float:
    return finding.summary.mean if finding.summary else float("nan")


def tuning_table(tuned: Sequence[Tuned], number: int) -> Table:
    """What choosing the rate took per row, and what fewer tries would have found. Accuracies in percent."""
    most = min(_MOST_TRIES, max(len(entry.points) for entry in tuned))
    columns = (
        Column("method", "left"),
        Column("ratio"),
        Column("runs"),
        Column("diverged"),
        Column("selected"),
        Column("by training loss"),
        *(Column(f"best of {count}") for count in range(1, most + 1)),
    )
    rows = tuple(_tuning_row(entry, most) for entry in tuned)
    same = sum(entry.selected == entry.by_training_loss for entry in tuned if entry.by_training_loss is not None)
    known = sum(entry.by_training_loss is not None for entry in tuned)
    runs = sum(point.planned for entry in tuned for point in entry.points)
    found = (
        f"Tuning took {count_of(runs, 'run')}; the rate with the least training loss is the selected one in {same} of "
        f"{count_of(known, 'row')}."
    )
    notes = (
        "By training loss: the rate that the least mean training loss would have chosen. Best of k: held-out accuracy "
        "in percent, the median over all choices of k of the rates tried of the best one among them; a rate with a "
        "diverged run ranks below every number and shows as diverged.",
    )
    return Table("What tuning took", found, columns, rows, number, notes=notes)


def _tuning_row(tuned: Tuned, most: int) -> tuple[Cell, ...]:
    ids = tuple(run_id for point in tuned.points for run_id in point.run_ids)
    scored = [point for point in tuned.points if point.scores or point.diverged]
    best = [_best_of(scored, count, ids) for count in range(1, most + 1)]
    done = sum(len(point.scores) + point.diverged for point in tuned.points)
    return (
        Cell(tuned.method),
        Cell(short(tuned.ratio)),
        Cell(share(done, sum(point.planned for point in tuned.points)), ids),
        Cell(str(sum(point.diverged for point in tuned.points)), ids),
        Cell(short(tuned.selected), ids),
        Cell(short(tuned.by_training_loss), ids),
        *best,
    )


def _best_of(points_: Sequence[GridPoint], count: int, ids: tuple[str, ...]) -> Cell:
    if count > len(points_):
        return Cell(NONE)
    score = median_best_of([point.score for point in points_], count)
    return Cell("diverged" if score is None else percent(score), ids)
