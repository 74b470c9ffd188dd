"""Experiment specs: TOML, validated strictly. Science lives here; flags are for infrastructure only."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FORMAT = 1
EXPERIMENTS = Path(__file__).parent / "experiments"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class SpecError(ValueError):
    """A spec that cannot be used: the message says where, what is wrong and what to do."""


class Strict(BaseModel):
    """Frozen border type: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TaskSpec(Strict):
    """`name` is a module of harness/tasks; `held_out` training samples are scored instead of the test set if not 0."""

    name: Name
    held_out: Annotated[int, Field(ge=0)] = 0


class ModelSpec(Strict):
    """`name` is a module of harness/models; `options` are its `build` function's."""

    name: Name
    options: dict[str, Any] = {}


class ScheduleSpec(Strict):
    """Learning rate over time, in epochs: linear warm-up from 0, then cosine to 0 or steps at milestones."""

    kind: Literal["constant", "cosine", "milestones"]
    warmup_epochs: NonNegative = 0.0
    milestones: list[Positive] = []
    factor: Positive = 0.2


class EvaluationSpec(Strict):
    """`per_epoch` scores an epoch, evenly spaced.

    `batch_norm`: the running statistics that the workers' average model is scored with. "average": the workers' mean;
    "recalibrate": estimated anew by the average model on training batches.
    """

    per_epoch: Count = 1
    batch_norm: Literal["average", "recalibrate"] = "average"


class RunConfig(Strict):
    """The scientific fields of one run and nothing else; its id is their hash."""

    task: TaskSpec
    model: ModelSpec
    num_workers: Count
    batch_size: Count
    """Samples per worker and step."""
    num_epochs: Count
    algorithm: Name
    settings: dict[str, Any] = {}
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegative
    schedule: ScheduleSpec
    evaluation: EvaluationSpec
    seed: Seed


class RowSpec(Strict):
    """A method at one compression; absent fields come from [training] and from the tuning."""

    row: Name
    label: str
    algorithm: Name
    ratio: Annotated[float, Field(ge=1)]
    """Overall compression ratio, for tables; bits are counted, not computed from it."""
    settings: dict[str, Any] = {}
    learning_rate: Positive | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None


class TrainingSpec(Strict):
    num_workers: Count
    batch_size: Count
    num_epochs: Count
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegative


class StatisticsSpec(Strict):
    """`margin`: non-inferiority margin in accuracy; `confidence` of intervals and one-sided bounds."""

    baseline: Name
    margin: Positive
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seeds: Annotated[list[Seed], Field(min_length=1)]


class TuningSpec(Strict):
    """Its own experiment: every row at every learning rate of `grid`, scored on held-out training samples."""

    grid: Annotated[list[Positive], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    held_out: Count


class Spec(Strict):
    """A whole experiment file."""

    format: Literal[1]
    name: Name
    title: str
    kind: Literal["accuracy", "timing"] = "accuracy"
    task: TaskSpec
    model: ModelSpec
    training: TrainingSpec
    schedule: ScheduleSpec
    evaluation: EvaluationSpec
    statistics: StatisticsSpec
    tuning: TuningSpec | None = None
    rows: Annotated[list[RowSpec], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        names = [row.row for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two rows are named {twice[0]!r}; give each row a name of its own")
        if self.statistics.baseline not in names:
            raise ValueError(f"the baseline {self.statistics.baseline!r} is no row; the rows are {', '.join(names)}")
        seeds = self.statistics.seeds
        if len(set(seeds)) < len(seeds):
            raise ValueError("statistics.seeds holds a seed twice; runs with the same seed would be the same run")
        if self.tuning and set(self.tuning.seeds) & set(seeds):
            raise ValueError("tuning.seeds must be other than statistics.seeds, or the report would be tuned on itself")
        return self


def find_spec(name_or_path: str) -> Path:
    """The file of a shipped experiment by its name, or of any other by its path.

    Raises:
        SpecError: there is no such file; the message names the shipped experiments.
    """
    path = Path(name_or_path)
    shipped = EXPERIMENTS / f"{name_or_path}.toml"
    for candidate in (path, shipped):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(file.stem for file in EXPERIMENTS.glob("*.toml")))
    raise SpecError(f"no experiment {name_or_path!r}: give the path of a TOML file or one of {known}")


def load_spec(path: Path) -> Spec:
    """Read and validate an experiment file.

    Raises:
        SpecError: not TOML, unknown keys, wrong types or impossible values, in one sentence.
    """
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The first of pydantic's complaints as one sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}; remove it or correct its name"
    return f"{where}: {message}" if where else message
