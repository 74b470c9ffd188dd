"""Learning rates of a grid of sizes and lengths from those that the tuning chose in its corners.

A rate lies between the corners' in proportion, on logarithmic scales of the rate, of parameters and
of steps: along one of them where corners differ in one alone, else along both (bilinear). Beyond
the corners it goes on as between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from cser_bench.harness.plan.footprint import num_parameters_of
from cser_bench.harness.plan.rows import config_of
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.rows import RowSpec
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.train.build import num_steps_of

Place = tuple[int, int]
"""Parameters of the model, and steps of a run."""

DIGITS = 3
"""Of a rate that is reckoned: more would say more than is known."""


def between_corners(spec: Spec, chosen: Mapping[str, RowSpec]) -> dict[str, RowSpec]:
    """The rows that are tuned in corners alone, each with its rate, and with the settings of the
    nearest corner.

    Args:
        chosen: the rows in corners as the tuning settled them, by name; a row that has not all of
            its own is left out.

    Raises SpecError: a row's corners are not those of a grid.
    """
    tuned = {row.row: row for row in spec.rows_to_tune()}
    settled = {}
    for row in spec.all_rows():
        if row.learning_rate is not None or spec.is_tuned(row):
            continue
        names = [f"{row.base or row.row}@{corner}" for corner in spec.corners_of(row)]
        corners = {place_of(spec, tuned[name]): name for name in names if name in tuned}
        shares = shares_of(f"row {row.row!r}", place_of(spec, row), list(corners))
        if not chosen.keys() >= set(corners.values()):
            continue
        known = {place: chosen[name] for place, name in corners.items()}
        rate = math.prod(_rate(known[place]) ** share for place, share in shares.items())
        nearest = known[max(shares, key=lambda place: (shares[place], place))]
        update = {
            "settings": nearest.settings,
            "learning_rate": float(f"{rate:.{DIGITS}g}"),
            "candidates": [],
        }
        settled[row.row] = row.model_copy(update=update)
    return settled


def place_of(spec: Spec, row: RowSpec) -> Place:
    """Where on the grid a row is run."""
    config = config_of(spec, row.model_copy(update={"learning_rate": 1.0}), seed=0)
    return num_parameters_of(config.model, config.task.name), num_steps_of(config)[1]


def shares_of(where: str, place: Place, corners: list[Place]) -> dict[Place, float]:
    """What each corner counts at a place; the shares add up to 1. Raises SpecError: the corners are
    not a grid's."""
    sizes, lengths = ([corner[axis] for corner in corners] for axis in (0, 1))
    by_size, by_length = _along(place[0], sizes), _along(place[1], lengths)
    if (
        len(corners) < 2
        or by_size is None
        or by_length is None
        or len(corners) != len(by_size) * len(by_length)
    ):
        raise SpecError(
            f"{where} needs a learning rate from tuning.corners, of which it is in {len(corners)}: "
            "give the four cells of two sizes and two lengths, or two that differ in one of "
            "these, with this row in each"
        )
    return {(size, length): by_size[size] * by_length[length] for size, length in corners}


def _along(value: int, ends: list[int]) -> dict[int, float] | None:
    """The share of either end by the distance from the other, as logarithms; None where there are
    more than two."""
    low, high = min(ends, default=1), max(ends, default=1)
    if not set(ends) <= {low, high}:
        return None
    if low == high:
        return {low: 1.0}
    share = math.log(value / low) / math.log(high / low)
    return {low: 1 - share, high: share}


def _rate(row: RowSpec) -> float:
    assert row.learning_rate is not None, "a settled row has one"
    return row.learning_rate
