"""Figure: best training loss against test accuracy, one dot per run."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from report.accuracy.findings import Finding, Study
from report.accuracy.records import best_training_loss
from report.kit.looks import look_of
from report.kit.plotting import accuracy_scale, legend, panels, save
from report.kit.statistics import mean_of, rank_correlation
from report.kit.wording import count_of, short


def _dots(finding: Finding) -> list[tuple[float, float]]:
    """Best training loss and accuracy in percent of every finished run."""
    pairs = [(best_training_loss(run), finding.records.accuracy[s]) for s, run in finding.records.finished.items()]
    return [(loss, 100 * accuracy) for loss, accuracy in pairs if loss is not None]


def draw_loss_against_accuracy(study: Study, path: Path) -> bool:
    """A faint dot per run, a marker per row's means; False where no run is done."""
    drawn = [(finding, dots) for finding in study.findings if (dots := _dots(finding))]
    if not drawn:
        return False
    figure, [[axes]] = panels(1, 1, 3.2)
    axes.set_xscale("log")
    for finding, dots in drawn:
        look = look_of(finding.method)
        xs, ys = [x for x, _ in dots], [y for _, y in dots]
        axes.plot(xs, ys, linestyle="none", marker=".", markersize=3, color=look.colour, alpha=0.35)
        axes.plot([mean_of(xs)], [mean_of(ys)], marker=look.marker, color=look.colour, markersize=4.5)
    accuracy_scale(axes, [y for _, dots in drawn for _, y in dots])
    losses = [x for _, dots in drawn for x, _ in dots]
    axes.set_xlim(min(losses) / 1.03, max(losses) * 1.03)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("best training loss of a run (log scale)")
    axes.set_ylabel(f"test {study.records.metric.score_label}, percent")
    legend(figure, list(dict.fromkeys(finding.method for finding, _ in drawn)))
    save(figure, path)
    return True


def found_loss_against_accuracy(study: Study) -> str:
    """The rank correlation over rows and over runs, and whether the best row is the same under both."""
    rows = []
    runs: list[tuple[float, float]] = []
    for finding in study.findings:
        dots = _dots(finding)
        runs += dots
        if dots:
            rows.append((mean_of([x for x, _ in dots]), mean_of([y for _, y in dots]), finding))
    over_rows = rank_correlation([x for x, _, _ in rows], [y for _, y, _ in rows])
    over_runs = rank_correlation([x for x, _ in runs], [y for _, y in runs])
    if over_rows is None:
        return "Too few finished runs for a rank correlation."
    least = min(rows, key=lambda row: row[0])[2]
    best = max(rows, key=lambda row: row[1])[2]
    text = (
        f"Spearman's rank correlation of best training loss and test accuracy is {short(over_rows, 2)} over "
        f"{count_of(len(rows), 'row mean')} and {short(over_runs, 2)} over {count_of(len(runs), 'run')}; "
    )
    if least is best:
        return f"{text}{best.method} at ratio {short(best.ratio)} has both the least loss and the best accuracy."
    return (
        f"{text}the least loss is that of {least.method} at ratio {short(least.ratio)}, the best accuracy that of "
        f"{best.method} at ratio {short(best.ratio)}."
    )
