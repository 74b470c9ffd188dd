"""From a spec to the plan of an experiment or of its tuning, in one direction.

A file is parsed and completed from the experiment that its `like` key names
(`spec_file.read_spec`), the tuning's records give settings and rates (`tuning.choose`), and rows
are expanded (`expand`) and checked (`checks`).
"""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cser_bench.harness.plan import recorded
from cser_bench.harness.plan.checks import (
    check_numbers_are_read,
    check_rows,
    check_spec,
)
from cser_bench.harness.plan.expand import expand
from cser_bench.harness.plan.footprint import Footprint
from cser_bench.harness.plan.rows import PlannedRow
from cser_bench.harness.plan.tuning import choose, trial_rows, tuning_name
from cser_bench.harness.records import store
from cser_bench.harness.records.experiment import Experiment, OutsideMethod, Tuning
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import PlannedRun
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.spec.spec_file import find_spec, read_spec
from cser_bench.harness.spec.stages import StageSpec, check_stages
from cser_bench.harness.spec.statistics import NO_CURVE
from cser_bench.harness.train.methods import Outside, method_of, outside_methods

COMMON = {
    "task",
    "model",
    "num_workers",
    "batch_size",
    "schedule",
    "evaluation",
    "partition",
    "precision",
    "wire",
    "label_smoothing",
}
"""The fields of a run's config that all rows share, except for a row's own warm-up or
partition."""


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
            experiment=_experiment(
                spec, rows, f"{given_as} --tuning", _tuning_fields(spec)
            ),
            runs=_runs_of(rows),
            footprints=_footprints_of(rows),
        )
    # What follows is a function of the spec and of what the tuning's records chose.
    chosen = choose(spec, results, given_as)
    rows, too_short = expand(spec, chosen)
    check_rows(spec, rows)
    fields = _experiment_fields(spec, rows, chosen.record)
    runs = _runs_of(rows)
    # Rows that are not tuned yet, or too short, have no runs that a stage could be checked by.
    if not chosen.left_out and not too_short:
        check_stages(spec.stages, [(run.row, run.seed) for run in runs])
    return Plan(
        experiment=_experiment(spec, rows, given_as, fields),
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


def _tuning_fields(spec: Spec) -> dict[str, Any]:
    """Return the fields of a tuning's record besides its rows; a tuning compares nothing."""
    assert spec.tuning is not None, "it has rows"
    return {
        "name": tuning_name(spec),
        "title": f"{spec.title}: tuning",
        "seeds": spec.tuning.seeds,
        "tuning": None,
    }


def _experiment_fields(
    spec: Spec, rows: list[PlannedRow], tuning: Tuning | None
) -> dict[str, Any]:
    """Return the fields of an experiment's record that say how rows were chosen and are compared."""
    statistics = spec.statistics
    # A floor that is not tuned yet may have been left out.
    has_floor = statistics.floor in [planned.row.row for planned in rows]
    return {
        "name": spec.name,
        "title": spec.title,
        "seeds": statistics.seeds,
        "tuning": tuning,
        "baseline": statistics.baseline,
        "floor": statistics.floor if has_floor else None,
        "margin": statistics.margin,
        "margin_reason": statistics.margin_reason,
        "main_ratio": statistics.main_ratio_group,
        "declared": statistics.declared,
        "contrasts": recorded.contrasts(spec) or None,
        "exponents": recorded.exponents(spec) or None,
        "predictions": recorded.predictions(spec) or None,
        "curve": None if statistics.curve == NO_CURVE else statistics.curve,
        "evidence": recorded.evidence(spec),
    }


def _experiment(
    spec: Spec, rows: list[PlannedRow], argument: str, fields: dict[str, Any]
) -> Experiment:
    """Return the record of the plan; `argument` is what commands call it by."""
    # Any row's will do, as these fields are common to all.
    config = rows[0].runs[0].config.model_dump(mode="json", include=COMMON)
    # The experiment's, as a row may have its own of these; in full, as a report knows no defaults.
    config["schedule"] = spec.schedule.model_dump(mode="json")
    config["partition"] = spec.partition.model_dump(mode="json")
    return Experiment(
        version=store.VERSION,
        task=spec.task.name,
        model=spec.model.name,
        confidence=spec.statistics.confidence,
        rows=[planned.row for planned in rows],
        config=config,
        commands=[
            f"python -m harness run {argument}",
            f"python -m harness report {argument}",
        ],
        metric=None if spec.statistics.metric == "accuracy" else spec.statistics.metric,
        families=_families(rows),
        outside=_outside(rows),
        **fields,
    )


def _families(rows: list[PlannedRow]) -> dict[str, str]:
    families = {}
    for planned in rows:
        # By the class, which for a method from outside is in the config alone.
        families[planned.row.algorithm] = method_of(planned.runs[0].config).family
    return dict(sorted(families.items()))


def _outside(rows: list[PlannedRow]) -> dict[str, OutsideMethod]:
    """Return what the plan's record says of methods from outside; the runs have their sources."""
    outside = {}
    for planned in rows:
        source = planned.runs[0].config.method_source
        if source is not None:
            outside[planned.row.algorithm] = OutsideMethod(
                file=source.file, sha256=source.sha256, package=source.package
            )
    return outside
