"""How an experiment compares its rows: its statistics, and what is declared before its runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cser_bench.harness.spec.values import Name, Positive, Seed, Seeds, Strict, Text

NO_CURVE = "none"
"""What stands for a curve where a spec has none and the one that it is like has."""


class StatisticsSpec(Strict):
    """How rows are compared.

    `margin`: non-inferiority margin in accuracy or the metric. `confidence` of intervals and
    one-sided bounds.

    `floor`: the row without communication, each worker on its own shard. `margin_reason`: why the
    margin is what it is.

    `main_ratio_group`: the rows' ratio group in which a report gives its first answers. `metric`: what rows are
    compared and tuned by.
    """

    baseline: Name
    metric: Name = "accuracy"
    margin: Positive
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seeds: Annotated[Seeds, Field(min_length=1)]
    same_seed: Seed | None = None
    """As released: all repeats use this one seed, and `seeds` only number them."""
    floor: Name | None = None
    margin_reason: str | None = None
    main_ratio_group: Positive | None = Field(default=None, alias="main_ratio")
    baseline_seeds: Seeds = []
    """Seeds of the baseline, instead of `seeds`: every row is compared with it, so its spread must be
    known better."""
    declared: str | None = None
    """When the contrasts were declared: which runs had been seen by then."""
    seed_deviation: Positive | None = None
    """Standard deviation of a score between seeds, for a plan's power, in the unit of the margin."""
    curve: Name | None = None
    """The experiment that ran the baseline at several lengths, by which steps are valued. None
    where this experiment's own cells have the lengths. `NO_CURVE` takes an inherited one away."""


class ContrastSpec(Strict):
    """A comparison of two rows, declared before its runs.

    All their one-sided tests share 5 %.

    `kind` names what is to be shown of row minus reference. "non-inferiority": it is above minus
    the margin. "superiority": it is not 0, in either direction. "equivalence": it lies within the
    margin on both sides.
    `margin`: instead of the experiment's.
    """

    row: str
    reference: str
    kind: Literal["non-inferiority", "superiority", "equivalence"]
    question: str
    margin: Positive | None = None


class ExponentSpec(Strict):
    """A question about the exponents of a power law of gaps, declared before the runs.

    Recorded and no longer evaluated; `docs/history.md` says why. It counts as a test with a p of
    1, as a plan knows no other. Asked is whether the exponent of the model's parameters ("size"), of a run's rounds of
    communication ("rounds") or of the steps between two rounds ("interval") is negative for these
    rows together, or lower than that of the rows `than`.
    """

    rows: Annotated[list[Name], Field(min_length=1)]
    of: Literal["size", "rounds", "interval"]
    than: list[Name] = []
    question: str


class PredictionSpec(Strict):
    """The statistical efficiency that a row was predicted to have, before its runs.

    `efficiency`: the predicted value, or None where it is what `experiment` measures of its row of
    the same name. `tolerance`: the largest |ln(measured / predicted)| that counts as equal.
    `source`: where the prediction comes from.
    """

    row: str
    efficiency: Positive | None = None
    experiment: Name | None = None
    tolerance: Positive
    source: Text

    @model_validator(mode="after")
    def _consistent(self) -> PredictionSpec:
        if (self.efficiency is None) == (self.experiment is None):
            raise ValueError(
                f"the prediction of {self.row!r} needs an efficiency, or the experiment that "
                "measures one, and not both"
            )
        return self
