"""Whether a run that ended is done or diverged, which its own record may not know."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from cser_bench.harness.records.packs import read_result
from cser_bench.harness.records.store import RecordError, Result

DIVERGED_FACTOR = 1000.0
"""A loss above so many times a constant guess's counts as diverged, whatever the run's record
says."""

MOST_CLASSES = 50_000
"""Number of classes that is assumed where a record has none, as for text."""


def ending_of(result: Result) -> Literal["done", "diverged"]:
    """Tell whether a run is done or diverged.

    It diverged also where a loss at the end is not finite, or beyond 1,000 times that of a constant
    guess.
    """
    num_classes = MOST_CLASSES
    if result.class_counts:
        num_classes = len(result.class_counts[0])
    # Guessing all classes alike has a loss of ln(number of classes). With one class that is 0, and
    # any loss would lie beyond it.
    limit = DIVERGED_FACTOR * math.log(max(num_classes, 2))
    losses = [
        loss for loss in (result.train_loss, result.test_loss) if loss is not None
    ]
    is_beyond = any(not math.isfinite(loss) or loss > limit for loss in losses)
    if result.status == "diverged" or is_beyond:
        return "diverged"
    return "done"


def ending_in(folder: Path) -> Literal["done", "diverged"]:
    """Tell how the run of this folder ended.

    Raises RecordError: it has no result, or a bad one.
    """
    result = read_result(folder)
    if result is None:
        raise RecordError(f"{folder} has no result: the run has not ended")
    return ending_of(result)
