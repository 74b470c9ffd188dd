"""One run: its scientific fields, which are all that its id depends on."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from cser_bench.harness.spec.rows import PartitionSpec, RestartSpec
from cser_bench.harness.spec.values import (
    Betas,
    Count,
    LocalStep,
    Name,
    NonNegative,
    Positive,
    Seed,
    Settings,
    ShareBelowOne,
    Strict,
)

Precision = Literal["fp32", "fp16", "bf16"]
"""Of the forward and backward pass; parameters and optimiser state are fp32. fp16 goes with loss
scaling."""

CommunicationDtype = Literal["fp32", "fp16"]
"""Of the numbers that are sent, and so of the bits that are counted."""

ID_DIGITS = 12
"""Hexadecimal digits of a run's id."""


class TaskSpec(Strict):
    """The task of a run.

    `name` is a module of harness/tasks. `held_out` training samples are scored instead of the test
    set if not 0.

    `max_undecodable` is always 0: records of before name it.

    `num_train`: train on so many samples, always the same ones, that are never among those held
    out; 0 for all.
    """

    name: Name
    held_out: Annotated[int, Field(ge=0)] = 0
    max_undecodable: Literal[0] = 0
    num_train: Annotated[int, Field(ge=0)] = 0


class ModelSpec(Strict):
    """The model of a run.

    `name` is one of `harness.models.NETWORKS`. `options` are those of the function that builds it.
    """

    name: Name
    options: Settings = {}


class ScheduleSpec(Strict):
    """Learning rate over time, in epochs.

    It rises linearly from 0 in the warm-up, and then stays, falls in a cosine to 0, or falls in
    steps at milestones. A run of `num_steps` counts as one epoch here, so that what is given in
    epochs is a share of it.

    `staircase_warmup`, as released for CIFAR-100: the warm-up rises once an epoch, to (epoch + 1) /
    warmup_epochs.

    `warmup_share`: so much of the run is added to `warmup_epochs`, in proportion for runs of other
    lengths.
    """

    kind: Literal["constant", "cosine", "milestones"]
    warmup_epochs: NonNegative = 0.0
    staircase_warmup: bool = False
    milestones: list[Positive] = []
    factor: Positive = 0.2
    warmup_share: ShareBelowOne = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleSpec:
        if self.kind == "milestones" and not self.milestones:
            raise ValueError(
                "kind 'milestones' needs the list `milestones`, the epochs at which the rate falls"
            )
        return self


class EvaluationSpec(Strict):
    """How often and how the average is scored.

    `per_epoch` scores an epoch, evenly spaced, or `num_scores` in the whole run. A run of
    `num_steps` is one epoch.

    `batch_norm`: the running statistics that the workers' average model is scored with. "average":
    the workers' mean; "recalibrate": estimated anew by the average model on training batches;
    "local", as released: every worker's own, each worker scoring all samples, and the scores
    averaged.

    `beam`: how many beams a text task's sentences are decoded with; 1 is greedy.
    """

    per_epoch: Count = 1
    batch_norm: Literal["average", "recalibrate", "local"] = "average"
    num_scores: Count | None = None
    beam: Annotated[int, Field(ge=1, le=64)] = 1

    def steps(self, num_epochs: int, per_epoch: int) -> set[int]:
        """Return the steps of a run, counted from 1, after which the average is scored.

        The last one is always among them.
        """
        scores = self.num_scores or self.per_epoch * num_epochs
        return {
            round(number * per_epoch * num_epochs / scores) for number in range(1, scores + 1)
        } - {0}


class TrainingSpec(Strict):
    """How every run of an experiment trains, where a row says nothing else."""

    num_workers: Count
    batch_size: Count
    """Samples per worker and step."""
    num_epochs: Count
    momentum: ShareBelowOne
    weight_decay: NonNegative
    precision: Precision = "fp32"
    wire: CommunicationDtype = "fp32"
    """The communication dtype, as files and records have always called it."""
    local_step: LocalStep = "sgd"
    betas: Betas = [0.9, 0.999]
    eps: Positive = 1e-8
    label_smoothing: ShareBelowOne = 0.0
    """In the training loss alone."""
    num_steps: Count | None = None
    """The first steps of the epochs, where a run does not take all: equal seeds begin alike at
    every length."""

    @property
    def communication_dtype(self) -> CommunicationDtype:
        """The type of the numbers that are sent; the field `wire` of files and records."""
        return self.wire

    @property
    def num_schedule_epochs(self) -> int:
        """Epochs as schedule and scores count them."""
        return self.num_epochs if self.num_steps is None else 1


class RunConfig(TrainingSpec):
    """The scientific fields of one run and nothing else; its id is their hash."""

    task: TaskSpec
    model: ModelSpec
    algorithm: Name
    settings: Settings = {}
    learning_rate: Positive
    schedule: ScheduleSpec
    evaluation: EvaluationSpec
    partition: PartitionSpec = PartitionSpec()
    seed: Seed
    repeat: int = 0
    """Tells apart runs that share their seed."""
    restart: RestartSpec | None = None
    """What workers lose in the middle of the run, so that it can be seen what that costs."""


def run_id(config: RunConfig) -> str:
    """Return the hash of the scientific fields alone.

    Fields at their default are left out, so that new ones change no old id.
    """
    canonical = json.dumps(config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:ID_DIGITS]


def is_run_id(text: object) -> bool:
    """Say whether a text has the form of a run's id.

    Such an id names a folder in its experiment's and no other place.
    """
    return isinstance(text, str) and re.fullmatch(f"[0-9a-f]{{{ID_DIGITS}}}", text) is not None


class PlannedRun(NamedTuple):
    """One run to do: a row of the table at one seed."""

    run_id: str
    row: str
    seed: int
    config: RunConfig
