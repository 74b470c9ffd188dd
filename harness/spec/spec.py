"""What an experiment says, validated strictly.

Science lives here; flags are for infrastructure only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from cser_bench.harness.spec.evidence import EvidenceSpec
from cser_bench.harness.spec.rows import CellSpec, GridSpec, RestartOf, RowSpec
from cser_bench.harness.spec.run import (
    EvaluationSpec,
    MethodSource,
    ModelSpec,
    PartitionSpec,
    ScheduleSpec,
    TaskSpec,
    TrainingSpec,
)
from cser_bench.harness.spec.stages import StageSpec
from cser_bench.harness.spec.statistics import (
    ContrastSpec,
    ExponentSpec,
    PredictionSpec,
    StatisticsSpec,
)
from cser_bench.harness.spec.tuning import LengthsSpec, SensitivitySpec, TuningSpec
from cser_bench.harness.spec.values import Name, Strict, Text

OF_KIND = {
    "schedule": {"milestones": "milestones", "factor": "milestones"},
    "partition": {"alpha": "dirichlet", "shards_per_worker": "class_shards"},
}
"""Keys that have an effect for one kind only, by table, each with that kind."""

LONGEST_NAME = 100
"""Letters of an experiment's name. Folders and files are called by it, with more behind it."""


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
        # The order decides nothing of a run, but plans, records and reports keep it.
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
        # Names before all else, as the other checks look rows and cells up by them.
        self._check_row_names()
        self._check_named_rows()
        self._check_comparisons()
        self._check_cells()
        self._check_contrasts()
        self._check_idle()
        self._check_warmup()
        if self.tuning:
            self._check_tuning(self.tuning)
        return self

    @property
    def _own_names(self) -> list[str]:
        """The names of rows, those in cells among them."""
        return [row.row for row in self.all_rows()]

    @property
    def _restarted_names(self) -> list[str]:
        return [f"{restart.row}~{restart.name}" for restart in self.restarts]

    def _check_row_names(self) -> None:
        names = self._own_names
        if not names:
            raise ValueError("the experiment has no rows; give [[rows]] or [[grids]]")
        names += self._restarted_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two rows are named {twice[0]!r}; give each row a name of its own"
            )

    def _check_named_rows(self) -> None:
        """Check that rows exist where the spec names some."""
        own = [("baseline", self.statistics.baseline), ("floor", self.statistics.floor)]
        own += [("row to restart", restart.row) for restart in self.restarts]
        own += [
            ("row of an exponent", name)
            for asked in self.exponents
            for name in [*asked.rows, *asked.than]
        ]
        own += [
            ("row of a prediction", predicted.row) for predicted in self.predictions
        ]
        own_or_restarted = [
            ("contrast's row", name)
            for contrast in self.contrasts
            for name in (contrast.row, contrast.reference)
        ]
        rows = self._own_names
        _check_exist(own, rows)
        # Restarted rows are compared and shown, but are no baseline or floor, nor restarted again.
        _check_exist(own_or_restarted, rows + self._restarted_names)

    def _check_comparisons(self) -> None:
        """Check that the floor is a row of its own, and that it is said what a declaration is."""
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
        for row in self.rows:
            if row.num_steps is not None and self.cells and row.cells != []:
                raise ValueError(
                    f"row {row.row!r} has num_steps, so it can be in no cell; give it cells = []"
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
        # By row, reference and kind: two margins of one kind are one question.
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
        self._check_idle_kinds()
        self._check_idle_schedule()
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

    def _check_idle_kinds(self) -> None:
        """Check that schedule and partitions give no key of another kind."""
        parts: list[tuple[str, str, ScheduleSpec | PartitionSpec]] = [
            ("schedule", "schedule", self.schedule),
            ("partition", "partition", self.partition),
        ]
        parts += [
            (f"row {row.row!r}: partition", "partition", row.partition)
            for row in self.all_rows()
            if row.partition
        ]
        for where, table, part in parts:
            kinds = OF_KIND[table]
            # Those that the file gives: all others are at their defaults.
            # Sorted, so that the error names the same key each time.
            for key in sorted(part.model_fields_set & kinds.keys()):
                if part.kind != kinds[key]:
                    raise ValueError(
                        f"{where}.{key} does nothing where the kind is {part.kind!r}, only where "
                        f"it is {kinds[key]!r}; remove it or change the kind"
                    )

    def _check_idle_schedule(self) -> None:
        """Check that the rate falls at each milestone, and that a staircase has a warm-up."""
        longest = max(self._lengths)
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
            *(row.warmup_epochs for row in self.all_rows()),
        ]
        if self.schedule.staircase_warmup and not any(warmups):
            raise ValueError(
                "schedule.staircase_warmup does nothing without a warm-up; remove it or give "
                "warmup_epochs"
            )

    @property
    def _lengths(self) -> list[int]:
        """The lengths of the experiment's runs in epochs, as its schedule counts them."""
        others = self.lengths.num_epochs if self.lengths else []
        return [self.training.num_schedule_epochs, *others]

    def _check_warmup(self) -> None:
        """Check that warm-ups end within their runs, except in grids whose warm-up grows.

        The released rule makes some of those longer than any run.
        """
        lengths = self._lengths
        if self.tuning and self.tuning.num_epochs:
            lengths.append(self.tuning.num_epochs)
        shortest = min(lengths)
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
        self._check_tuning_seeds(tuning)
        for row in self.all_rows():
            is_from_corners = bool(self.corners_of(row)) and not self.is_tuned(row)
            # A rate that is given, or lies between those of corners, leaves nothing to try.
            if row.learning_rate is None and not is_from_corners:
                _check_trials(row, tuning)
        # One that names another's records says where the rates of its rows are from.
        if not tuning.records and not self.rows_to_tune():
            raise ValueError(
                "[tuning] does nothing, as every row has a learning_rate; remove it, or the rates"
            )

    def _check_tuning_seeds(self, tuning: TuningSpec) -> None:
        """Check that no seed that is tuned at is one that is reported."""
        reported = {
            "statistics.seeds": self.statistics.seeds,
            "statistics.baseline_seeds": self.statistics.baseline_seeds,
        }
        if self.sensitivity:
            reported["sensitivity.seeds"] = self.sensitivity.seeds
        if self.lengths:
            reported["lengths.seeds"] = self.lengths.seeds
        for cell in self.cells:
            reported[f"the seeds of cell {cell.cell}"] = cell.seeds
        reported["tuning.both_rules_seeds"] = tuning.both_rules_seeds
        for where, seeds in reported.items():
            if set(tuning.seeds) & set(seeds):
                raise ValueError(
                    f"tuning.seeds must be other than {where}, or the report would be tuned on "
                    "itself"
                )


def _check_exist(uses: Sequence[tuple[str, str | None]], rows: list[str]) -> None:
    """Raise ValueError where a use of a row, with what it is to be, names none of these."""
    for what, name in uses:
        if name is not None and name not in rows:
            raise ValueError(
                f"the {what} {name!r} is no row; the rows are {', '.join(rows)}"
            )


def _check_trials(row: RowSpec, tuning: TuningSpec) -> None:
    """Check that a row begins with as many trials as others, at rates that may be tried."""
    rates = row.learning_rates or tuning.grid
    num_tables = len(row.settings_to_try)
    count = num_tables * len(rates)
    if tuning.num_trials not in (None, count):
        raise ValueError(
            f"row {row.row!r} begins with {count} trials ({num_tables} tables of "
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
