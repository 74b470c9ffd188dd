"""How figures are made: one style, type of 7 points and more, a colour a family of methods, bytes that repeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.typing import RcKeyType

WIDTH = 6.9
"""Width of every figure in inches: the text width of an A4 page."""

SIZE = 7.5
"""Size of the type in points, on paper: figures are as wide as the text."""

LEAST_SIZE = 7.0
"""No text of a figure is smaller."""

FAMILIES: dict[str, tuple[str, str]] = {
    "all sent": ("#555555", "sgd"),
    "bounds": ("#999999", "alone sgd_accumulate"),
    "error reset": ("#1A5FD0", "csea cser cser_pl mcser"),
    "error feedback": ("#C23B00", "ef_sgd qsparse_local_sgd ef21_sgdm powersgd"),
    "local steps": ("#1C8C4B", "local_sgd diloco sparta"),
    "neighbours": ("#8A3FA0", "choco_sgd deep_squeeze dpsgd"),
}
"""By family of methods: its colour in all figures, and the algorithms that are of it."""

OTHER = "#7B4B2A"
"""Colour of a method of no family."""

_STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": SIZE,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.fontsize": SIZE,
    "legend.frameon": False,
    "axes.labelsize": SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "xtick.labelsize": SIZE,
    "ytick.labelsize": SIZE,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


def style() -> AbstractContextManager[None]:
    """Everything about a figure is made inside this context."""
    return rc_context(_STYLE)


def family_of(algorithm: str) -> str:
    """The family of a method, "other" if it has none."""
    return next((name for name, (_, members) in FAMILIES.items() if algorithm in members.split()), "other")


def colour_of(algorithm: str) -> str:
    """The colour of a method's family."""
    family = family_of(algorithm)
    return FAMILIES[family][0] if family in FAMILIES else OTHER


def new_figure(height: float, columns: int = 1, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of page width with axes side by side; `height` in inches. No global state, so figures do not touch."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, sharey=share_y)
    return figure, list(axes[0])


def save(figure: Figure, path: Path) -> None:
    """Write a PNG at `path` and a PDF beside it, without a word of who wrote them and when.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(path, format="png", metadata={"Software": None})
        nobody = {"Creator": None, "Producer": None, "CreationDate": None}
        figure.savefig(path.with_suffix(".pdf"), format="pdf", metadata=nobody)


def plain_log_ticks(axis: Axis, most: int) -> None:
    """Ticks of a log axis as plain numbers, about `most` of them."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=most))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def end_labels(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Names right of the ends of lines (x, y, name, colour), moved apart so that none touches another."""
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes are made with their figure"
    figure.draw_without_rendering()
    height = 1.25 * SIZE * figure.dpi / 72
    placed = sorted(ends, key=lambda end: axes.transData.transform((end[0], end[1]))[1])
    below = -float("inf")
    for x, y, name, colour in placed:
        up = float(axes.transData.transform((x, y))[1])
        below = max(up, below + height)
        offset = (5, (below - up) * 72 / figure.dpi)
        axes.annotate(name, (x, y), xytext=offset, textcoords="offset points", va="center", color=colour)


def texts_of(figure: Figure) -> Iterator[Text]:
    """All texts that are seen."""
    for found in figure.findobj(Text):
        assert isinstance(found, Text)
        if found.get_visible() and found.get_text().strip():
            yield found


def faults_of(figure: Figure) -> list[str]:
    """What a reader would trip over: type under 7 points, texts that overlap, more than six lines in one axes."""
    figure.draw_without_rendering()
    texts = list(texts_of(figure))
    faults = [f"small: {text.get_text()}" for text in texts if float(text.get_fontsize()) < LEAST_SIZE]
    boxes = [(text.get_text(), text.get_window_extent().padded(-0.5)) for text in texts]
    for number, (name, box) in enumerate(boxes):
        faults += [f"overlap: {name} and {other}" for other, beside in boxes[number + 1 :] if box.overlaps(beside)]
    for axes in figure.axes:
        lines = [line for line in axes.get_lines() if len(line.get_xdata()) > 2 and line.get_linestyle() != "None"]  # type: ignore[arg-type]
        faults += [f"{len(lines)} lines in one panel"] if len(lines) > 6 else []
    return faults
