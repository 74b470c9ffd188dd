"""Figure: accuracy against models sent, between the floor and the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from report.accuracy.figure_paper import draw_paper
from report.accuracy.findings import Finding, Study
from report.kit.looks import look_of
from report.kit.plotting import SIZE, accuracy_scale, decades, end_labels, save, settle, stacked
from report.kit.statistics import Summary
from report.kit.wording import amount, count_of, percent, points

_FAILING = 0.25
"""Rows so many gaps below the floor are listed in a band of their own, or they would take most of the height."""

_ROOM = 0.2


def draw_accuracy_against_models(study: Study, path: Path) -> bool:
    """A line per method over its ratios, an interval bar per row, a dot per seed; False where no run is done."""
    drawn = [finding for finding in _rows(study) if finding.summary]
    if not drawn:
        return False
    failing = [finding for finding in drawn if _fails(study, finding)]
    lost = list(dict.fromkeys(finding.method for finding in failing))
    figure, axes, band, strip = stacked(3.6, 0.17 * len(lost) + 0.06 * bool(lost), 0.42)
    values = [*_bound(axes, study.baseline, "sends everything", above=True)]
    values += _bound(axes, study.floor, "sends nothing", above=False)
    axes.set_xscale("log")
    labels, most = [], max(finding.models for finding in drawn)
    shown = [finding for finding in drawn if finding not in failing]
    for method in dict.fromkeys(finding.method for finding in drawn):
        rows = sorted((f for f in drawn if f.method == method and f not in failing), key=lambda f: f.models)
        if rows:
            values += _line(axes, method, rows)
            label = (rows[-1].models, _mean(rows[-1]), method, look_of(method).colour)
            if len(rows) > 1 or 2 * rows[-1].models > most or _is_crowded(rows[-1], shown):
                labels.append(label)
            else:
                _name_beside(axes, *label)
    accuracy_scale(axes, values)
    models = [finding.models for finding in drawn]
    low, high = min(models) / 1.5, max(models) * 1.15
    axes.set_xlim(low, low * (high / low) ** (1 / (1 - _ROOM)))
    if band:
        _failing_band(band, lost, failing)
    draw_paper(strip)
    decades(strip.xaxis)
    _megabits(axes, study)
    axes.set_ylabel(f"test {study.records.metric.score_label}, percent")
    strip.set_xlabel("models sent by one worker in a run (log scale)")
    settle(figure)
    end_labels(axes, labels, room=_ROOM)
    save(figure, path)
    return True


def _rows(study: Study) -> list[Finding]:
    """Those that send anything, but for the baseline."""
    return [finding for finding in study.compared if finding.models > 0]


def _mean(finding: Finding) -> float:
    """In percent."""
    return 100 * finding.summary.mean if finding.summary else 0.0


def _fails(study: Study, finding: Finding) -> bool:
    floor = study.floor
    if study.baseline is None or study.baseline.summary is None or floor is None or floor.summary is None:
        return False
    gap = _mean(study.baseline) - _mean(floor)
    return _mean(finding) < _mean(floor) - _FAILING * gap


def _bound(axes: Axes, bound: Finding | None, what: str, above: bool) -> list[float]:
    """The bound as a level with its name; returns what the y axis must hold."""
    if bound is None or bound.summary is None:
        return []
    text = f"{bound.method}, {what}: {percent(bound.summary.mean)} %"
    return level(axes, bound.summary, text, look_of(bound.method).colour, 0.18, "#444444", above)


def level(
    axes: Axes, summary: Summary, text: str, colour: str, opacity: float, text_colour: str, above: bool = True
) -> list[float]:
    """A line over the whole width with its interval as a band and a text; returns what the y axis must hold."""
    axes.axhline(100 * summary.mean, color=colour, linewidth=0.9, zorder=1)
    if summary.low is not None and summary.high is not None:
        axes.axhspan(100 * summary.low, 100 * summary.high, color=colour, alpha=opacity, linewidth=0, zorder=0)
    axes.annotate(
        text, (0.005, 100 * summary.mean), xycoords=("axes fraction", "data"), xytext=(0, 2 if above else -2),
        textcoords="offset points", fontsize=SIZE, color=text_colour, va="bottom" if above else "top",
    )  # fmt: skip
    return [100 * v for v in (summary.mean, summary.low, summary.high) if v is not None]


def _line(axes: Axes, method: str, rows: Sequence[Finding]) -> list[float]:
    look = look_of(method)
    xs, ys = [finding.models for finding in rows], [_mean(finding) for finding in rows]
    axes.plot(xs, ys, color=look.colour, dashes=look.dashes, marker=look.marker, zorder=3)
    values = list(ys)
    for x, finding in zip(xs, rows, strict=True):
        seeds = [100 * value for value in finding.records.accuracy.values()]
        axes.plot([x] * len(seeds), seeds, ".", markersize=2.5, color=look.colour, alpha=0.35, zorder=2)
        summary = finding.summary
        if summary and summary.low is not None and summary.high is not None:
            ends = [100 * summary.low, 100 * summary.high]
            axes.plot([x, x], ends, color=look.colour, linewidth=0.9, alpha=0.7, zorder=2)
            values += ends
    return values


def _is_crowded(finding: Finding, drawn: Sequence[Finding]) -> bool:
    """Whether others lie near to its right at about its height, where its name would be written over their lines."""
    means = [_mean(other) for other in drawn]
    close = 0.1 * (max(means) - min(means))
    right = (other for other in drawn if 1.2 < other.models / finding.models < 15)
    return any(abs(_mean(other) - _mean(finding)) < close for other in right)


def _name_beside(axes: Axes, x: float, y: float, name: str, colour: str) -> None:
    axes.annotate(name, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=SIZE, color=colour)


def _failing_band(band: Axes, methods: Sequence[str], failing: Sequence[Finding]) -> None:
    """A line per method, a mark at each row's models sent and its accuracy beside it."""
    for place, method in enumerate(methods):
        look = look_of(method)
        for finding in failing:
            if finding.method == method:
                band.plot([finding.models], [-place], marker=look.marker, color=look.colour)
                band.annotate(
                    f"{_mean(finding):.1f}", (finding.models, -place), xytext=(5, 0), textcoords="offset points",
                    va="center", fontsize=SIZE, color=look.colour, in_layout=False,
                )  # fmt: skip
    band.set_ylim(0.6 - len(methods), 0.6)
    band.set_yticks([-place for place in range(len(methods))], methods)
    for text, method in zip(band.get_yticklabels(), methods, strict=True):
        text.set_color(look_of(method).colour)
    band.tick_params(axis="y", length=0)
    band.grid(axis="y", visible=False)
    band.set_facecolor("#f5f5f5")


def _megabits(axes: Axes, study: Study) -> None:
    """A second axis, on top: the same in megabits."""
    one = 32 * study.findings[0].records.row.num_parameters / 1e6

    def megabits(models: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(models, dtype=np.float64) * one

    def models(megabits: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(megabits, dtype=np.float64) / one

    top = axes.secondary_xaxis("top", functions=(megabits, models))
    top.set_xlabel("megabits sent by one worker in a run (log scale)")
    decades(top.xaxis)


def found_accuracy_against_models(study: Study) -> str:
    """The fewest models with which a row is at most a margin below the ceiling in the mean, and the failing rows."""
    margin = study.records.experiment.margin
    rows = sorted((f for f in _rows(study) if f.summary and f.comparison), key=lambda f: f.models)
    if not rows or margin is None:
        return "No row can be compared with the ceiling yet."
    near = [f for f in rows if f.comparison and f.comparison.difference >= -margin]
    text = f"No row comes within {points(margin).lstrip('+')} points of the ceiling in the mean"
    if near:
        first = near[0]
        text = (
            f"{first.method} comes within {points(margin).lstrip('+')} points of the ceiling with the fewest models "
            f"sent, {amount(first.models)}"
        )
    failing = [f for f in rows if _fails(study, f)]
    rest = f"; {count_of(len(failing), 'row')} far below the floor in the grey band" if failing else ""
    return f"{text}{rest}."
