"""Answers on settings: by which rule they are chosen, what that costs, which learning rates, and momentum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from report.accuracy.findings import Finding, Study
from report.accuracy.records import best_training_loss
from report.accuracy.tuning import GridPoint, Tuned
from report.answers.answer import Answer, Number, Picture, apart, known, nothing, regime_of, search_regime, table
from report.answers.evidence import LONG, Evidence, finding, progress, some_missing
from report.answers.figure_settings import BEST_OF, MEDIAN, best_of_line, draw_best_of, draw_momenta, draw_rates
from report.answers.figures import Line
from report.kit.document import Cell, Table
from report.kit.statistics import mean_of, median_best_of, rank_correlation, summarise
from report.kit.wording import amount, count_of, listed, percent, points, ratio_name, short

NEAR = 0.002
"""A choice is as good as the best where its held-out accuracy is no further behind."""

MOMENTUM = "study_momentum"
_HOUR = 3600.0


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
    curves = _best_of_curves(tuned)
    numbers = (
        *(
            Number(f"behind after {k:g}, {row}", y)
            for row, line in curves.items()
            for k, y in zip(line.x, line.y, strict=True)
        ),
        Number("trials needed, median", float(median(needed.values())), count=len(needed)),
        *(Number(f"trials needed, {row}", count) for row, count in needed.items()),
        Number("trials", trials),
        Number("hours", hours),
    )
    near = 100 * NEAR
    exhibit = Picture(
        "The best of k trials against k",
        f"By the median over all choices of k; {count_of(middle, 'trial')} of the median row are near the best.",
        lambda path: draw_best_of(tuple(curves.values()), near, path),
    )
    return Answer(said, search_regime(search), exhibit, numbers)


def _best_of_curves(tuned: Sequence[Tuned]) -> dict[str, Line]:
    """By row, of some rows and of the median one: points behind the best after 1, 2 and so on trials."""
    behind = {t.row: curve for t in tuned if (curve := _behind(t))}
    most = min(map(len, behind.values()), default=0)
    known = [[far for curve in behind.values() if (far := curve[k]) is not None] for k in range(most)]
    curves = {"median": best_of_line(f"median of {len(behind)} rows", MEDIAN, [median(each) for each in known])}
    names = {t.row: t.method for t in tuned}
    for row in (row for row in BEST_OF if row in behind):
        curves[row] = best_of_line(names[row], names[row], behind[row][:most])
    return curves


def _behind(tuned: Tuned) -> list[float | None]:
    """How far the best of 1, 2 and so on trials is, in the median choice, behind the best of all, in points.

    None where that one diverged; empty where no trial is finished.
    """
    scores = [_screened(point) for point in tuned.points]
    best = max((score for score in scores if score is not None), default=None)
    if best is None:
        return []
    reached = [median_best_of(scores, count) for count in range(1, len(scores) + 1)]
    return [None if score is None else 100 * (best - score) for score in reached]


def _trials_needed(tuned: Tuned) -> int | None:
    """The fewest trials of which the best is, in the median choice, near the best of all."""
    behind = _behind(tuned)
    near = 100 * NEAR + 1e-9  # What is just so far behind is near.
    return next((count for count, far in enumerate(behind, 1) if far is not None and far <= near), None)


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
    exhibit = Picture(
        "Held-out accuracy over the learning rate",
        "Each row at the best of its settings, at one tuning seed; a cross: all diverged.",
        lambda path: draw_rates(tuned, path),
    )
    return Answer(said, search_regime(search), exhibit, numbers)


def does_momentum_help(evidence: Evidence) -> Answer:
    """Question 21: M-CSER over momenta at one ratio, and M-CSER less CSER at each ratio of the long experiment."""
    study, long = evidence.study(MOMENTUM), evidence.study(LONG)
    base = finding(study, "cser-m0")
    rows = [f for f in study.compared if f.records.row.algorithm == "mcser"] if study else []
    swept = {f.method: n for f in rows if (n := apart(f"{f.method} − CSER", f, base))}
    ratios = {name: n for name, f, plain in _at_each_ratio(long) if (n := apart(f"{name} − CSER", f, plain))}
    if not swept and not ratios:
        return nothing("No experiment has runs of both CSER and M-CSER yet.")
    said = []
    if study and swept:
        parts = [f"{n.points()} with {name.removeprefix('M-CSER, ')}" for name, n in swept.items()]
        said.append(f"At {amount(rows[0].models)} models sent M-CSER less CSER is {listed(parts)}{progress(study)}.")
    if long and ratios:
        told = [n.told for n in ratios.values()]
        parts = [f"{points(n.value)} {name}" for name, n in ratios.items()]
        said.append(
            f"In {long.records.experiment.name}, each at a rate of its own, it is {listed(parts)}{progress(long)}: "
            f"shown to help in {told.count('better')} of {len(told)} and to harm in {told.count('worse')}."
        )
    missing = some_missing(study) if study and swept else "The sweep over momenta was not run yet."
    shown = study if study and swept else long
    assert shown
    numbers = (*swept.values(), *ratios.values())
    models = rows[0].models if swept else None
    return Answer(tuple(said), regime_of(shown, models), _momenta(study, rows, base), numbers, missing)


def _momenta(study: Study | None, rows: list[Finding], base: Finding | None) -> Picture | None:
    if study is None or base is None:
        return None
    swept = [(0.0, base), *((float(f.records.row.row.rpartition("-m")[2]), f) for f in rows)]
    note = "; ".join(f"{f.method}: learning rate {short(f.records.row.learning_rate)}" for _, f in swept)
    found = "Means, each dot a seed, each momentum at a learning rate of its own."
    return Picture("Accuracy over momentum", found, lambda path: draw_momenta(swept, study.baseline, path), (note,))


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
