"""Figure: accuracy against the bits that one worker sends, for records that do not hold models sent."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from report.accuracy.figure_models import level
from report.accuracy.findings import Finding, Study
from report.kit.looks import BASELINE, looks_of
from report.kit.plotting import accuracy_scale, end_labels, panels, plain_log_ticks, save, settle
from report.kit.wording import listed, points, short


def draw_accuracy_against_bits(study: Study, path: Path) -> bool:
    """A line per method over its ratios, an interval bar per row, a faint dot per seed; False where no run is done."""
    drawn = [finding for finding in study.compared if finding.summary]
    if not drawn:
        return False
    looks = looks_of(study.methods)
    figure, [[axes]] = panels(1, 1, 3.9)
    axes.set_xscale("log")
    values, labels = _baseline_band(study, axes), []
    for method in study.methods:
        rows = sorted((f for f in drawn if f.method == method), key=lambda f: f.records.row.expected_bits)
        if not rows:
            continue
        xs = [f.records.row.expected_bits / 1e6 for f in rows]
        ys = [100 * f.summary.mean for f in rows if f.summary]
        look = looks[method]
        axes.plot(xs, ys, color=look.colour, dashes=look.dashes, marker=look.marker, zorder=3)
        for x, finding in zip(xs, rows, strict=True):
            values += _spread_of(axes, x, finding, look.colour)
        labels.append((xs[-1], ys[-1], method, look.colour))
    accuracy_scale(axes, values)
    most = max(f.records.row.expected_bits for f in drawn) / 1e6
    least = min(f.records.row.expected_bits for f in drawn) / 1e6
    axes.set_xlim(least / 1.6, most * (most / least * 4) ** 0.28)
    plain_log_ticks(axes.xaxis, most=12)
    axes.set_xlabel("megabits sent by one worker in a run (log scale)")
    axes.set_ylabel(f"test {study.records.metric.score_label}, percent")
    settle(figure)
    end_labels(axes, labels, room=0.17)
    save(figure, path)
    return True


def _baseline_band(study: Study, axes: Axes) -> list[float]:
    baseline = study.baseline
    if baseline is None or baseline.summary is None:
        return []
    return level(axes, baseline.summary, f"{baseline.method}, ratio {short(baseline.ratio)}", BASELINE, 0.13, BASELINE)


def _spread_of(axes: Axes, x: float, finding: Finding, colour: str) -> list[float]:
    seeds = [100 * value for value in finding.records.accuracy.values()]
    axes.plot([x] * len(seeds), seeds, linestyle="none", marker=".", markersize=3, color=colour, alpha=0.35, zorder=2)
    summary = finding.summary
    if summary is None or summary.low is None or summary.high is None:
        return seeds
    axes.plot([x, x], [100 * summary.low, 100 * summary.high], color=colour, linewidth=0.9, alpha=0.8, zorder=2)
    return [*seeds, max(100 * summary.low, 0.0), 100 * summary.high]


def found_accuracy_against_bits(study: Study) -> str:
    """What the figure shows, from the means."""
    changes = []
    for method in study.methods:
        rows = [f for f in study.compared if f.method == method and f.summary]
        rows.sort(key=lambda f: f.ratio)
        if len(rows) > 1 and rows[0].summary and rows[-1].summary:
            changes.append((rows[-1].summary.mean - rows[0].summary.mean, method, rows[0].ratio, rows[-1].ratio))
    if not changes:
        return "No method has runs at two ratios yet."
    changes.sort()
    (worst, bad, low, high), (best, good, *_) = changes[0], changes[-1]
    text = f"From ratio {short(low)} to {short(high)} the mean accuracy of {bad} changes by {points(worst)} points"
    return f"{text}, the most of all, and that of {listed([good])} by {points(best)}."
