"""Learning rates of a grid of sizes and lengths from those that the tuning chose in its corners.

A rate lies between those of the nearest corners, on logarithmic scales of the rate, of parameters
and of steps: along one of them where corners differ in one alone, else along both (bilinear).
Beyond the last corners it goes on as between the last two.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping

from cser_bench.harness.plan.footprint import num_parameters_of
from cser_bench.harness.plan.rows import config_of
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.rows import RowSpec
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.train.schedule import num_steps_of

Place = tuple[int, int]
"""Parameters of the model, and steps of a run."""

DIGITS = 3
"""Significant digits of an interpolated learning rate."""


def between_corners(spec: Spec, chosen: Mapping[str, RowSpec]) -> dict[str, RowSpec]:
    """Return the rows that are tuned in corners alone, with a rate and settings each.

    The rate lies between those of the corners; the settings are those of the nearest corner.

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
        names = [
            f"{row.repeated_row or row.row}@{corner}" for corner in spec.corners_of(row)
        ]
        corners = {place_of(spec, tuned[name]): name for name in names if name in tuned}
        shares = shares_of(f"row {row.row!r}", place_of(spec, row), list(corners))
        if all(name in chosen for name in corners.values()):
            chosen_at = {place: chosen[name] for place, name in corners.items()}
            settled[row.row] = _settled_between(row, chosen_at, shares)
    return settled


def _settled_between(
    row: RowSpec, chosen_at: Mapping[Place, RowSpec], shares: Mapping[Place, float]
) -> RowSpec:
    """Return the row with a rate between those of its corners, and the nearest one's settings."""
    powers = []
    for place, share in shares.items():
        rate_there = chosen_at[place].learning_rate
        assert rate_there is not None, "a settled row has one"
        powers.append(rate_there**share)
    # log(rate) = sum over corners of share * log(their rate)
    rate = math.prod(powers)
    # Ties go to the larger place, whatever the order of the corners.
    nearest = max(shares, key=lambda place: (shares[place], place))
    return row.model_copy(
        update={
            "settings": chosen_at[nearest].settings,
            "learning_rate": float(f"{rate:.{DIGITS}g}"),
            "candidates": [],
        }
    )


def place_of(spec: Spec, row: RowSpec) -> Place:
    """Return where on the grid a row is run."""
    # A config needs a rate, and rows may have none yet.
    config = config_of(spec, row.model_copy(update={"learning_rate": 1.0}), seed=0)
    return num_parameters_of(config.model, config.task.name), num_steps_of(config)[1]


def shares_of(where: str, place: Place, corners: list[Place]) -> dict[Place, float]:
    """Return the weight of each corner at a place; the weights add up to 1.

    Raises SpecError: the corners are not a grid's.
    """
    size, length = place
    by_size = _along(size, [corner_size for corner_size, _ in corners])
    by_length = _along(length, [corner_length for _, corner_length in corners])
    # A grid has each of its sizes at each of its lengths.
    num_corners_of_grid = len(by_size) * len(by_length)
    if len(corners) < 2 or len(corners) != num_corners_of_grid:
        raise SpecError(
            f"{where} needs a learning rate from tuning.corners, of which it is in {len(corners)}: "
            "give every cell of some sizes and some lengths, two at least, with this row in each"
        )
    return {corner: by_size[corner[0]] * by_length[corner[1]] for corner in corners}


def _along(value: int, ends: list[int]) -> dict[int, float]:
    """Return the share of each end by the distances on a logarithmic scale; they add up to 1.

    Between two neighbouring ends these two share, and all others have 0. Beyond the last ends the
    last two share, and one of them has less than 0.
    """
    places = sorted(set(ends))
    if len(places) < 2:
        return dict.fromkeys(places, 1.0)
    # The neighbours are the ends at `above - 1` and `above`.
    above = min(max(bisect(places, value), 1), len(places) - 1)
    low, high = places[above - 1], places[above]
    # log(value) = (1 - share) log(low) + share log(high)
    share = math.log(value / low) / math.log(high / low)
    return dict.fromkeys(places, 0.0) | {low: 1 - share, high: share}
