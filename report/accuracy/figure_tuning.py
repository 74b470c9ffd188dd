"""Figure: held-out accuracy over the learning rates tried. A panel per method, a line per table of settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from report.accuracy.tuning import Tuned
from report.kit.looks import look_of
from report.kit.plotting import SIZE, accuracy_scale, end_labels, panels, save, settle
from report.kit.wording import count_of, listed, ratio_name, short

_COLUMNS = 3
_ROOM = 0.26
"""Share of its width for names."""

_STRIP = 0.26
"""Share of a panel's height that is kept for the crosses of diverged runs."""

_MOST_PANELS = 18
_MOST_RATES = 5
"""With more than this only powers of ten have their numbers on the axis."""

_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1.2, 1.2), (5, 1.5, 1.2, 1.5))
_MARKERS = ("o", "s", "^", "D")


def draw_tuning(tuned: Sequence[Tuned], path: Path, score: str = "accuracy") -> bool:
    """Draw it; False where no tuning run is done. `score` is what trials are told apart by."""
    drawn = [entry for entry in tuned if entry.has_results]
    names = _methods(tuned)[:_MOST_PANELS]
    if not names:
        return False
    rows = math.ceil(len(names) / _COLUMNS)
    figure, grid = panels(rows, _COLUMNS, 1.4)
    cells = [axes for line in grid for axes in line]
    rates = sorted({point.learning_rate for entry in drawn for point in entry.points})
    numbers = [100 * score for entry in drawn for point in entry.points for score in point.scores.values()]
    for axes, name in zip(cells, names, strict=False):
        colour = look_of(name).colour
        _panel(axes, [entry for entry in drawn if entry.method == name], colour, rates, numbers)
        axes.set_title(name, loc="left", color=colour)
    for axes in cells[len(names) :]:
        axes.set_visible(False)
    for axes in cells[max(0, len(names) - _COLUMNS) : len(names)]:
        axes.set_xlabel("learning rate (log scale)")
        axes.tick_params(labelbottom=True)
    figure.supylabel(f"held-out {score}, percent", fontsize=SIZE)
    settle(figure)
    for axes, name in zip(cells, names, strict=False):
        colour = look_of(name).colour
        end_labels(axes, _ends([entry for entry in drawn if entry.method == name], colour), room=_ROOM, below=_STRIP)
    save(figure, path)
    return True


def _panel(axes: Axes, rows: Sequence[Tuned], colour: str, rates: Sequence[float], numbers: Sequence[float]) -> None:
    axes.set_xscale("log")
    if numbers:
        accuracy_scale(axes, numbers, below=_STRIP)
    for index, entry in enumerate(rows):
        marker, dashes = _MARKERS[index % len(_MARKERS)], _DASHES[index % len(_DASHES)]
        *others, main = _lines(entry) or [{}]
        for line in others:
            axes.plot(list(line), list(line.values()), color=colour, dashes=dashes, linewidth=0.5, clip_on=False)
        xs, ys = list(main), list(main.values())
        axes.plot(xs, ys, color=colour, dashes=dashes, marker=marker, markersize=2.8, clip_on=False)
        if entry.selected in main:
            place = (entry.selected, main[entry.selected])
            axes.plot(*place, "o", markersize=7.5, mfc="none", color=colour, markeredgewidth=0.9, clip_on=False)
    _mark_diverged(axes, rows, colour, rates[-1])
    decades = [rate for rate in rates if round(math.log10(rate), 6).is_integer()]
    named = rates if len(rates) <= _MOST_RATES or len(decades) < 2 else decades
    axes.set_xticks(named, [f"{rate:g}" for rate in named])
    axes.set_xticks(rates, [""] * len(rates), minor=True)
    axes.grid(which="minor", axis="x")
    low, high = rates[0] / 1.25, rates[-1] * 1.25
    axes.set_xlim(low, low * max(high / low, 4) ** (1 / (1 - _ROOM)))


def _mark_diverged(axes: Axes, rows: Sequence[Tuned], colour: str, last: float) -> None:
    """Crosses in a strip under the lowest accuracy, for there is no accuracy to draw them at."""
    lost = [(entry, [point.learning_rate for point in entry.points if point.diverged]) for entry in rows]
    lost = [(entry, rates) for entry, rates in lost if rates]
    if not lost:
        return
    strip = Rectangle((0, 0), 1, _STRIP - 0.02, transform=axes.transAxes, color="#f3f3f3", linewidth=0, zorder=0)
    axes.add_patch(strip)
    transform = axes.get_xaxis_transform()
    for index, (entry, rates) in enumerate(lost):
        place = (_STRIP - 0.02) * (1 - (index + 0.5) / len(lost))
        axes.plot(rates, [place] * len(rates), "x", transform=transform, markersize=3.5, color=colour, clip_on=False)
        axes.annotate(
            ratio_name(entry.ratio),
            (last, place),
            xycoords=transform,
            # Lines of many are nearer than letters are high, so every other name stands further out.
            xytext=(22 if index % 2 and len(lost) > 2 else 4, 0),
            textcoords="offset points",
            fontsize=SIZE,
            in_layout=False,
            color=colour,
            ha="left",
            va="center",
        )


def _ends(rows: Sequence[Tuned], colour: str) -> list[tuple[float, float, str, str]]:
    known = [(entry, lines[-1]) for entry in rows if (lines := _lines(entry))]
    return [(*list(line.items())[-1], ratio_name(entry.ratio), colour) for entry, line in known]


def _lines(entry: Tuned) -> list[dict[float, float]]:
    """Held-out accuracy in percent by rate, for each table of settings that has any; the chosen one's comes last."""
    lines: dict[int, dict[float, float]] = {}
    for point in entry.points:
        if point.score is not None:
            lines.setdefault(point.candidate, {})[point.learning_rate] = 100 * point.score
    chosen = entry.selected_point and entry.selected_point.candidate
    return [lines[candidate] for candidate in sorted(lines, key=lambda candidate: candidate == chosen)]


def _methods(tuned: Sequence[Tuned]) -> list[str]:
    return list(dict.fromkeys(entry.method for entry in tuned if entry.has_results))


def tuning_notes(tuned: Sequence[Tuned]) -> tuple[str, ...]:
    """What the marks are, and whether methods are left out."""
    several = any(entry.num_candidates > 1 for entry in tuned)
    lines = " Thin lines: other settings than those chosen." if several else ""
    marks = (
        "Means over the tuning seeds on held-out data; a ring marks the selected rate, a cross in the grey strip a "
        f"rate with a diverged run. Numbers beside them: ratios.{lines}"
    )
    count = len(_methods(tuned))
    left_out = f"Of {count} methods {_MOST_PANELS} are drawn; csv/tuning.csv has all." if count > _MOST_PANELS else ""
    return marks, left_out


def found_tuning(tuned: Sequence[Tuned]) -> str:
    """Whether the grid was wide enough and where runs diverged."""
    known = [entry for entry in tuned if entry.has_results and entry.selected is not None]
    if not known:
        return "No tuning run is done yet."
    ends = [entry for entry in known if entry.at_end]
    points = [point for entry in known for point in entry.points]
    lost = sum(bool(point.diverged) for point in points)
    names = [f"{entry.method} {entry.ratio:g} at {short(entry.selected)}" for entry in ends]
    if not ends:
        text = f"All {len(known)} selected rates lie inside the grid"
    elif len(ends) <= 6:
        text = f"{len(ends)} of {len(known)} selected rates lie at an end of the grid ({listed(names)})"
    else:
        text = f"{len(ends)} of {len(known)} selected rates lie at an end of the grid"
    return f"{text}; {lost} of {count_of(len(points), 'pair')} of row and rate had a diverged run."
