"""What figures share: whether colours and shapes stay apart for everyone who reads them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from cser_bench.report.plotting import FAMILIES, SHAPES

Colour = NDArray[np.float64]

SEEN = {
    "all colours": np.eye(3),
    "no red": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "no green": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "no blue": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
"""How linear RGB is seen without one kind of cone: Machado, Oliveira and Fernandes, IEEE
Transactions on Visualization and Computer Graphics 15, 2009, at full severity."""

LEAST_APART = 20.0
"""In CIELAB, where about 2 can just be told side by side: these are small marks far apart."""

LEAST_CONTRAST = 4.5
"""Contrast of a name in its family's colour on white, as WCAG has it for text."""


def linear(colour: str) -> Colour:
    """Return the linear RGB of "#rrggbb"."""
    hexadecimal = [colour[at : at + 2] for at in (1, 3, 5)]
    levels = [int(each, 16) for each in hexadecimal]
    shares = np.array(levels) / 255
    return np.where(
        shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4
    )


def cielab(rgb: Colour) -> Colour:
    """Return linear RGB in CIELAB, under daylight (D65)."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    white = np.array([0.9505, 1.0, 1.089])
    relative = to_xyz @ np.clip(rgb, 0, 1) / white
    x, y, z = np.where(
        relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116
    )
    lightness = 116 * y - 16
    green_to_red = 500 * (x - y)
    blue_to_yellow = 200 * (y - z)
    return np.array([lightness, green_to_red, blue_to_yellow])


def least_apart(colours: Iterable[str], kind: str) -> float:
    """Return how far apart the two nearest of these colours are."""
    linear_seen = [SEEN[kind] @ linear(colour) for colour in colours]
    seen = [cielab(each) for each in linear_seen]
    return min(
        float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2)
    )


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, by WCAG."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    luminances = [float(weights @ linear(colour)) for colour in (one, other)]
    darker, lighter = sorted(luminances)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("kind", SEEN)
def test_families_stay_apart_with_each_kind_of_colour_blindness(kind: str) -> None:
    colours = set(FAMILIES.values())
    assert len(colours) == 5
    assert least_apart(colours, kind) > LEAST_APART


def test_families_have_shapes_of_their_own_and_names_that_can_be_read() -> None:
    assert SHAPES.keys() == FAMILIES.keys()
    shapes = SHAPES.values()
    assert len(set(shapes)) == len(SHAPES)
    for colour in FAMILIES.values():
        assert contrast(colour, "#ffffff") >= LEAST_CONTRAST, colour
