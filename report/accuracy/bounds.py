"""Which rows bound the others: the ceiling, the floor, one final average, and SGD that accumulates."""

from __future__ import annotations

from typing import Literal

from harness.records.experiment import Experiment, Row

Role = Literal["ceiling", "floor", "bound"]
"""The ceiling is the baseline, which sends everything; the floor sends nothing; other bounds anyone could reach."""


def role_of(row: Row, experiment: Experiment) -> Role | None:
    """The row's part as a bound; None for a method that is under test."""
    name = row.base or row.row
    if name == experiment.baseline:
        return "ceiling"
    if name == experiment.floor:
        return "floor"
    return "bound" if row.algorithm == "sgd_accumulate" or is_final_average(row) else None


def is_final_average(row: Row) -> bool:
    """Whether the workers meet once, at the very end."""
    return row.algorithm == "local_sgd" and "sync interval: end" in row.words


def at_end_of_grid(row: Row, experiment: Experiment) -> bool:
    """Whether the row's learning rate is the smallest or largest tried: a better one may lie outside."""
    tuning = experiment.tuning
    if tuning is None:
        return False
    name = row.base or row.row
    choices = tuning.choices_by_training_loss if row.rule == "training_loss" else tuning.choices
    if name in choices:
        return choices[name].at_end
    grid = tuning.grid
    return name in tuning.selected and len(grid) > 1 and row.learning_rate in (min(grid), max(grid))
