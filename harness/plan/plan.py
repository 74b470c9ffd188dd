"""From a spec to the plan of an experiment or of its tuning, in one direction.

A file is parsed and completed from the experiment that its `like` key names
(`spec_file.read_spec`), the tuning's records give settings and rates (`tuning.choose`), and with
them each row becomes runs (`rows.plan_row`), all of which are checked (`checks`).
"""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cser_bench.harness.plan.checks import (
    check_numbers_are_read,
    check_rows,
    check_spec,
)
from cser_bench.harness.plan.footprint import Footprint
from cser_bench.harness.plan.outside import Outside, outside_methods
from cser_bench.harness.plan.recorded import record_of, tuning_record_of
from cser_bench.harness.plan.rows import PlannedRow, RowOrigin, TooShortError, plan_row
from cser_bench.harness.plan.search import neighbouring_rates
from cser_bench.harness.plan.tuning import Chosen, choose, trial_rows
from cser_bench.harness.records.experiment import Experiment
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.rows import RowSpec
from cser_bench.harness.spec.run import PlannedRun
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.spec.spec_file import find_spec, read_spec
from cser_bench.harness.spec.stages import StageSpec, check_stages


@dataclass(frozen=True)
class Plan:
    """All runs of an experiment, and what the report needs to know of it."""

    experiment: Experiment
    runs: list[PlannedRun]
    footprints: dict[str, Footprint]
    """Footprint of each row's runs, by row."""
    left_out: list[str] = field(default_factory=list)
    """A sentence for each row that was left out: not tuned yet, or impossible at this length."""
    seed_deviation: float | None = None
    """Standard deviation of a row's scores between seeds, as the spec expects it."""
    inherited: str | None = None
    """What the spec inherits through `like`, in words; None if it has no `like`."""
    stages: list[StageSpec] = field(default_factory=list)
    """The stages that the runs can be done in."""
    stage: str | None = None
    """The stage whose runs `runs` are; None if they are not a stage's."""
    next_stage: Plan | None = None
    """The runs that the stage after `stage` adds; None where there is none."""

    @property
    def by_id(self) -> dict[str, PlannedRun]:
        """The distinct runs by id: rows may share one."""
        return {run.run_id: run for run in self.runs}

    def at_stage(self, name: str) -> Plan:
        """Return the plan with only the runs of a stage, and with those that the next one adds.

        Raises SpecError where there is no such stage.
        """
        # In the order in which they are done.
        names = [stage.stage for stage in self.stages]
        if not names:
            raise SpecError(f"{self.experiment.name} has no stages; leave --stage out")
        if name not in names:
            raise SpecError(
                f"{self.experiment.name} has no stage {name!r}; its stages are {', '.join(names)}"
            )
        number = names.index(name)
        # A stage has the runs of all stages before it, see `check_stages`.
        runs = self._runs_in(self.stages[number])
        following = None
        # The next stage, where there is one.
        for stage in self.stages[number + 1 : number + 2]:
            added = [run for run in self._runs_in(stage) if run not in runs]
            following = replace(self, runs=added, stage=stage.stage)
        return replace(self, runs=runs, stage=name, next_stage=following)

    def _runs_in(self, stage: StageSpec) -> list[PlannedRun]:
        return [run for run in self.runs if stage.has(run.row, run.seed)]

    def only(self, rows: Collection[str], seeds: Collection[int]) -> Plan:
        """Return the plan with only the runs of these rows and seeds; an empty one means all.

        As in `at_stage` only `runs` shrinks: `experiment` still lists every row. `*` in a name
        stands for anything: `local-8@*` is a row in all cells, and in a tuning all trials of it.
        """
        names = [row.row for row in self.experiment.rows]
        if unknown := [name for name in rows if not fnmatch.filter(names, name)]:
            raise SpecError(
                f"{self.experiment.name} has no row {unknown[0]!r}; its rows are {', '.join(names)}"
            )
        # No name given means all rows.
        chosen = [row for name in rows for row in fnmatch.filter(names, name)] or names
        runs = [
            run
            for run in self.runs
            # By the plan's seed: runs of one seed in their config are told apart by it.
            if run.row in chosen and (not seeds or run.seed in seeds)
        ]
        if not runs and self.stage is not None:
            raise SpecError(
                f"the stage {self.stage} of {self.experiment.name} has no run of these rows and "
                "seeds; leave the stage out, or name others"
            )
        if not runs:
            raise SpecError(
                f"{self.experiment.name} has no run of these seeds; its plan lists the seeds that "
                "it has"
            )
        return replace(self, runs=runs, stage=None, next_stage=None)


def plan_experiment(
    name_or_path: str,
    results: Path,
    tuning: bool = False,
    method_files: Sequence[str] = (),
) -> Plan:
    """Return the plan of a shipped experiment by its name, of a TOML file, or of its tuning.

    Args:
        method_files: what `outside_methods` takes, for rows whose algorithm is one of these.

    Raises SpecError, whose message names the file.
    """
    outside = outside_methods(method_files)
    path = find_spec(name_or_path)
    file = read_spec(path)
    given_as = shlex.join(
        [name_or_path, *(["--methods", *method_files] if method_files else [])]
    )
    try:
        _check_outside_used(file.spec, outside)
        check_numbers_are_read(file.spec, file.own_training)
        # A copy is not validated, and so may have what no file may give.
        spec = file.spec.model_copy(update={"outside": outside})
        plan = make_plan(spec, results, tuning, given_as)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    return replace(plan, inherited=file.inherited)


def _check_outside_used(spec: Spec, outside: Outside) -> None:
    named = {row.algorithm for row in spec.all_rows()}
    for name, source in outside.items():
        if name not in named:
            raise SpecError(
                f"no row has the algorithm {name!r} of {source.file}; add one, or hold the method "
                f"against rows that ship by `python -m harness try {source.file}`"
            )


def make_plan(
    spec: Spec, results: Path, tuning: bool = False, given_as: str | None = None
) -> Plan:
    """Expand `spec`, or its tuning experiment as far as the records of it say what comes next.

    Args:
        given_as: the words of a command that the spec was found by, for those that the report
            prints.

    Raises SpecError: a setting that cannot be used, or learning rates that are not known yet;
    RecordError: a record of the tuning is damaged.
    """
    given_as = given_as or shlex.quote(spec.name)
    # Before any record is read: a mistake in the file is told at once.
    check_spec(spec)
    # A search is planned as far as its results reach, so the next call may plan more of it.
    if tuning:
        rows = list(trial_rows(spec, results))
        check_rows(spec, rows)
        return Plan(
            experiment=tuning_record_of(spec, rows, given_as),
            runs=_runs_of(rows),
            footprints=_footprints_of(rows),
        )
    # What follows is a function of the spec and of what the tuning's records chose.
    chosen = choose(spec, results, given_as)
    rows, too_short = _planned_rows(spec, chosen)
    check_rows(spec, rows)
    runs = _runs_of(rows)
    # Rows that are not tuned yet, or too short, have no runs that a stage could be checked by.
    if not chosen.left_out and not too_short:
        check_stages(spec.stages, [(run.row, run.seed) for run in runs])
    return Plan(
        experiment=record_of(spec, rows, given_as, chosen.record),
        runs=runs,
        footprints=_footprints_of(rows),
        left_out=[*chosen.left_out, *too_short],
        seed_deviation=spec.statistics.seed_deviation,
        stages=spec.stages,
    )


def _runs_of(rows: list[PlannedRow]) -> list[PlannedRun]:
    return [run for planned in rows for run in planned.runs]


def _footprints_of(rows: list[PlannedRow]) -> dict[str, Footprint]:
    return {planned.row.row: planned.footprint for planned in rows}


def _planned_rows(spec: Spec, chosen: Chosen) -> tuple[list[PlannedRow], list[str]]:
    """Return all rows, and a sentence on each that would be too short at another length.

    Raises SpecError: a setting that cannot be used.
    """
    # Records and reports keep this order.
    rows = [
        *_rows_as_chosen(spec, chosen),
        *_rows_by_training_loss(spec, chosen),
        *_restarted_rows(spec, chosen),
        *_rows_at_other_rates(spec, chosen),
    ]
    rows_at_lengths, left_out = _rows_at_lengths(spec, chosen)
    return [*rows, *rows_at_lengths], left_out


def _rows_as_chosen(spec: Spec, chosen: Chosen) -> Iterator[PlannedRow]:
    """Return the rows themselves, those in cells among them."""
    for row in chosen.rows.values():
        if row.learning_rate is None:
            continue
        held_back = row.cell is not None and row.cell.held_back
        origin = RowOrigin(repeats=row.repeated_row, held_back=held_back)
        seeds = _seeds_of(spec, row)
        if not row.run_lengths:
            yield plan_row(spec, row, seeds, origin=origin)
        for num_steps in row.run_lengths:
            # The row itself is that of the trials, and is not planned.
            yield plan_row(spec, row.at_length(num_steps), seeds, origin=origin)


def _seeds_of(spec: Spec, row: RowSpec) -> list[int]:
    """Return the seeds of a row: its cell's, or the baseline's own, or else the experiment's."""
    if row.cell is not None and row.cell.seeds:
        return row.cell.seeds
    if row.row == spec.statistics.baseline and spec.statistics.baseline_seeds:
        return spec.statistics.baseline_seeds
    return spec.statistics.seeds


def _rows_by_training_loss(spec: Spec, chosen: Chosen) -> Iterator[PlannedRow]:
    """Return the rows for which the rule of least training loss chooses otherwise.

    There are none where the spec does not ask for them.
    """
    if spec.tuning is None or not spec.tuning.both_rules:
        return
    seeds = spec.tuning.both_rules_seeds or spec.statistics.seeds
    for name, row in chosen.by_training_loss.items():
        origin = RowOrigin(repeats=name, chosen_by="training_loss")
        yield plan_row(spec, row, seeds, f"{name}~loss", origin=origin)


def _restarted_rows(spec: Spec, chosen: Chosen) -> Iterator[PlannedRow]:
    """Return the rows whose workers lose a part of their state."""
    for restart in spec.restarts:
        row = chosen.rows[restart.row].restarted(restart)
        yield plan_row(spec, row, spec.statistics.seeds)


def _rows_at_other_rates(spec: Spec, chosen: Chosen) -> Iterator[PlannedRow]:
    """Return rows again at the rates below and above theirs.

    They are those of the main ratio group, and those without a group.
    """
    if spec.sensitivity is None:
        return
    for row in chosen.rows.values():
        # A row of group 1 compresses nothing, and counts as one without a group.
        if row.ratio_group not in (None, 1, spec.statistics.main_ratio_group):
            continue
        assert row.learning_rate is not None, "a settled row has one"
        origin = RowOrigin(repeats=row.row, chosen_by="sensitivity")
        for rate in neighbouring_rates(row.learning_rate):
            yield plan_row(
                spec,
                row.model_copy(update={"learning_rate": rate}),
                spec.sensitivity.seeds,
                f"{row.row}^{rate:g}",
                origin=origin,
            )


def _rows_at_lengths(spec: Spec, chosen: Chosen) -> tuple[list[PlannedRow], list[str]]:
    """Return all rows at other lengths, and a sentence on each that is too short there."""
    rows: list[PlannedRow] = []
    left_out: list[str] = []
    if spec.lengths is None:
        return rows, left_out
    for num_epochs in spec.lengths.num_epochs:
        for row in chosen.rows.values():
            name = f"{row.row}@{num_epochs}"
            try:
                planned = plan_row(
                    spec,
                    row,
                    spec.lengths.seeds,
                    name,
                    num_epochs,
                    RowOrigin(repeats=row.row),
                )
            except TooShortError as error:
                # A length is chosen for the rows as a whole, so one that it does not fit ends
                # nothing.
                left_out.append(f"{name} is left out: {error.why}")
            else:
                rows.append(planned)
    return rows, left_out
