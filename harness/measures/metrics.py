"""What runs are scored by, and scores as they are compared: more is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from cser_bench.harness.records.store import Event, Result


class Metric(NamedTuple):
    """What runs are scored by, and how it is shown.

    `is_share`: recorded as a share of 1 and shown in percent, or for BLEU and chrF in points of
    100.
    """

    name: str
    label: str
    unit: str
    higher_is_better: bool
    is_share: bool = True

    @property
    def score_label(self) -> str:
        """What `score_in` gives, or of a loss what is shown in its place."""
        if self.is_share and not self.higher_is_better:
            return f"100 % less {self.label}"
        return self.label

    @property
    def loss_unit(self) -> str:
        """What is lost between two runs is told in: "points" are hundredths of a share."""
        if self.is_share:
            return "points"
        return self.unit or self.label


ACCURACY = Metric("accuracy", "accuracy", "percent", True)

METRICS = {
    metric.name: metric
    for metric in (
        ACCURACY,
        Metric("phone_error_rate", "phone error rate", "percent", False),
        Metric("bleu", "BLEU", "points", True),
        Metric("chrf", "chrF", "points", True),
        Metric("loss", "test loss", "nats", False, is_share=False),
        Metric("perplexity", "perplexity", "", False, is_share=False),
    )
}


def metric_of(name: str | None) -> Metric:
    """Return a metric by its name in a record.

    None is accuracy.
    """
    return ACCURACY if name is None else METRICS[name]


def score_of(
    accuracy: float | None,
    loss: float | None,
    others: Mapping[str, float] | None,
    metric: Metric,
) -> float | None:
    """Return the metric, turned so that more is better; None if not recorded or diverged.

    An error rate becomes 1 minus itself, a loss its negative.
    """
    values = {"accuracy": accuracy, "loss": loss}
    if loss is not None:
        values["perplexity"] = math.exp(min(loss, 700.0))  # of more there is no float
    values |= others or {}
    value = values.get(metric.name)
    if value is None or metric.higher_is_better:
        return value
    if metric.is_share:
        return 1 - value
    # Not -value: of 0.0 that is -0.0, whose sign is printed.
    return 0 - value


def score_in(record: Event | Result, metric: Metric) -> float | None:
    """Return the score of a record."""
    return score_of(record.test_accuracy, record.test_loss, record.metrics, metric)
