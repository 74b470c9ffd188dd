"""Figure: how H, R1 and R2 share one budget, a tile for each point that was run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator

from report.kit.plotting import SIZE, panels, save
from report.kit.wording import points

_WIDTH, _HEIGHT = 0.86, 0.21
"""Of a tile, in doublings of H and in shares of the budget."""

_SCALE = colormaps["YlOrRd"]


@dataclass(frozen=True)
class Tile:
    """A point of the map. `interval`: H, None where nothing is reset; `share`: what C2 has of the budget."""

    interval: int | None
    share: float
    name: str
    value: float


def draw_map(tiles: Sequence[Tile], path: Path) -> bool:
    """Draw it, `value` in points by colour and as a number; False where there are no tiles."""
    if not tiles:
        return False
    figure, [[axes]] = panels(1, 1, 2.9, share_x=False)
    # From no difference on; an outlier would press the others into one colour, so the scale ends near the middle ones.
    values = np.array([tile.value for tile in tiles])
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    colours = Normalize(0.0, max(-middle + 3 * (high - low), 0.01), clip=True)
    for tile in tiles:
        _tile(axes, tile, float(colours(-tile.value)))
    _axes(axes, tiles)
    save(figure, path)
    return True


def _place(interval: int | None) -> float:
    """On the axis: log2 of H, and a column of its own before it where nothing is reset."""
    return -1.2 if interval is None else float(np.log2(interval))


def _tile(axes: Axes, tile: Tile, colour: float) -> None:
    x, y = _place(tile.interval), tile.share
    box = (x - _WIDTH / 2, y - _HEIGHT / 2)
    axes.add_patch(Rectangle(box, _WIDTH, _HEIGHT, facecolor=_SCALE(0.05 + 0.75 * colour), edgecolor="white"))
    shade = "white" if colour > 0.8 else "black"
    axes.text(x, y + 0.045, points(tile.value / 100), ha="center", va="center", fontsize=SIZE, color=shade)
    axes.text(x, y - 0.045, tile.name, ha="center", va="center", fontsize=SIZE, color=shade)


def _axes(axes: Axes, tiles: Sequence[Tile]) -> None:
    intervals = sorted({tile.interval for tile in tiles if tile.interval})
    shares = sorted({tile.share for tile in tiles})
    none = [tile for tile in tiles if tile.interval is None]
    axes.set_xlim(_place(None if none else intervals[0]) - 0.5, _place(intervals[-1] if intervals else None) + 0.5)
    axes.set_ylim(shares[0] - 0.15, shares[-1] + 0.15)
    axes.xaxis.set_major_locator(FixedLocator([*([_place(None)] if none else []), *map(_place, intervals)]))
    axes.set_xticklabels([*(["no reset"] if none else []), *map(str, intervals)])
    axes.yaxis.set_major_locator(FixedLocator(shares))
    axes.set_yticklabels([f"{100 * share:.0f} %" for share in shares])
    axes.grid(visible=False)
    axes.set_xlabel("H, steps between two resets (log scale)")
    axes.set_ylabel("share of the budget for C2")
