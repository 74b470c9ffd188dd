"""Figures over settings: the best of k trials against k, held-out accuracy over the rate, accuracy over momentum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from report.accuracy.findings import Finding
from report.accuracy.tuning import Tuned
from report.answers.figures import Line, Panel, draw_lines
from report.kit.wording import short

BEST_OF = ("sgd", "mcser-96", "local_sgd-96", "ef_topk-96")
"""Rows that are shown by name."""

RATES = (*BEST_OF, "ef_block-96")
"""The same over the rate; its first trial is so far off that it would press the others together where trials count."""

MEDIAN = "DDP"
"""As what the median row is drawn: in black."""


def draw_best_of(curves: Sequence[Line], near: float, path: Path) -> bool:
    """How far the best of k trials is behind the best of all.

    Args:
        near: in points, marked by a line.
    """
    last = max((line.x[-1] for line in curves if line.x), default=0.0)
    ticks = tuple((float(k), str(k)) for k in range(1, round(last) + 1))
    panel = Panel(
        "k, trials drawn at random among those tried", "points behind the best tried", tuple(curves), ticks,
        levels=((near, f"{near:g} points"),), room=0.2, names_left=True,
    )  # fmt: skip
    return draw_lines((panel,), path)


def best_of_line(name: str, look: str, behind: Sequence[float | None]) -> Line:
    """After 1, 2 and so on trials; None where the best of them diverged."""
    there = [(float(k), far) for k, far in enumerate(behind, 1) if far is not None]
    return Line(name, look, tuple(k for k, _ in there), tuple(far for _, far in there))


def draw_rates(tuned: Sequence[Tuned], path: Path) -> bool:
    """Held-out accuracy over the rate, the best of a row's settings at each; a cross at the foot where all diverged."""
    shown = [entry for entry in tuned if entry.row in RATES]
    rates = sorted({point.learning_rate for entry in shown for point in entry.points})
    lines = [_rates(entry) for entry in shown]
    lost = tuple((entry.method, rate) for entry in shown for rate in rates if _diverged(entry, rate))
    if not rates:
        return False
    panel = Panel(
        "learning rate (log scale)", "held-out accuracy, percent", tuple(lines), tuple((r, short(r)) for r in rates),
        log_x=True, scale="accuracy", room=0.16, lost=lost,
    )  # fmt: skip
    return draw_lines((panel,), path, height=2.5)


def _rates(entry: Tuned) -> Line:
    best: dict[float, float] = {}
    for point in entry.points:
        if point.scores and not point.diverged:
            score = 100 * point.scores[min(point.scores)]
            best[point.learning_rate] = max(score, best.get(point.learning_rate, score))
    rates = tuple(sorted(best))
    return Line(entry.method, entry.method, rates, tuple(best[rate] for rate in rates))


def _diverged(entry: Tuned, rate: float) -> bool:
    tried = [point for point in entry.points if point.learning_rate == rate]
    return bool(tried) and all(point.diverged for point in tried)


def draw_momenta(rows: Sequence[tuple[float, Finding]], top: Finding | None, path: Path) -> bool:
    """Accuracy over M-CSER's momentum, each dot a seed, with SGD's as a line."""
    there = [(momentum, f) for momentum, f in rows if f.summary]
    dots = tuple(tuple(100 * score for score in f.records.accuracy.values()) for _, f in there)
    means = tuple(100 * f.summary.mean for _, f in there if f.summary)
    line = Line("M-CSER", "M-CSER", tuple(momentum for momentum, _ in there), means, dots=dots)
    ticks = tuple((momentum, f"{momentum:g}") for momentum, _ in there)
    levels = ((100 * top.summary.mean, top.method),) if top and top.summary else ()
    if not ticks:
        return False
    panel = Panel("momentum (0: CSER)", "accuracy, percent", (line,), ticks, levels=levels, room=0.2)
    return draw_lines((panel,), path, height=1.9)
