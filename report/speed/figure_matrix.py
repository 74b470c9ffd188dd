"""Figure: modelled speed-ups of every method over every other, a panel per rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from report.plotting import panels, save
from report.speed.speedups import speedup
from report.speed.study import Bench
from report.speed.units import factor, rate

RATES = (1e9, 10e9, 25e9, 100e9)


def draw_matrix(bench: Bench, path: Path) -> bool:
    """Row over column: above 1 the row's method is the faster; False where nothing can be modelled."""
    if not bench.is_modelled:
        return False
    figure, grid = panels(2, 2, 3.9, share_x=False)
    for index, bits in enumerate(RATES):
        _panel(grid[index // 2][index % 2], bench, bits, names=index % 2 == 0)
    save(figure, path)
    return True


def _panel(axes: Axes, bench: Bench, bits: float, names: bool) -> None:
    methods = bench.methods
    values = np.array([[speedup(bench, row, column, bits) for column in methods] for row in methods])
    axes.imshow(np.log2(values), cmap="PuOr", vmin=-4, vmax=4, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:.2f}" if value < 9.95 else f"{value:.0f}"
        dark = abs(np.log2(value)) > 2.6
        axes.text(
            j, i, text, ha="center", va="center", fontsize=3.6, color="white" if dark else "black", in_layout=False
        )
    labels = [method.label for method in methods]
    axes.set_xticks(range(len(methods)), labels, rotation=90, fontsize=4.8)
    axes.set_yticks(range(len(methods)), labels if names else [], fontsize=4.8)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_title(f"{rate(bits)}: row's speed-up over column", loc="left")


def found_matrix(bench: Bench) -> str:
    """The fastest at each rate, and by how much over overlapped DDP."""
    base = bench.method("ddp")
    parts = []
    for bits in RATES:
        seconds, label = min((bench.seconds_at(method, bits), method.label) for method in bench.methods)
        gain = f", {factor(bench.seconds_at(base, bits) / seconds)} over overlapped DDP" if base else ""
        parts.append(f"{label} at {rate(bits)}{gain}")
    return f"The fastest: {'; '.join(parts)}."
