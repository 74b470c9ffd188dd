"""One run: its scientific fields, which are all that its id depends on.

Settings of a method stay as they were written, 8 apart from 8.0, since the id is a hash of them.
`harness.train.method` holds them against the method's class; nothing here needs torch, as records
are read by reports.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    model_validator,
)

from cser_bench.harness.spec.values import (
    Betas,
    CommunicationDtype,
    Count,
    LocalStep,
    Name,
    NonNegative,
    Options,
    Positive,
    Seed,
    ShareBelowOne,
    Strict,
    finite,
    once,
)

Precision = Literal["fp32", "fp16", "bf16"]
"""Dtype of the forward and backward pass; parameters and optimiser state are fp32. fp16 comes with
loss scaling."""

ID_DIGITS = 12
"""Hexadecimal digits of a run's id."""


RUN_LENGTH = "end"
"""What a spec writes for an interval that is as long as the run."""

Plain = bool | int | float | str | None

HALF = 0.5
"""Share of a run after which state is lost, by default."""


class TaskSpec(Strict):
    """The task of a run.

    `name` is a module of harness/tasks. `held_out` training samples are scored instead of the test
    set if not 0.

    `max_undecodable` is always 0: records of before name it.

    `num_train`: train on so many samples, always the same ones, that are never among those
    scored; 0 for all.
    """

    name: Name
    held_out: Annotated[int, Field(ge=0)] = 0
    max_undecodable: Literal[0] = 0
    num_train: Annotated[int, Field(ge=0)] = 0

    @property
    def num_validation(self) -> int:
        """Training samples that are scored instead of the test set; `held_out` in files and records."""
        return self.held_out


class ModelSpec(Strict):
    """The model of a run.

    `name` is one of `harness.models.NETWORKS`. `options` are those of the function that builds it.
    """

    name: Name
    options: Options = {}


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

    `beam`: in records of translation, how many beams sentences were decoded with; 1 is greedy.
    """

    per_epoch: Count = 1
    batch_norm: Literal["average", "recalibrate", "local"] = "average"
    num_scores: Count | None = None
    beam: Annotated[int, Field(ge=1, le=64)] = 1

    def steps(self, num_epochs: int, per_epoch: int) -> set[int]:
        """Return the steps of a run, counted from 1, after which the average is scored.

        The last one is always among them.
        """
        # Score k of n comes after k / n of the run.
        scores = self.num_scores or self.per_epoch * num_epochs
        # With more scores than steps the first ones round to step 0, where there is none.
        return {
            round(number * per_epoch * num_epochs / scores)
            for number in range(1, scores + 1)
        } - {0}


LOCAL_NUMBERS: dict[str, Any] = {"momentum": 0.0, "betas": [0.9, 0.999], "eps": 1e-8}
"""The numbers of local steps, and what a run's config has for those that its local step does not
read."""


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
    """Label smoothing of the training loss; other losses have none."""
    num_steps: Count | None = None
    """The first steps of the epochs, where a run does not take all: equal seeds begin alike at
    every length."""

    @property
    def communication_dtype(self) -> CommunicationDtype:
        """Dtype of the numbers in messages; the field `wire` of files and records."""
        return self.wire

    @property
    def num_schedule_epochs(self) -> int:
        """Epochs as schedule and scores count them."""
        return self.num_epochs if self.num_steps is None else 1


class CompressorSettings(BaseModel):
    """A compressor of a spec, for instance {kind = "block", ratio = 512}.

    `kind` is the compressor's name in `algorithms/compressors`. All other keys are its options,
    such as its compression ratio R, that of one message.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """The options of the compressor's class, as they were given."""
        return dict(self.model_extra or {})


def _as_value(given: Any) -> Any:
    """Return a value of a table as a setting; a table in it is a compressor."""
    finite({"value": given})
    if not isinstance(given, dict):
        return given
    if not isinstance(given.get("kind"), str):
        raise ValueError(
            f'{given!r} is no compressor; give its kind, as in {{ kind = "top_k", ratio = 192 }}'
        )
    return CompressorSettings(**given)


Value = Annotated[Plain | list[Plain] | CompressorSettings, BeforeValidator(_as_value)]


class MethodSettings(RootModel[dict[str, Value]]):
    """All settings that a spec gives a method; those left at their defaults are absent."""

    model_config = ConfigDict(frozen=True, strict=True)

    root: dict[str, Value] = {}

    @property
    def table(self) -> dict[str, Any]:
        """The settings as files and records have them."""
        table: dict[str, Any] = self.model_dump(mode="json")
        return table

    def __bool__(self) -> bool:
        return bool(self.root)

    def changed_by(self, other: MethodSettings) -> MethodSettings:
        """Return these settings, and the other ones in their place where both have a name."""
        return MethodSettings(self.root | other.root)

    def filled_in(self, numbers: dict[str, float]) -> MethodSettings:
        """Return the settings with a number for each word that names one."""
        return MethodSettings(_filled_in(self.table, numbers))


def _filled_in(table: dict[str, Any], numbers: dict[str, float]) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            filled[key] = _filled_in(value, numbers)
        elif isinstance(value, str):
            filled[key] = numbers.get(value, value)
        else:
            filled[key] = value
    return filled


class PartitionSpec(Strict):
    """How samples are divided among workers; see `harness.train.order`."""

    kind: Literal["reshuffled", "contiguous", "dirichlet", "class_shards"] = (
        "reshuffled"
    )
    alpha: Positive = 1.0
    shards_per_worker: Count = 2


class RestartSpec(Strict):
    """A restart at a share of the run: workers go on without a part of their state.

    They go on as from a checkpoint that lacks that part.

    `without`: names of the method's own vectors, or "parameters", in whose place worker 0's are
    taken; what they hold next is what an optimiser holds that is made anew. `at`: the share of the
    run's steps after which this is so. `worker`: the rank of the only one who loses it; None for
    all workers. `everything_sent`: instead of a loss, all go on from their average model and send
    every gradient whole, with a new optimiser: a synchronous tail.
    """

    without: Annotated[list[Name], AfterValidator(once)] = []
    everything_sent: bool = False
    at: Annotated[float, Field(gt=0, lt=1)] = HALF
    worker: Annotated[int, Field(ge=0)] | None = None

    @property
    def name(self) -> str:
        """Return the restart's part of a row's name: what is lost, by which worker, and when.

        The worker is omitted if all lose it, the time if it is half of the run.
        """
        name = "everything_sent" if self.everything_sent else "+".join(self.without)
        if self.worker is not None:
            name += f"-worker{self.worker}"
        if self.at != HALF:
            name += f"-at{self.at:g}"
        return name

    def is_due(self, step: int, num_steps: int) -> bool:
        """Say whether the restart comes after this many steps of the run."""
        return step == round(self.at * num_steps)

    @model_validator(mode="after")
    def _consistent(self) -> RestartSpec:
        if self.everything_sent == bool(self.without):
            raise ValueError(
                "a restart has either `without`, with a name at least, or everything_sent = true"
            )
        if self.everything_sent and self.worker is not None:
            raise ValueError("everything_sent concerns all workers; leave `worker` out")
        return self


class MethodSource(Strict):
    """The source of a method from outside this package, as it was when its runs were planned.

    It goes with a run's config, so that the run's processes need no file, and a run that goes on
    has the code that it began with.

    `file`: its name, without folders. `package`: name and version of the installed package that it
    is of, if it is of one; what the file imports from there is known by that.
    """

    file: str
    sha256: str
    source: str
    package: str | None = None

    @classmethod
    def of(cls, file: str, source: str, package: str | None = None) -> MethodSource:
        """Return the source with its digest."""
        return cls(file=file, sha256=sha256_of(source), source=source, package=package)

    @model_validator(mode="after")
    def _consistent(self) -> MethodSource:
        if self.sha256 != sha256_of(self.source):
            raise ValueError(f"the source of {self.file} is not that of its digest")
        return self


def sha256_of(text: str) -> str:
    """Return the digest of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


NOT_IN_ID = {"method_source": {"file", "source"}}
"""Fields that are not part of a run's id: an outside method's digest is, and stands for its source
whatever the file's name."""


class RunConfig(TrainingSpec):
    """The scientific fields of one run and nothing else; its id is their hash."""

    task: TaskSpec
    model: ModelSpec
    algorithm: Name
    settings: MethodSettings = MethodSettings()
    learning_rate: Positive
    schedule: ScheduleSpec
    evaluation: EvaluationSpec
    partition: PartitionSpec = PartitionSpec()
    seed: Seed
    repeat: int = 0
    """Number that distinguishes runs with the same seed."""
    restart: RestartSpec | None = None
    """State that workers lose in the middle of the run, to see what that costs."""
    method_source: MethodSource | None = None
    """Source of a method from outside this package; None for shipped methods."""

    def with_everything_sent(self) -> RunConfig:
        """Return the run by the method that sends every gradient whole."""
        return self.model_copy(
            update={
                "algorithm": "sgd",
                "settings": MethodSettings(),
                "method_source": None,
            }
        )


def run_id(config: RunConfig) -> str:
    """Return the hash of the scientific fields alone.

    Fields at their default are left out, so that new ones change no old id.
    """
    # A default must therefore never change: old ids would stand for other runs.
    fields = config.model_dump(mode="json", exclude_defaults=True, exclude=NOT_IN_ID)
    return sha256_of(json.dumps(fields, sort_keys=True))[:ID_DIGITS]


def is_run_id(text: object) -> bool:
    """Say whether a text has the form of a run's id.

    Such an id names a folder in its experiment's and no other place.
    """
    return (
        isinstance(text, str)
        and re.fullmatch(f"[0-9a-f]{{{ID_DIGITS}}}", text) is not None
    )


class PlannedRun(NamedTuple):
    """One run to do: a row of the table at one seed."""

    run_id: str
    row: str
    seed: int
    config: RunConfig
