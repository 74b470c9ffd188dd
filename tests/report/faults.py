"""Whether a figure can be read: no small type, no texts that overlap or are clipped, few lines."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure
from matplotlib.text import Text

LEAST_SIZE = 7.0
"""No text of a figure is smaller, in points."""


def texts_of(figure: Figure) -> Iterator[Text]:
    """All texts that are seen; ticks beyond an axis's ends are made and never drawn."""
    hidden: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not axes.get_visible() or not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    for found in figure.findobj(Text):
        assert isinstance(found, Text)
        if found.get_visible() and found.get_text().strip() and found not in hidden:
            yield found


def faults_of(figure: Figure) -> list[str]:
    """What a reader would trip over: type under 7 points, texts that overlap or are clipped, more
    than six lines in one axes."""
    figure.draw_without_rendering()
    texts = list(texts_of(figure))
    faults = [
        f"small: {text.get_text()}"
        for text in texts
        if float(text.get_fontsize()) < LEAST_SIZE
    ]
    # Beyond a figure's edge nothing is drawn.
    page = figure.bbox.padded(0.5)
    for text in texts:
        box = text.get_window_extent()
        if not (page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1)):
            faults.append(f"clipped: {text.get_text()}")
    boxes = [(text.get_text(), text.get_window_extent().padded(-0.5)) for text in texts]
    for number, (name, box) in enumerate(boxes):
        faults += [
            f"overlap: {name} and {other}"
            for other, beside in boxes[number + 1 :]
            if box.overlaps(beside)
        ]
    for axes in figure.axes:
        lines = [
            line
            for line in axes.get_lines()
            if len(line.get_xdata()) > 2 and line.get_linestyle() != "None"
        ]  # type: ignore[arg-type]
        faults += [f"{len(lines)} lines in one panel"] if len(lines) > 6 else []
    return faults
