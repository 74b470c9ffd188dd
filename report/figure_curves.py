"""Figures over steps: accuracy and training loss; error norm and distance between workers. One column per ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from harness.store import Event
from report.curves import Curve, curve_of
from report.findings import Finding, RatioGroup, Study
from report.plotting import (
    BASELINE,
    accuracy_scale,
    end_labels,
    looks_of,
    panels,
    plain_log_ticks,
    save,
    settle,
    widen_right,
)
from report.wording import listed, percent, short

_ROUNDING = 1e-5
"""Workers that are nearer to their average than this differ by the rounding of the average alone."""

CUT = 100
"""Log axes end this factor from the median, or one run that blew up would press the others into a line."""

_ROOM = 0.42
_MOST_PANELS = 4


def _distance(event: Event) -> float | None:
    return event.worker_distance if event.worker_distance > _ROUNDING else None


@dataclass(frozen=True)
class _Quantity:
    name: str
    value: Callable[[Event], float | None]
    log: bool
    baseline: bool


_PROGRESS = (
    _Quantity("test accuracy, percent", lambda event: 100 * event.test_accuracy, log=False, baseline=True),
    _Quantity("training loss", lambda event: event.train_loss, log=True, baseline=True),
)
_DRIFT = (
    _Quantity("error norm", lambda event: event.error_norm, log=True, baseline=False),
    _Quantity("distance of a worker from the average", _distance, log=True, baseline=False),
)


def draw_progress(study: Study, path: Path) -> bool:
    """Test accuracy and training loss over steps; False where no run has an evaluation."""
    return _draw(study, _PROGRESS, path)


def draw_drift(study: Study, path: Path) -> bool:
    """Error norm and distance between workers over steps; False where no run has either."""
    return _draw(study, _DRIFT, path)


def shown_groups(study: Study) -> Sequence[RatioGroup]:
    """The ratios that have a panel: all, or of many the first, the last and some evenly between."""
    groups = study.groups
    if len(groups) <= _MOST_PANELS:
        return groups
    return [groups[round(i * (len(groups) - 1) / (_MOST_PANELS - 1))] for i in range(_MOST_PANELS)]


def panels_note(study: Study) -> str:
    """Says so where not every ratio has a panel, else empty."""
    shown = shown_groups(study)
    if len(shown) == len(study.groups):
        return ""
    return f"Of {len(study.groups)} ratios {len(shown)} are drawn; csv/curves.csv has all."


def _draw(study: Study, quantities: Sequence[_Quantity], path: Path) -> bool:
    groups = shown_groups(study)
    curves = {
        (row, column): _curves(study, group, quantity)
        for row, quantity in enumerate(quantities)
        for column, group in enumerate(groups)
    }
    if not any(curves.values()):
        return False
    rows = [row for row in range(len(quantities)) if any(curves[row, column] for column in range(len(groups)))]
    figure, grid = panels(len(rows), len(groups), 2.5)
    last = max(curve.steps[-1] for entries in curves.values() for _, _, curve in entries)
    for line, row in zip(grid, rows, strict=True):
        for column, axes in enumerate(line):
            _panel(axes, quantities[row], curves[row, column], last)
        _share_scale(line, quantities[row], [curves[row, column] for column in range(len(groups))])
    for axes, group in zip(grid[0], groups, strict=True):
        axes.set_title(f"ratio {group.ratio:g}", loc="left")
    for line, row in zip(grid, rows, strict=True):
        line[0].set_ylabel(quantities[row].name)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    settle(figure)
    for line, row in zip(grid, rows, strict=True):
        for column, axes in enumerate(line):
            ends = [(c.steps[-1], c.mean[-1], name, colour) for name, colour, c in curves[row, column]]
            end_labels(axes, ends[:12], room=_ROOM, size=5.4)
    save(figure, path)
    return True


def _curves(study: Study, group: RatioGroup, quantity: _Quantity) -> list[tuple[str, str, Curve]]:
    looks = looks_of(study.methods)
    entries: list[tuple[str, str, Finding]] = [(f.method, looks[f.method].colour, f) for f in group.findings]
    if quantity.baseline and study.baseline:
        entries.insert(0, (study.baseline.method, BASELINE, study.baseline))
    curves = [(name, colour, curve_of(f.records, quantity.value, positive=quantity.log)) for name, colour, f in entries]
    return [(name, colour, curve) for name, colour, curve in curves if curve]


def _panel(axes: Axes, quantity: _Quantity, curves: Sequence[tuple[str, str, Curve]], last: int) -> None:
    for _, colour, curve in curves:
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(curve.steps, curve.mean, color=colour, linewidth=0.9)
    if quantity.log:
        axes.set_yscale("log")
    axes.set_xlim(0, last)
    widen_right(axes, _ROOM, last)
    axes.set_xticks([0, last / 2, last])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _share_scale(line: Sequence[Axes], quantity: _Quantity, curves: Sequence[Sequence[tuple[str, str, Curve]]]) -> None:
    """One y scale for a row of panels, so that ratios compare by eye."""
    numbers = [v for entries in curves for _, _, curve in entries for v in (*curve.low, *curve.high)]
    for axes in line:
        if quantity.log:
            middle = sorted(numbers)[len(numbers) // 2]
            axes.set_ylim(max(min(numbers), middle / CUT) / 1.15, min(max(numbers), middle * CUT) * 1.15)
            plain_log_ticks(axes.yaxis, most=12)
        else:
            accuracy_scale(axes, numbers)


def found_progress(study: Study) -> str:
    """Who ends with the lowest training loss and the best accuracy at each ratio."""
    parts = []
    for group in shown_groups(study):
        loss = _last(_curves(study, group, _PROGRESS[1]))
        accuracy = _last(_curves(study, group, _PROGRESS[0]))
        if loss and accuracy:
            low, high = min(loss), max(accuracy)
            parts.append(
                f"at ratio {group.ratio:g} the lowest last training loss is that of {low[1]} ({short(low[0], 3)}) and "
                f"the best last accuracy that of {high[1]} ({percent(high[0] / 100)} %)"
            )
    return _sentence(parts)


def found_drift(study: Study) -> str:
    """How the error norm went, and whether it ever was zero."""
    parts = []
    for group in shown_groups(study):
        norms = _last(_curves(study, group, _DRIFT[0]))
        if norms:
            low, high = min(norms), max(norms)
            parts.append(
                f"at ratio {group.ratio:g} the last error norm is largest for {high[1]} ({short(high[0], 3)}) and "
                f"smallest for {low[1]} ({short(low[0], 3)})"
            )
    kept, zero = 0, 0
    for finding in study.compared:
        norms_seen = [e.error_norm for run in finding.records.runs.values() for e in (run.events if run else ())]
        known = [norm for norm in norms_seen if norm is not None]
        kept += bool(known)
        zero += any(norm == 0 for norm in known)
    if not kept:
        return "No method of this experiment has recorded an error norm yet."
    parts.append(f"of {kept} rows that keep an error, {zero or 'none'} had it at exactly zero at an evaluation")
    return _sentence(parts)


def _last(curves: Sequence[tuple[str, str, Curve]]) -> list[tuple[float, str]]:
    return [(curve.mean[-1], name) for name, _, curve in curves]


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else "No evaluation is recorded yet."


def identical_workers(study: Study) -> str:
    """Names the methods whose workers differ by rounding at most, which are not drawn; empty where there are none."""
    names = []
    for method in study.methods:
        events = [
            event
            for finding in study.compared
            if finding.method == method
            for run in finding.records.runs.values()
            for event in (run.events if run else ())
        ]
        if events and all(_distance(event) is None for event in events):
            names.append(method)
    return f"Not drawn, as their workers differ by rounding at most: {listed(names)}." if names else ""
