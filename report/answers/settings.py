"""Answers on settings: by which rule they are chosen, what that costs, which learning rates, and momentum."""

from __future__ import annotations

import math
from statistics import median

from report.accuracy.findings import Finding, Study
from report.accuracy.records import best_training_loss
from report.accuracy.tuning import GridPoint, Tuned
from report.answers.answer import Answer, Number, apart, known, nothing, number_cells, regime_of, search_regime, table
from report.answers.evidence import LONG, Evidence, finding, progress, some_missing
from report.kit.document import Cell, Table
from report.kit.statistics import mean_of, median_best_of, rank_correlation, summarise
from report.kit.wording import amount, count_of, percent, points, ratio_name, short

NEAR = 0.002
"""A choice is as good as the best where its held-out accuracy is no further behind."""

MOMENTUM = "study_momentum"
_HOUR = 3600.0
_FLATTERED = (
    "At the one seed that all trials have; the best held out is the best of many, so the cost is flattered upwards."
)


def is_least_loss_best(evidence: Evidence) -> Answer:
    """Question 13: what choosing by training loss would have cost on held-out samples, and how the two go together."""
    study, tuned, search = evidence.study(LONG), evidence.tuned(LONG), evidence.search(LONG)
    costs = {t.row: cost for t in tuned if (cost := _cost_of_loss(t)) is not None}
    if study is None or search is None or not costs:
        return nothing("No search for settings is at hand.")
    other = [cost for cost in costs.values() if cost > 0]
    summary = summarise(list(costs.values()))
    assert summary
    worst = max(costs, key=lambda row: costs[row])
    rho = _correlation(study)
    numbers = known(
        Number("accuracy lost by the other rule, mean", summary.mean, summary.low, summary.high, summary.n),
        Number("rows that choose otherwise", len(other)),
        Number(f"accuracy lost by the other rule, {worst}", costs[worst]),
        None if rho is None else Number("rank correlation", rho),
    )
    head = "Not always" if other else "Here it is"
    first = (
        f"{head}: for {len(other)} of {count_of(summary.n, 'row')} the least training loss picks settings or a rate "
        "that are "
        f"worse on held-out samples, by {points(summary.mean).lstrip('+')} points in the mean over all rows (95 %: "
        f"{points(summary.low)} to {points(summary.high)}) and by {points(costs[worst]).lstrip('+')} at most ({worst})."
    )
    second = (
        f"Over the rows of the experiment the rank correlation of least training loss with test accuracy is {rho:.2f}; "
        "-1 would be that the one tells the other.".replace("-", "−")
        if rho is not None
        else ""
    )
    shown = sorted(costs, key=lambda row: -costs[row])[:10]
    exhibit = _rules_table([t for row in shown for t in tuned if t.row == row], costs)
    return Answer(tuple(filter(None, (first, second))), search_regime(search), exhibit, numbers)


def _screened(point: GridPoint) -> float | None:
    """The held-out accuracy at the seed at which all trials were tried; None where it diverged."""
    return None if point.diverged or not point.scores else point.scores[min(point.scores)]


def _screened_loss(point: GridPoint) -> float:
    return point.losses[min(point.losses)] if point.losses and not point.diverged else math.inf


def _cost_of_loss(tuned: Tuned) -> float | None:
    """Best held-out accuracy less that of the least training loss, both of the one seed that all trials have."""
    scored = [(score, point) for point in tuned.points if (score := _screened(point)) is not None]
    if not scored:
        return None
    by_loss = min(tuned.points, key=lambda point: (_screened_loss(point), point.learning_rate))
    chosen = _screened(by_loss)
    return None if chosen is None else max(score for score, _ in scored) - chosen


def _correlation(study: Study) -> float | None:
    """Spearman's, over the means of the compared rows."""
    pairs = []
    for f in study.compared:
        losses = [loss for run in f.records.finished.values() if (loss := best_training_loss(run)) is not None]
        if losses and f.summary:
            pairs.append((mean_of(losses), f.summary.mean))
    return rank_correlation([loss for loss, _ in pairs], [accuracy for _, accuracy in pairs])


def _rules_table(tuned: list[Tuned], costs: dict[str, float]) -> Table:
    rows = []
    for t in tuned:
        scored = [p for p in t.points if _screened(p) is not None]
        best = max(scored, key=lambda p: (_screened(p) or 0.0, -p.learning_rate))
        other = min(t.points, key=lambda p: (_screened_loss(p), p.learning_rate))
        texts = (
            short(best.learning_rate),
            percent(_screened(best)),
            short(other.learning_rate),
            percent(_screened(other)),
        )
        rows.append(
            (Cell(t.row), *(Cell(text, best.run_ids + other.run_ids) for text in texts), Cell(points(costs[t.row])))
        )
    heads = ("row", "rate, best held out", "held out, %", "rate, least loss", "held out, %", "cost, points")
    return table(
        "Two rules of choice", "The ten rows that the other rule costs most.", heads, rows, "At one tuning seed."
    )


def what_tuning_costs(evidence: Evidence) -> Answer:
    """Question 14: trials until within 0.2 points of the best, by all choices of so many, and hours of search."""
    tuned, search = evidence.tuned(LONG), evidence.search(LONG)
    needed = {t.row: count for t in tuned if (count := _trials_needed(t)) is not None}
    if search is None or not needed:
        return nothing("No search for settings is at hand.")
    runs = [run for rows in search.rows for run in rows.runs.values() if run and run.result]
    walls = {run.run.run_id: run.result.wall_seconds for run in runs if run.result}  # Rows can share a run.
    hours = sum(walls.values()) / _HOUR
    trials = sum(len(t.points) for t in tuned)
    most = max(needed, key=lambda row: needed[row])
    middle = round(median(needed.values()))
    said = (
        f"To be within {points(NEAR).lstrip('+')} points of the best that was tried takes {count_of(middle, 'trial')} "
        "in the "
        f"median row, drawn at random among those tried, and {needed[most]} at most ({most}).",
        f"The search for all {count_of(len(tuned), 'row')} tried {trials:,} pairs of settings and rate and took "
        f"{hours:.1f} hours of one core.",
    )
    numbers = (
        Number("trials needed, median", float(median(needed.values())), count=len(needed)),
        *(Number(f"trials needed, {row}", count) for row, count in needed.items()),
        Number("trials", trials),
        Number("hours", hours),
    )
    return Answer(said, search_regime(search), _cost_table(tuned, needed, walls), numbers)


def _trials_needed(tuned: Tuned) -> int | None:
    """The fewest trials of which the best is, in the median choice, near the best of all."""
    scores = [_screened(point) for point in tuned.points]
    finished = [score for score in scores if score is not None]
    if not finished:
        return None
    near = max(finished) - NEAR
    best_of = {count: median_best_of(scores, count) for count in range(1, len(scores) + 1)}
    return next(count for count, score in best_of.items() if score is not None and score >= near)


def _cost_table(tuned: tuple[Tuned, ...], needed: dict[str, int], walls: dict[str, float]) -> Table:
    groups: dict[str, list[Tuned]] = {}
    for t in tuned:
        groups.setdefault(t.method, []).append(t)
    rows = []
    for method, entries in groups.items():
        counts = [needed[t.row] for t in entries if t.row in needed]
        ids = {run for t in entries for point in t.points for run in point.run_ids}
        cells = (
            str(len(entries)),
            str(sum(len(t.points) for t in entries)),
            f"{min(counts)} to {max(counts)}" if counts else "–",
            f"{sum(walls[run] for run in ids) / _HOUR:.2f}",
        )
        rows.append((Cell(method), *(Cell(text) for text in cells)))
    heads = ("method", "rows", "trials", "trials needed", "core hours")
    return table("What tuning costs", "By method, over all its ratios.", heads, rows)


def which_learning_rate(evidence: Evidence) -> Answer:
    """Question 20: what was chosen, how far from SGD's, and where runs diverged."""
    tuned, search = evidence.tuned(LONG), evidence.search(LONG)
    chosen = {t.row: t.selected for t in tuned if t.selected is not None}
    if search is None or "sgd" not in chosen:
        return nothing("No search for learning rates is at hand.")
    trials = [point for t in tuned for point in t.points]
    diverged = [point for point in trials if point.diverged]
    low, high = min(chosen, key=lambda r: chosen[r]), max(chosen, key=lambda r: chosen[r])
    lower = sum(rate < chosen["sgd"] for rate in chosen.values())
    said = (
        f"SGD's best rate is {short(chosen['sgd'])}, and {lower} of the other {len(chosen) - 1} rows are best at a "
        f"lower one; all are from {short(chosen[low])} ({low}) to {short(chosen[high])} ({high}).",
        f"Of {len(trials):,} trials {len(diverged)} diverged"
        + (f", none at a rate below {short(min(p.learning_rate for p in diverged))}." if diverged else "."),
    )
    numbers = (
        *(Number(f"rate, {row}", rate) for row, rate in chosen.items()),
        Number("trials", len(trials)),
        Number("diverged", len(diverged)),
        Number("rows best at a lower rate than SGD's", lower),
    )
    return Answer(said, search_regime(search), _rates_table(tuned), numbers)


def _rates_table(tuned: tuple[Tuned, ...]) -> Table:
    ratios = sorted({t.ratio for t in tuned if math.isfinite(t.ratio) and 1 < t.ratio < 10_000})
    methods: dict[str, dict[float, Tuned]] = {}
    for t in tuned:
        methods.setdefault(t.method, {})[t.ratio] = t
    rows = []
    for method, by_ratio in methods.items():
        cells = [Cell(short(by_ratio[r].selected) if r in by_ratio else "–") for r in ratios]
        only = next(iter(by_ratio.values()))
        cells = cells if set(by_ratio) & set(ratios) else [Cell(short(only.selected)), *(Cell("") for _ in ratios[1:])]
        rates = [p.learning_rate for t in by_ratio.values() for p in t.points if p.diverged]
        rows.append((Cell(method), *cells, Cell(short(min(rates)) if rates else "none")))
    heads = ("method", *(f"rate at ratio {ratio_name(r)}" for r in ratios), "least that diverged")
    return table("Learning rates", "Chosen on held-out samples.", heads, rows, "A row without a ratio has one rate.")


def does_momentum_help(evidence: Evidence) -> Answer:
    """Question 21: M-CSER over momenta, or M-CSER less CSER at each ratio."""
    study = evidence.study(MOMENTUM)
    base = finding(study, "cser-m0")
    rows = [f for f in study.compared if f.records.row.algorithm == "mcser"] if study else []
    lines: list[tuple[str, Finding, Finding | None]] = [(f.method, f, base) for f in rows if base]
    missing = ""
    if study is None or not any(apart("", f, base) for _, f, base in lines):
        study, missing = evidence.study(LONG), "The sweep over momenta was not run yet."
        lines = _at_each_ratio(study)
    numbers = {name: n for name, f, base in lines if (n := apart(f"{name} − CSER", f, base))}
    if study is None or not numbers:
        return nothing("No experiment has runs of both CSER and M-CSER yet.")
    told = {word: [name for name, n in numbers.items() if n.told == word] for word in ("better", "worse")}
    parts = [f"{name} {n.points()}" for name, n in numbers.items()]
    said = (
        f"M-CSER less CSER at equal bits: {'; '.join(parts)}{progress(study)}.",
        f"Each judged alone at 95 %, momentum is shown to help in {len(told['better'])} of {len(numbers)} and to harm "
        f"in {len(told['worse'])}.",
    )
    table_rows = [
        (Cell(name), Cell(amount(f.models)), *number_cells(numbers.get(name), f, base)) for name, f, base in lines
    ]
    heads = ("M-CSER", "models sent", "difference to CSER, points", "95 % interval")
    return Answer(
        said,
        regime_of(study),
        table("Momentum", "", heads, table_rows),
        tuple(numbers.values()),
        missing or some_missing(study),
    )


def _at_each_ratio(study: Study | None) -> list[tuple[str, Finding, Finding | None]]:
    """The rows of the long experiment with the same settings but for momentum."""
    lines: list[tuple[str, Finding, Finding | None]] = []
    for group in study.groups if study else ():
        named = {f.records.row.row: f for f in group.findings}
        for name, f in named.items():
            plain = named.get(name.replace("mcser-", "cser-"))
            if name.startswith("mcser-") and plain:
                lines.append((f"at ratio {ratio_name(group.ratio)}", f, plain))
    return lines
