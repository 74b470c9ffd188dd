"""What the page of a track has of an entry or a bound, as its picture has it too."""

import math
from dataclasses import dataclass

import numpy as np

from cser_bench.harness.records.tracks import TrackEntry


@dataclass(frozen=True)
class Gap:
    """A loss gap in nats, positive where the method is worse, with its two-sided interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class BoardLine:
    """A row of the page's tables: an entry or a bound.

    Attributes:
        family: the method's, as reports have it.
        scores: negative losses in nats, a seed each.
        gap: of the mean loss to the baseline's, in nats, with its interval.
        traffic: of a link, as a share of the baseline's.
        link_models, link_bits: what a worker's link carries in a run.
        arithmetic: the method's own, in steps of AdamW; None where not measured.
        seconds: of a step by the cost model, a link each.
        num_trials: None where the rate was given.
    """

    name: str
    label: str
    family: str
    entry: TrackEntry | None
    scores: np.ndarray
    gap: Gap
    learning_rate: float
    num_trials: int | None
    traffic: float
    link_models: float
    link_bits: float
    num_collectives: int
    peak_models: float
    arithmetic: float | None
    seconds: list[float]

    @property
    def mean_loss(self) -> float:
        """In nats."""
        return -math.fsum(self.scores) / len(self.scores)
