"""What an experiment says, validated strictly.

Science lives here; flags are for infrastructure only.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cser_bench.harness.spec.evidence import EvidenceSpec
from cser_bench.harness.spec.rows import (
    CellSpec,
    GridSpec,
    PartitionSpec,
    RestartOf,
    RowSpec,
)
from cser_bench.harness.spec.run import (
    EvaluationSpec,
    MethodSource,
    ModelSpec,
    ScheduleSpec,
    TaskSpec,
    TrainingSpec,
)
from cser_bench.harness.spec.stages import StageSpec
from cser_bench.harness.spec.values import (
    Count,
    Name,
    Positive,
    Rates,
    Seed,
    Seeds,
    Strict,
    Text,
    once,
)

OF_KIND = {
    "schedule": {"milestones": "milestones", "factor": "milestones"},
    "partition": {"alpha": "dirichlet", "shards_per_worker": "class_shards"},
}
"""Keys that have an effect for one kind only, by table, each with that kind."""

LONGEST_NAME = 100
"""Letters of an experiment's name. Folders and files are called by it, with more behind it."""


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
    where this experiment's own cells have the lengths."""


class TuningSpec(Strict):
    """An experiment of its own that tunes: every row's settings at every rate of `grid`.

    They are scored on held-out training samples.

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
    1. Asked is whether the exponent of the model's parameters ("size"), of a run's rounds of
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


class Spec(Strict):
    """A whole experiment file.

    `cells`: its rows once more, at other sizes and lengths. `restarts`: some of its rows once more,
    whose workers lose a part of their state. `stages`: parts of its runs, the first to do first.
    `evidence`: what it stands for in answers.
    """

    format: Literal[1]
    name: Name
    title: Text
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
    contrasts: list[ContrastSpec] = []
    exponents: list[ExponentSpec] = []
    predictions: list[PredictionSpec] = []
    rows: list[RowSpec] = []
    grids: list[GridSpec] = []
    cells: list[CellSpec] = []
    restarts: list[RestartOf] = []
    stages: list[StageSpec] = []
    evidence: EvidenceSpec | None = None
    outside: dict[str, MethodSource] = {}
    """Methods from outside this package, by the name that rows have. Commands put them there; no
    file may."""

    def all_rows(self) -> list[RowSpec]:
        """Return all rows, in their order.

        First those that are written out, then those that grids stand for, and then all of these in
        each cell that has them.
        """
        rows = [*self.rows, *(row for grid in self.grids for row in grid.rows())]
        return rows + [
            row.at(cell)
            for cell in self.cells
            for row in rows
            if row.cells is None or cell.cell in row.cells
        ]

    def corners_of(self, row: RowSpec) -> list[str]:
        """Return the cells in which a row is tuned for all others.

        None where each row is tuned for itself.
        """
        if row.cell is not None and row.cell.tuned:
            return []
        return row.corners or (self.tuning.corners if self.tuning else [])

    def is_tuned(self, row: RowSpec) -> bool:
        """Say whether the tuning has trials of this row.

        It has where the row has no learning rate, nor one between those of its corners.
        """
        corners = self.corners_of(row)
        in_corner = row.cell is not None and row.cell.cell in corners
        return row.learning_rate is None and (in_corner or not corners)

    def rows_to_tune(self) -> list[RowSpec]:
        """Return the rows that the tuning has trials of."""
        return [row for row in self.all_rows() if self.is_tuned(row)]

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        self._check_name()
        if self.outside:
            raise ValueError(
                "outside is no key of a file; name methods by --methods FILE.py"
            )
        rows = [row.row for row in self.all_rows()]
        if not rows:
            raise ValueError("the experiment has no rows; give [[rows]] or [[grids]]")
        names = rows + [f"{restart.row}~{restart.name}" for restart in self.restarts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two rows are named {twice[0]!r}; give each row a name of its own"
            )
        named = [
            ("baseline", self.statistics.baseline),
            ("floor", self.statistics.floor),
        ]
        named += [("row to restart", restart.row) for restart in self.restarts]
        named += [
            ("row of an exponent", name)
            for asked in self.exponents
            for name in [*asked.rows, *asked.than]
        ]
        named += [
            ("row of a prediction", predicted.row) for predicted in self.predictions
        ]
        contrasted = [
            ("contrast's row", name)
            for each in self.contrasts
            for name in (each.row, each.reference)
        ]
        shown = [
            ("row of [evidence]", name)
            for name in (self.evidence.named_rows() if self.evidence else ())
        ]
        # Restarted rows are compared and shown, but are no baseline or floor, nor restarted again.
        for known, uses in ((rows, named), (names, contrasted), (names, shown)):
            for what, name in uses:
                if name is not None and name not in known:
                    raise ValueError(
                        f"the {what} {name!r} is no row; the rows are {', '.join(known)}"
                    )
        if self.statistics.floor == self.statistics.baseline:
            raise ValueError(
                f"statistics.floor is the baseline {self.statistics.baseline!r}; name the row that "
                "sends nothing, or leave floor out"
            )
        declared = self.contrasts or self.exponents or self.predictions
        if declared and self.statistics.declared is None:
            raise ValueError(
                "contrasts, exponents and predictions need statistics.declared, which says what "
                "had been seen when they were made"
            )
        self._check_cells()
        self._check_contrasts()
        self._check_idle()
        self._check_warmup()
        if self.tuning:
            self._check_tuning(self.tuning)
        return self

    def _check_name(self) -> None:
        if len(self.name) > LONGEST_NAME:
            raise ValueError(
                f"the experiment's name has {len(self.name)} letters; give one of at most "
                f"{LONGEST_NAME}, as folders are called by it"
            )
        if self.name.endswith("_tuning"):
            raise ValueError(
                f"the name {self.name!r} ends in _tuning, as those of tunings do; give another one"
            )

    def _check_cells(self) -> None:
        cells = [cell.cell for cell in self.cells]
        uses = [
            (f"row {row.row!r}", cell)
            for row in self.rows
            for cell in [*(row.cells or []), *row.corners]
        ]
        uses += [
            ("tuning.corners", cell)
            for cell in (self.tuning.corners if self.tuning else [])
        ]
        for where, cell in uses:
            if cell not in cells:
                raise ValueError(
                    f"{where} names the cell {cell!r}; the cells are {', '.join(cells) or 'none'}"
                )
        if self._has_num_steps and (
            self.lengths or (self.tuning and self.tuning.num_epochs)
        ):
            raise ValueError(
                "runs of num_steps are not as long as epochs say; give other lengths as [[cells]]"
            )
        if self.cells and self.sensitivity:
            raise ValueError("[sensitivity] knows nothing of [[cells]]; leave one out")

    @property
    def _has_num_steps(self) -> bool:
        return self.training.num_steps is not None or any(
            cell.num_steps for cell in self.cells
        )

    def _check_contrasts(self) -> None:
        """Check that each contrast is a question of its own.

        All tests share 5 %, so one that is none takes from the others.
        """
        asked = Counter(
            (contrast.row, contrast.reference, contrast.kind)
            for contrast in self.contrasts
        )
        for (row, reference, kind), count in asked.items():
            if row == reference:
                raise ValueError(
                    f"a contrast holds row {row!r} against itself; name another reference"
                )
            if count > 1:
                raise ValueError(
                    f"two contrasts ask for the {kind} of {row!r} to {reference!r}; leave one of "
                    "them"
                )
            if (reference, row, kind) in asked:
                instead = (
                    "; ask for their equivalence in its place"
                    if kind == "non-inferiority"
                    else "; leave one"
                )
                raise ValueError(
                    f"the {kind} of {row!r} and {reference!r} is asked for both ways{instead}"
                )

    def _check_idle(self) -> None:
        """Check that what is written does something.

        Else whoever wrote it believes in an experiment that is not this one.
        """
        rows = self.all_rows()
        parts: list[tuple[str, str, ScheduleSpec | PartitionSpec]] = [
            ("schedule", "schedule", self.schedule)
        ]
        parts += [("partition", "partition", self.partition)]
        parts += [
            (f"row {row.row!r}: partition", "partition", row.partition)
            for row in rows
            if row.partition
        ]
        for where, table, part in parts:
            kinds = OF_KIND[table]
            for key in sorted(part.model_fields_set & kinds.keys()):
                if part.kind != kinds[key]:
                    raise ValueError(
                        f"{where}.{key} does nothing where the kind is {part.kind!r}, only where "
                        f"it is {kinds[key]!r}; remove it or change the kind"
                    )
        longest = max(
            [
                self.training.num_schedule_epochs,
                *(self.lengths.num_epochs if self.lengths else []),
            ]
        )
        late = [
            milestone for milestone in self.schedule.milestones if milestone >= longest
        ]
        if late:
            raise ValueError(
                f"schedule.milestones: the rate never falls at {late[0]:g}, as the longest run ends "
                f"after {longest} epochs (one of num_steps counts as 1); lower or remove it"
            )
        warmups = [
            self.schedule.warmup_epochs,
            self.schedule.warmup_share,
            *(row.warmup_epochs for row in rows),
        ]
        if self.schedule.staircase_warmup and not any(warmups):
            raise ValueError(
                "schedule.staircase_warmup does nothing without a warm-up; remove it or give "
                "warmup_epochs"
            )
        if (
            self.evaluation.num_scores is not None
            and "per_epoch" in self.evaluation.model_fields_set
        ):
            raise ValueError(
                "evaluation.per_epoch has no effect with evaluation.num_scores; remove one of them"
            )
        if self.tuning and self.tuning.both_rules_seeds and not self.tuning.both_rules:
            raise ValueError(
                "tuning.both_rules_seeds does nothing without both_rules = true; give that or "
                "remove it"
            )

    def _check_warmup(self) -> None:
        """Check that warm-ups end within their runs, except in grids whose warm-up grows.

        The released rule makes some of those longer than any run.
        """
        lengths = [
            self.training.num_schedule_epochs,
            *(self.lengths.num_epochs if self.lengths else []),
        ]
        shortest = min(
            [*lengths, (self.tuning and self.tuning.num_epochs) or lengths[0]]
        )
        # A schedule counts a run of num_steps as one epoch.
        shortest = 1 if self._has_num_steps else shortest
        warmups = [
            (
                "schedule",
                self.schedule.warmup_epochs + self.schedule.warmup_share * shortest,
            )
        ]
        warmups += [(f"row {row.row!r}", row.warmup_epochs or 0.0) for row in self.rows]
        for where, warmup in warmups:
            if warmup > shortest:
                raise ValueError(
                    f"{where}: a warm-up of {warmup:g} epochs is longer than the shortest run, of "
                    f"num_epochs = {shortest}; lower warmup_epochs, or give schedule.warmup_share "
                    "instead"
                )

    def _check_tuning(self, tuning: TuningSpec) -> None:
        if tuning.finalists and len(tuning.seeds) == 1:
            raise ValueError(
                "tuning.finalists does nothing with one seed, at which every trial is tried; give "
                "tuning.seeds another, or remove it"
            )
        statistics = self.statistics
        reported = {
            "statistics.seeds": statistics.seeds,
            "statistics.baseline_seeds": statistics.baseline_seeds,
        }
        reported |= (
            {"sensitivity.seeds": self.sensitivity.seeds} if self.sensitivity else {}
        )
        reported |= {"lengths.seeds": self.lengths.seeds} if self.lengths else {}
        reported |= {
            f"the seeds of cell {cell.cell}": cell.seeds for cell in self.cells
        }
        for name, seeds in (
            reported | {"tuning.both_rules_seeds": tuning.both_rules_seeds}
        ).items():
            if set(tuning.seeds) & set(seeds):
                raise ValueError(
                    f"tuning.seeds must be other than {name}, or the report would be tuned on "
                    "itself"
                )
        for row in self.all_rows():
            if row.learning_rate is not None:  # which leaves nothing to try
                continue
            if self.corners_of(row) and not self.is_tuned(row):
                continue
            rates = row.learning_rates or tuning.grid
            count = len(row.settings_to_try) * len(rates)
            if tuning.num_trials not in (None, count):
                raise ValueError(
                    f"row {row.row!r} begins with {count} trials ({len(row.settings_to_try)} tables of "
                    f"settings at {len(rates)} rates) where tuning.num_trials says "
                    f"{tuning.num_trials}; give it other candidates or learning_rates"
                )
            outside = [
                rate
                for rate in rates
                if not (tuning.lowest or 0) <= rate <= (tuning.highest or math.inf)
            ]
            if outside:
                raise ValueError(
                    f"row {row.row!r}: the rate {outside[0]:g} lies outside tuning.lowest and "
                    "highest"
                )
        # One that names another's records says where the rates of its rows are from.
        if not tuning.records and not self.rows_to_tune():
            raise ValueError(
                "[tuning] does nothing, as every row has a learning_rate; remove it, or the rates"
            )
