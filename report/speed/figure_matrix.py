"""Figure: modelled speed-ups of every method over every other, a panel per rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from harness.records.timings import Method
from report.kit.plotting import SIZE, panels, save
from report.kit.wording import listed
from report.speed.speedups import speedup
from report.speed.study import Bench
from report.speed.units import factor, rate

RATES = (1e9, 10e9, 100e9)

_BESIDE = 8
"""Of so few methods the panels stand beside one another."""


def draw_matrix(bench: Bench, methods: Sequence[Method], path: Path) -> bool:
    """Row over column: above 1 the row's method is the faster; False where nothing can be modelled."""
    if not bench.is_modelled:
        return False
    # Two lines of type and a title over as many lines as there are methods.
    height = (len(methods) + 3) * 1.27 * SIZE / 72
    beside = len(methods) <= _BESIDE
    figure, grid = panels(1 if beside else len(RATES), len(RATES) if beside else 1, height, share_x=False)
    for number, (axes, bits) in enumerate(zip((axes for line in grid for axes in line), RATES, strict=True)):
        _panel(axes, bench, methods, bits)
        if beside and number:
            axes.set_yticks(range(len(methods)), [str(each) for each in range(1, len(methods) + 1)])
    save(figure, path)
    return True


def _panel(axes: Axes, bench: Bench, methods: Sequence[Method], bits: float) -> None:
    values = np.array([[speedup(bench, row, column, bits) for column in methods] for row in methods])
    axes.imshow(np.log2(values), cmap="PuOr", vmin=-4, vmax=4, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:.2f}" if value < 9.95 else f"{value:.0f}"
        dark = abs(np.log2(value)) > 2.6
        axes.text(j, i, text, ha="center", va="center_baseline", color="white" if dark else "black", in_layout=False)
    numbers = range(1, len(methods) + 1)
    axes.set_xticks(range(len(methods)), [str(number) for number in numbers])
    axes.set_yticks(
        range(len(methods)), [f"{method.label}  {number}" for number, method in zip(numbers, methods, strict=True)]
    )
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.grid(False)
    axes.set_title(f"{rate(bits)}: row over column", loc="left")


def found_matrix(bench: Bench) -> str:
    """The fastest at each rate, and by how much over overlapped DDP."""
    base = bench.method("ddp")
    found: dict[str, list[str]] = {}
    for bits in RATES:
        seconds, label = min((bench.seconds_at(method, bits), method.label) for method in bench.methods)
        gain = f" ({factor(bench.seconds_at(base, bits) / seconds)})" if base else ""
        found.setdefault(label, []).append(f"{rate(bits)}{gain}")
    head = "The fastest, with its speed-up over overlapped DDP" if base else "The fastest"
    return f"{head}: {'; '.join(f'{label} at {listed(rates)}' for label, rates in found.items())}."
