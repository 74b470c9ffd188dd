"""What an experiment says, validated strictly. Science lives here; flags are for infrastructure only."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, ValidationError, model_validator

from cser_bench.harness.rows import (
    Betas,
    Count,
    GridSpec,
    LocalStep,
    Name,
    NonNegative,
    PartitionSpec,
    Positive,
    Rates,
    RestartOf,
    RestartSpec,
    RowSpec,
    Seed,
    Seeds,
    Share,
    Strict,
    once,
)

Precision = Literal["fp32", "fp16", "bf16"]
"""Of the forward and backward pass; parameters and optimiser state are fp32. fp16 goes with loss scaling."""
Wire = Literal["fp32", "fp16"]
"""Of the numbers that are sent, and so of the bits that are counted."""


class SpecError(ValueError):
    """A spec that cannot be used: the message says where, what is wrong and what to do."""

    exit_code = 2


class TaskSpec(Strict):
    """`name` is a module of harness/tasks; `held_out` training samples are scored instead of the test set if not 0.

    `max_undecodable` is always 0: records of before name it.
    `num_train`: train on so many samples, always the same ones, that are never among those held out; 0 for all.
    """

    name: Name
    held_out: Annotated[int, Field(ge=0)] = 0
    max_undecodable: Literal[0] = 0
    num_train: Annotated[int, Field(ge=0)] = 0


class ModelSpec(Strict):
    """`name` is one of `harness.models.NETWORKS`; `options` are those of the function that builds it."""

    name: Name
    options: dict[str, Any] = {}


class ScheduleSpec(Strict):
    """Learning rate over time, in epochs: linear warm-up from 0, then cosine to 0 or steps at milestones.

    `staircase_warmup`, as released for CIFAR-100: the warm-up rises once an epoch, to (epoch + 1) / warmup_epochs.
    `warmup_share`: so much of the run is added to `warmup_epochs`, in proportion for runs of other lengths.
    """

    kind: Literal["constant", "cosine", "milestones"]
    warmup_epochs: NonNegative = 0.0
    staircase_warmup: bool = False
    milestones: list[Positive] = []
    factor: Positive = 0.2
    warmup_share: Share = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleSpec:
        if self.kind == "milestones" and not self.milestones:
            raise ValueError("kind 'milestones' needs the list `milestones`, the epochs at which the rate falls")
        return self


class EvaluationSpec(Strict):
    """`per_epoch` scores an epoch, evenly spaced, or `num_scores` in the whole run.

    `batch_norm`: the running statistics that the workers' average model is scored with. "average": the workers' mean;
    "recalibrate": estimated anew by the average model on training batches; "local", as released: every worker's own,
    each worker scoring all samples, and the scores averaged.
    `beam`: how many beams a text task's sentences are decoded with; 1 is greedy.
    """

    per_epoch: Count = 1
    batch_norm: Literal["average", "recalibrate", "local"] = "average"
    num_scores: Count | None = None
    beam: Annotated[int, Field(ge=1, le=64)] = 1


class TrainingSpec(Strict):
    """How every run of an experiment trains, where a row says nothing else."""

    num_workers: Count
    batch_size: Count
    """Samples per worker and step."""
    num_epochs: Count
    momentum: Share
    weight_decay: NonNegative
    precision: Precision = "fp32"
    wire: Wire = "fp32"
    local_step: LocalStep = "sgd"
    betas: Betas = [0.9, 0.999]
    eps: Positive = 1e-8
    label_smoothing: Share = 0.0
    """In the training loss alone."""


class RunConfig(TrainingSpec):
    """The scientific fields of one run and nothing else; its id is their hash."""

    task: TaskSpec
    model: ModelSpec
    algorithm: Name
    settings: dict[str, Any] = {}
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
    """Hash of the scientific fields alone; fields at their default are left out, so that new ones change no old id."""
    canonical = json.dumps(config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class PlannedRun(NamedTuple):
    """One run to do: a row of the table at one seed."""

    run_id: str
    row: str
    seed: int
    config: RunConfig


class StatisticsSpec(Strict):
    """`margin`: non-inferiority margin in accuracy or the metric; `confidence` of intervals and one-sided bounds.

    `floor`: the row that sends nothing, a worker alone on its shard. `margin_reason`: why the margin is what it is.
    `main_ratio`: the ratio at which a report gives its first answers. `metric`: what rows are compared and tuned by.
    """

    baseline: Name
    metric: Literal["accuracy", "loss", "phone_error_rate", "bleu", "chrf"] = "accuracy"
    margin: Positive
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seeds: Annotated[Seeds, Field(min_length=1)]
    same_seed: Seed | None = None
    """As released: all repeats use this one seed, and `seeds` only number them."""
    floor: Name | None = None
    margin_reason: str | None = None
    main_ratio: Positive | None = None
    baseline_seeds: Seeds = []
    """Of the baseline, instead of `seeds`: every row is held against it, so its own spread must be known better."""
    declared: str | None = None
    """When the contrasts were declared: which runs had been seen by then."""
    seed_deviation: Positive | None = None
    """Standard deviation of a score between seeds that a plan's power is reckoned with, in the unit of the margin."""


class TuningSpec(Strict):
    """Its own experiment: every row's settings at every rate of `grid`, scored on held-out training samples.

    `finalists`: so many trials of a row, the best at the first seed, are tried at the other seeds too; None for all.
    `num_trials`: pairs of settings and rate that every row must begin with, so that none is favoured.
    `num_epochs`: length of the tuning's runs. `lowest`, `highest`: how far a row's rates go on where the best of them
    is the last; None for not at all. `records`: the experiment whose tuning this is, where it is not this one's own.
    `both_rules`: plan rows for the choices by least training loss too, where they differ; at `both_rules_seeds`.
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
    both_rules: bool = False
    both_rules_seeds: Seeds = []


class ContrastSpec(Strict):
    """A comparison of two rows that was decided on before its runs; all their one-sided tests share 5 %.

    `kind` names what is to be shown of row minus reference. "non-inferiority": it is above minus the margin.
    "superiority": it is not 0, in either direction. "equivalence": it lies within the margin on both sides.
    `margin`: instead of the experiment's.
    """

    row: str
    reference: str
    kind: Literal["non-inferiority", "superiority", "equivalence"]
    question: str
    margin: Positive | None = None


class SensitivitySpec(Strict):
    """The rows at the main ratio, and those without one, again at the learning rates next to the chosen one."""

    seeds: Annotated[Seeds, Field(min_length=1)]


class LengthsSpec(Strict):
    """All rows again at these lengths, with the settings and rates that were chosen for the rows themselves."""

    num_epochs: Annotated[list[Count], Field(min_length=1), AfterValidator(once)]
    seeds: Annotated[Seeds, Field(min_length=1)]


class Spec(Strict):
    """A whole experiment file; `restarts`: some of its rows once more, whose workers lose a part of their state."""

    format: Literal[1]
    name: Name
    title: str
    task: TaskSpec
    model: ModelSpec
    training: TrainingSpec
    schedule: ScheduleSpec
    evaluation: EvaluationSpec
    partition: PartitionSpec = PartitionSpec()
    statistics: StatisticsSpec
    tuning: TuningSpec | None = None
    lengths: LengthsSpec | None = None
    sensitivity: SensitivitySpec | None = None
    contrasts: Annotated[list[ContrastSpec], AfterValidator(once)] = []
    rows: list[RowSpec] = []
    grids: list[GridSpec] = []
    restarts: list[RestartOf] = []

    def all_rows(self) -> list[RowSpec]:
        """The rows written out, then those that grids stand for."""
        return [*self.rows, *(row for grid in self.grids for row in grid.rows())]

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        rows = [row.row for row in self.all_rows()]
        if not rows:
            raise ValueError("the experiment has no rows; give [[rows]] or [[grids]]")
        names = rows + [f"{restart.row}~{restart.name}" for restart in self.restarts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two rows are named {twice[0]!r}; give each row a name of its own")
        named = [("baseline", self.statistics.baseline), ("floor", self.statistics.floor)]
        named += [("row to restart", restart.row) for restart in self.restarts]
        contrasted = [("contrast's row", name) for each in self.contrasts for name in (each.row, each.reference)]
        for known, uses in ((rows, named), (names, contrasted)):
            for what, name in uses:
                if name is not None and name not in known:
                    raise ValueError(f"the {what} {name!r} is no row; the rows are {', '.join(known)}")
        if self.contrasts and self.statistics.declared is None:
            raise ValueError(
                "contrasts need statistics.declared, which says what had been seen when they were declared"
            )
        self._check_warmup()
        if self.tuning:
            self._check_tuning(self.tuning)
        return self

    def _check_warmup(self) -> None:
        """Not of grids whose warm-up grows: the released rule makes some that no run outlasts."""
        lengths = [self.training.num_epochs, *(self.lengths.num_epochs if self.lengths else [])]
        shortest = min([*lengths, (self.tuning and self.tuning.num_epochs) or lengths[0]])
        warmups = [("schedule", self.schedule.warmup_epochs + self.schedule.warmup_share * shortest)]
        warmups += [(f"row {row.row!r}", row.warmup_epochs or 0.0) for row in self.rows]
        for where, warmup in warmups:
            if warmup > shortest:
                raise ValueError(
                    f"{where}: a warm-up of {warmup:g} epochs is longer than the shortest run, of num_epochs = "
                    f"{shortest}; lower warmup_epochs, or give schedule.warmup_share instead"
                )

    def _check_tuning(self, tuning: TuningSpec) -> None:
        statistics = self.statistics
        reported = {"statistics.seeds": statistics.seeds, "statistics.baseline_seeds": statistics.baseline_seeds}
        reported |= {"sensitivity.seeds": self.sensitivity.seeds} if self.sensitivity else {}
        reported |= {"lengths.seeds": self.lengths.seeds} if self.lengths else {}
        for name, seeds in (reported | {"tuning.both_rules_seeds": tuning.both_rules_seeds}).items():
            if set(tuning.seeds) & set(seeds):
                raise ValueError(f"tuning.seeds must be other than {name}, or the report would be tuned on itself")
        for row in self.all_rows():
            if row.learning_rate is not None:  # which leaves nothing to try
                continue
            rates = row.learning_rates or tuning.grid
            count = len(row.tables) * len(rates)
            if tuning.num_trials not in (None, count):
                raise ValueError(
                    f"row {row.row!r} begins with {count} trials ({len(row.tables)} tables of settings at {len(rates)} "
                    f"rates) where tuning.num_trials says {tuning.num_trials}; give it other candidates or "
                    "learning_rates"
                )
            outside = [rate for rate in rates if not (tuning.lowest or 0) <= rate <= (tuning.highest or math.inf)]
            if outside:
                raise ValueError(f"row {row.row!r}: the rate {outside[0]:g} lies outside tuning.lowest and highest")


def explain(error: ValidationError) -> str:
    """One of pydantic's complaints as a sentence: an unknown key first, since what is missing may be there misspelt."""
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}; remove it or correct its name"
    return f"{where}: {message}" if where else message
