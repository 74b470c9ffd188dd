"""How an experiment's rows are tuned, and at which other rates and lengths they are run again."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from cser_bench.harness.spec.values import (
    Count,
    Name,
    Positive,
    Rates,
    Seeds,
    Strict,
    once,
)


class TuningSpec(Strict):
    """An experiment of its own that tunes: every row's settings at every rate of `grid`.

    They are scored on `held_out` training samples, the task's validation samples.

    `finalists`: so many trials of a row, the best at the first seed, are tried at the other seeds
        too; None for all.
    `num_trials`: pairs of settings and rate that every row must begin with, so that none is
        favoured.
    `num_epochs`: length of the tuning's runs. `lowest`, `highest`: how far a row's rates go on
    where the best of them is the last; None for not at all. `records`: the experiment whose tuning
    this is, where it is not this one's own.
    `corners`: the cells in which alone rows are tuned, every one of some sizes and some lengths;
    elsewhere a row's rate lies between those of the nearest corners, on logarithmic scales of
    parameters and steps, and its settings are the nearest one's.
    `both_rules`: plan rows for the choices by least training loss too, where they differ; at
        `both_rules_seeds`.
    """

    grid: Annotated[Rates, Field(min_length=1)]
    seeds: Annotated[Seeds, Field(min_length=1)]
    held_out: Count
    num_trials: Count | None = None
    finalists: Count | None = None
    num_epochs: Count | None = None
    lowest: Positive | None = None
    highest: Positive | None = None
    records: Name | None = None
    corners: Annotated[list[Name], AfterValidator(once)] = []
    both_rules: bool = False
    both_rules_seeds: Seeds = []


class SensitivitySpec(Strict):
    """The rows of the main ratio group, and those without one, again at neighbouring learning rates.

    These are the rates next to the chosen one.
    """

    seeds: Annotated[Seeds, Field(min_length=1)]


class LengthsSpec(Strict):
    """All rows again at these lengths.

    Settings and rates are those that were chosen for the rows themselves.
    """

    num_epochs: Annotated[list[Count], Field(min_length=1), AfterValidator(once)]
    seeds: Annotated[Seeds, Field(min_length=1)]
