"""How a check of a promise ends: quietly, or by an error that says what was seen."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

NUM_STEPS = 12
"""How long a check trains."""
SAVED_AFTER = (3, 4, 6)
"""Steps between two synchronisations, and one with which an interval of 4 ends."""

ROUNDING = 1e-9
"""Tolerance for float64 sums that were added in another order."""


class BrokenError(Exception):
    """The promise is not kept; the message says what was seen."""


class DoesNotApplyError(Exception):
    """The method makes no such promise; the message says why."""


def check_same(found: Tensor, expected: Tensor, who: str) -> None:
    """Raise BrokenError where numbers that are to be the same differ in a bit."""
    different = int((found != expected).sum())
    if different:
        distance = float((found - expected).abs().max())
        raise BrokenError(
            f"{who}: {different} of {len(expected)} parameters differ, by up to {distance:.2g}"
        )


@contextmanager
def naming(compressor: str) -> Iterator[None]:
    """Have it said with which compressor a promise is not kept."""
    try:
        yield
    except BrokenError as error:
        raise BrokenError(f"with {compressor}, {error}") from None
