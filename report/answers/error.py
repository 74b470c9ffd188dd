"""The answer on the error: whether it is ever zero, and how it goes over a run."""

from __future__ import annotations

from statistics import median

from report.accuracy.findings import Finding, Study
from report.answers.answer import Answer, Number, Picture, nothing, regime_of, share
from report.answers.evidence import LONG, SPLITS, Evidence, progress
from report.answers.figures import Line, Panel, draw_lines
from report.kit.statistics import mean_of
from report.kit.wording import count_of, listed, short, whole

FAMILY = ("cser", "mcser", "csea", "cser_pl")

SHOWN = {
    "mcser-c1_zero": ("C1 = 0", "alone"),
    "mcser-h1-r1_192-r2_192": ("H = 1, R1 = 192", "CSEA"),
    "mcser-h16-r1_12-r2_192": ("H = 16, R1 = 12", "M-CSER"),
    "mcser-h192-r1_1-r2_192": ("H = 192, R1 = 1", "CSER-PL"),
}
"""M-CSER without a reset, and with R2 = 192 by resets from the smallest to whole ones: names, and looks."""


def is_the_error_ever_zero(evidence: Evidence) -> Answer:
    """Question 16: the workers' distance over a run; x_i - e_i is alike on all workers, so it is the error's spread."""
    study = evidence.study(SPLITS) or evidence.study(LONG)
    group = study.main_group.findings if study and study.main_group else ()
    rows = [f for f in group if f.records.row.algorithm in FAMILY and _distances(f)]
    if study is None or not rows:
        return nothing("No run has recorded the distance between workers yet.")
    zero = [f for f in rows if min(_distances(f)) == 0]
    middle = {f.records.row.row: mean_of(_distances(f)) for f in rows}
    low, high = min(rows, key=lambda f: middle[f.records.row.row]), max(rows, key=lambda f: middle[f.records.row.row])
    falls = {f.records.row.row: _last(f) / max(_distances(f)) for f in rows}
    most = max(rows, key=lambda f: falls[f.records.row.row])
    seen = f"it was exactly zero at a score in {len(zero)}" if zero else "it was exactly zero at no score"
    said = (
        f"{'It is only averaged' if not zero else 'It can be zero'}: of {count_of(len(rows), 'row')} of the family "
        f"{seen}{progress(study)}, and its mean over a run goes from {short(middle[low.records.row.row], 3)} "
        f"({low.method}) to {short(middle[high.records.row.row], 3)} ({high.method}).",
        f"It falls with the learning rate: at the last score, at a rate near zero, it is "
        f"{share(median(falls.values()))} of its largest in the median row, and {share(falls[most.records.row.row])} "
        f"at most ({most.method}).",
    )
    numbers = (
        Number("rows with a zero error", len(zero)),
        Number("rows", len(rows)),
        *(Number(f"mean distance, {name}", value) for name, value in middle.items()),
        Number("last over largest, median", median(falls.values())),
    )
    exhibit = _over_time(study, rows)
    return Answer(said, regime_of(study), exhibit, numbers)


def _over_time(study: Study, rows: list[Finding]) -> Picture:
    """The mean over the seeds, at every score."""
    named = {f.records.row.row: f for f in rows}
    shown = [(*SHOWN[row], named[row]) for row in SHOWN if row in named] or [(f.method, f.method, f) for f in rows[:4]]
    lines = tuple(_curve(*line) for line in shown)
    last = max((line.x[-1] for line in lines), default=0.0)
    ticks = tuple((last * part / 4, whole(round(last * part / 4))) for part in range(5))
    panel = Panel("step", "distance from the mean", lines, ticks, levels=((0.0, ""),), room=0.2, names_left=True)
    rates = sorted({f.records.row.learning_rate for _, _, f in shown})
    found = f"M-CSER at a learning rate of {listed([short(rate) for rate in rates])} that falls to zero by a cosine."
    note = "Root of the mean over workers of the squared distance to their mean, the mean over seeds at every score."
    return Picture("The error over a run", found, lambda path: draw_lines((panel,), path), (note,))


def _curve(name: str, look: str, found: Finding) -> Line:
    by_step: dict[int, list[float]] = {}
    for run in found.records.finished.values():
        for event in run.events:
            by_step.setdefault(event.step, []).append(event.worker_distance)
    return Line(name, look, tuple(map(float, by_step)), tuple(mean_of(values) for values in by_step.values()))


def _distances(found: Finding) -> list[float]:
    """At the scores of all runs of a row, but for a first one before any step, where all workers begin alike."""
    events = [event for run in found.records.finished.values() for event in run.events if event.step]
    return [event.worker_distance for event in events if event.worker_distance is not None]


def _last(found: Finding) -> float:
    return mean_of([run.events[-1].worker_distance for run in found.records.finished.values() if run.events])
