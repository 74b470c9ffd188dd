"""experiment.json: the resolved plan of an experiment.

It has the rows, where their settings came from, and the metric. Its keys are those on disk, but for
those with an alias, and apart from the spec's: `harness.plan.recorded` says which becomes which, so a
key of the spec may be renamed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from cser_bench.harness.records.store import NoRecordsError, Record, read_record
from cser_bench.harness.spec.evidence import Role

__all__ = ["Role"]  # for reports, which know records alone


class Planned(Record):
    """A part of the plan.

    Keys that are unknown are left out: older versions wrote settings as words too.
    """

    model_config = ConfigDict(extra="ignore")


ChosenBy = Literal["held_out", "training_loss", "sensitivity"]
"""How a row's settings and learning rate were chosen: by score on validation
samples, by training loss, or as those of another row, at a rate beside that one's."""


class Row(Planned):
    """One line of the accuracy table.

    It is a method at a ratio and a learning rate, with a run per seed.
    """

    row: str
    label: str
    algorithm: str
    ratio_group: float = Field(alias="ratio")
    """Ratio by which tables group rows; `models_sent` and `link_models` are what is sent."""
    learning_rate: float
    tunes: str | None = None
    settings: dict[str, Any]
    """The method's own settings as its spec has them: compressors as tables with `kind` and
    `ratio`, intervals, topology; those left at their defaults are absent."""
    local_step: str
    momentum: float
    """0 where the local step has none; `betas` and `eps` are at their defaults there."""
    nesterov: bool
    """Whether the momentum is Nesterov's; else the method has heavy ball with dampening."""
    betas: list[float]
    eps: float
    weight_decay: float
    num_epochs: int
    warmup_epochs: float | None = None
    """The row's own warm-up; None where it has the experiment's."""
    partition: dict[str, Any] | None = None
    """How the row's samples are divided among workers; None where that is as the experiment
    says."""
    wire: str | None = None
    """The type of the numbers that the row sends; None where it is the experiment's."""
    num_workers: int | None = None
    """The row's own number of workers; None where it is the experiment's."""
    restart: dict[str, Any] | None = None
    """What workers lose in the middle of a run: `without` (parts of the state), `at` (share of the
    run), `worker`."""
    formula: str
    num_steps: int
    num_parameters: int
    expected_bits: int
    runs: dict[str, str]
    """Run id per seed (the seed as a string, as JSON has it)."""
    repeats: str | None = Field(default=None, alias="base")
    """The row that this one repeats, at another length or under another rule of selection; None for
    one of its own."""
    chosen_by: ChosenBy = Field(default="held_out", alias="rule")
    held_back: bool = False
    """Whether it was declared to be no part of the fit of a power law of gaps; no longer
    evaluated."""
    candidate: int | None = None
    """For a tuning row, the number of its table of settings among the row's, from 0."""
    final_exchange: bool = False
    """Whether the workers' models differ at the end, so that one full exchange must follow before
    anyone can use it."""
    models_sent: float | None = None
    """What one worker sends in a run, in models of 32 d bits, the final exchange included."""
    link_models: float | None = None
    """What one worker's link carries for that: 2 (n-1)/n of a payload all-reduced in a ring, n-1 of
    one gathered, and once what is sent to a neighbour."""
    peak_models: float | None = None
    """The most that a worker holds in a step that synchronises, in models: parameters, gradients,
    state and messages, activations left out."""
    spectral_gap: float | None = None
    """Spectral gap of the topology; None if workers have no neighbours."""


class Contrast(Planned):
    """A comparison of two rows, and when it was declared; see `harness.measures.declared`."""

    row: str
    reference: str
    kind: Literal["non-inferiority", "superiority", "equivalence"]
    """What is to be shown of row minus reference; see `ContrastSpec` in `harness.spec.statistics`."""
    question: str
    margin: float
    """In the unit of the score (0.01 is one percentage point of accuracy)."""
    declared_at: str | None = None
    """When it was declared: when the record first had it, or when `declared_in` was committed;
    None: not known."""
    declared_in: str | None = None
    """The commit that declared it, where its time is from git history."""
    is_verdict_kept: bool = False
    """It was declared after runs of both rows had begun, and its verdict, published before such had
    none, stands."""

    @property
    def num_tests(self) -> int:
        """Number of one-sided tests that the contrast takes.

        Non-inferiority: the drop is below the margin; above it. Superiority: better; worse.
        Equivalence: equal within the margin; beyond it on either side.
        """
        return 3 if self.kind == "equivalence" else 2


class Exponent(Planned):
    """A question about the exponents of a power law of gaps, which is no longer evaluated.

    It counts as a test of the experiment's family, with the p that it had, or with 1.
    """

    rows: list[str]
    of: Literal["size", "rounds", "interval"]
    than: list[str] = Field(default_factory=list)
    question: str
    p: float | None = None
    """Of its one-sided test, from when the law was evaluated; None: it never was for this record."""


class PlannedEvidence(Planned):
    """What the experiment is about; `EvidenceSpec` in `harness.spec.evidence` says what each is."""

    roles: list[str]
    network: str
    order: int = 1000
    advice: str | None = None


class Prediction(Planned):
    """The statistical efficiency that a row was predicted to have, before its runs.

    Attributes:
        efficiency: the predicted value; None where it is what `experiment` measures of its row of
            the same name.
        tolerance: the largest |ln(measured / predicted)| that counts as equal.
        source: where the prediction comes from, in words.
    """

    row: str
    tolerance: float
    source: str
    efficiency: float | None = None
    experiment: str | None = None


class Choice(Planned):
    """What the tuning chose for a row, and how."""

    learning_rate: float
    candidate: int
    settings: dict[str, Any]
    num_trials: int
    """Pairs of settings and learning rate that were tried for the row, extensions of the grid among
    them."""
    at_end: bool
    """Whether the rate is the smallest or largest tried with these settings: a better one may lie
    outside."""


class Tuning(Planned):
    """Where settings and learning rates came from, by the search of `harness.plan.search`."""

    experiment: str
    grid: list[float]
    seeds: list[int]
    selected: dict[str, float]
    """The chosen learning rate by row."""
    choices: dict[str, Choice] = Field(default_factory=dict)
    """By row, under the rule that the report's rows follow."""
    choices_by_training_loss: dict[str, Choice] = Field(default_factory=dict)
    """By row, under the paper's rule, least training loss."""


class OutsideMethod(Planned):
    """A method that is not of this package: its file, the digest of that, and its package.

    `package`: name and version, where an installed one has it. Each run's config has the source.
    """

    file: str
    sha256: str
    package: str | None = None


class Experiment(Planned):
    """experiment.json: the resolved plan, so that a report knows what is missing."""

    version: int
    name: str
    title: str
    task: str
    model: str
    baseline: str | None = None
    """Row that the others are compared with; None in a tuning, as all that comparisons need."""
    margin: float | None = None
    """Non-inferiority margin, in accuracy (0.01 is one percentage point)."""
    confidence: float
    seeds: list[int]
    rows: list[Row]
    tuning: Tuning | None
    config: dict[str, Any]
    """What all rows have in common, named as in a run's config: task, model, num_workers,
    batch_size, schedule, evaluation, partition, precision, wire, label_smoothing."""
    commands: list[str]
    floor: str | None = None
    """Row without communication, each worker on its own shard. What lies between it and the baseline
    can be lost."""
    margin_reason: str | None = None
    """Why the margin is what it is, in a sentence."""
    main_ratio_group: float | None = Field(default=None, alias="main_ratio")
    """The rows' ratio group in which the report's first answers are given."""
    metric: str | None = None
    """Name of the metric that rows are compared by, see `METRICS`; None is accuracy."""
    declared: str | None = None
    """Which runs had been seen when the contrasts were declared, in words."""
    contrasts: list[Contrast] | None = None
    exponents: list[Exponent] | None = None
    """Questions that are no longer evaluated. Each still counts as a test."""
    predictions: list[Prediction] | None = None
    curve: str | None = None
    """The experiment that ran the baseline at several lengths; None where its own cells have
    them, or none has."""
    evidence: PlannedEvidence | None = None
    next_stage: str | None = None
    """What the stage after the one that was last done or submitted adds, and what that takes, in
    words; None where there is none."""
    families: dict[str, str] = Field(default_factory=dict)
    """The family of each algorithm of the rows, as its class says it."""
    outside: dict[str, OutsideMethod] = Field(default_factory=dict)
    """Those of the algorithms that are not of this package."""


def read_experiment(folder: Path) -> Experiment:
    """Read results/<experiment>/experiment.json.

    Raises NoRecordsError: it is absent; RecordError: it is damaged or of another version.
    """
    path = folder / "experiment.json"
    if not path.exists():
        raise NoRecordsError(
            f"{folder} holds no experiment.json; give the folder that an experiment was run into"
        )
    return read_record(path, Experiment)
