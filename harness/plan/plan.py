"""Expands a spec into the rows and runs of an experiment, or of its tuning, and into the record of
the plan."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cser_bench.algorithms.registry import methods
from cser_bench.harness.plan.corners import between_corners
from cser_bench.harness.plan.footprint import Footprint, check_common
from cser_bench.harness.plan.rows import (
    PlannedRow,
    TooShortError,
    check_ratios,
    check_rows_differ,
    plan_row,
)
from cser_bench.harness.plan.tuning import (
    SearchState,
    choices,
    neighbouring_rates,
    settled,
    trial_rows,
    tuning_name,
    tuning_record,
)
from cser_bench.harness.records import store
from cser_bench.harness.records.experiment import (
    Contrast,
    Experiment,
    Exponent,
    PlannedEvidence,
)
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.rows import CellSpec, RowSpec
from cser_bench.harness.spec.run import PlannedRun
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.spec.spec_file import find_spec, load_spec

COMMON = {
    *(
        "task",
        "model",
        "num_workers",
        "batch_size",
        "schedule",
        "evaluation",
        "partition",
        "precision",
        "wire",
    ),
    "label_smoothing",
}
"""The fields of a run's config that all rows have in common, but for a row's own warm-up or
partition."""


@dataclass(frozen=True)
class Plan:
    """All runs of an experiment, and what the report needs to know of it."""

    experiment: Experiment
    runs: list[PlannedRun]
    footprints: dict[str, Footprint]
    """By row: what each of its runs sends and holds."""
    left_out: list[str] = field(default_factory=list)
    """Rows that would be there at other lengths, and why they are not, a sentence each."""
    seed_deviation: float | None = None
    """Standard deviation of a row's scores between seeds, as the spec expects it."""

    @property
    def by_id(self) -> dict[str, PlannedRun]:
        """The runs that differ, by their ids: rows may share one."""
        return {run.run_id: run for run in self.runs}

    def only(self, rows: Collection[str], seeds: Collection[int]) -> Plan:
        """The plan with the runs of these rows and seeds alone; none stands for all. The record
        stays whole.

        `*` in a name stands for anything: `local-8@*` is a row in all cells, and in a tuning all
        trials of it.
        """
        known = [row.row for row in self.experiment.rows]
        if unknown := [name for name in rows if not fnmatch.filter(known, name)]:
            raise SpecError(
                f"{self.experiment.name} has no row {unknown[0]!r}; its rows are {', '.join(known)}"
            )
        chosen = [row for name in rows for row in fnmatch.filter(known, name)] or known
        runs = [
            run
            for run in self.runs
            if run.row in chosen and (not seeds or run.config.seed in seeds)
        ]
        if not runs:
            raise SpecError(
                f"{self.experiment.name} has no run of these seeds; its plan lists the seeds that "
                "it has"
            )
        return replace(self, runs=runs)


def plan_experiment(name_or_path: str, results: Path, tuning: bool = False) -> Plan:
    """The plan of a shipped experiment by its name, of a TOML file, or of its tuning; errors name
    the file."""
    path = find_spec(name_or_path)
    spec = load_spec(path)
    try:
        return make_plan(spec, results, tuning, name_or_path)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def make_plan(spec: Spec, results: Path, tuning: bool = False, given_as: str | None = None) -> Plan:
    """Expand `spec`, or its tuning experiment as far as the records of it say what comes next.

    Args:
        given_as: the name or path that the spec was found by, for the commands that the report
            prints.

    Raises SpecError: a setting that cannot be used, or learning rates that are not known yet;
    RecordError: a record of the tuning is damaged.
    """
    check_common(spec)
    check_rows_differ(spec)
    given_as, left_out = given_as or spec.name, list[str]()
    if tuning:
        rows = list(trial_rows(spec, results))
        judged: dict[str, Any] = {
            "name": tuning_name(spec),
            "title": f"{spec.title}: tuning",
            "tuning": None,
        }
    else:
        borrowed = spec.tuning.records if spec.tuning else None
        chosen = choices(
            spec, results, f"python -m harness run {borrowed or given_as} --tuning", left_out
        )
        rows = list(_rows(spec, chosen, left_out))
        judged = _judged(spec) | {"tuning": tuning_record(spec, chosen)}
        if spec.statistics.floor not in [planned.row.row for planned in rows]:
            judged["floor"] = None
    check_ratios(spec, rows)
    return Plan(
        experiment=_experiment(
            spec, rows, shlex.quote(given_as) + (" --tuning" if tuning else ""), judged
        ),
        runs=[run for planned in rows for run in planned.runs],
        footprints={planned.row.row: planned.footprint for planned in rows},
        left_out=left_out,
        seed_deviation=None if tuning else spec.statistics.seed_deviation,
    )


def _rows(
    spec: Spec, searches: dict[str, SearchState], left_out: list[str]
) -> Iterator[PlannedRow]:
    """All rows of the experiment; to `left_out` go sentences on those that would be too short at
    another length."""
    given = {row.row: row for row in spec.all_rows()}
    chosen = {
        name: settled(given[name], found.by_accuracy)
        for name, found in searches.items()
        if found.by_accuracy
    }
    rows, seeds = given | chosen | between_corners(spec, chosen), spec.statistics.seeds
    for row in rows.values():
        if row.learning_rate is None:
            continue
        of_baseline = spec.statistics.baseline_seeds if row.row == spec.statistics.baseline else []
        cell = row.cell or CellSpec(cell="own")
        yield plan_row(
            spec, row, cell.seeds or of_baseline or seeds, base=row.base, held_back=cell.held_back
        )
    if spec.tuning and spec.tuning.both_rules:
        for name, found in searches.items():
            if found.by_training_loss not in (None, found.by_accuracy):
                other = settled(given[name], found.by_training_loss)
                of_rule = spec.tuning.both_rules_seeds or seeds
                yield plan_row(
                    spec, other, of_rule, f"{name}~loss", base=name, rule="training_loss"
                )
    for restart in spec.restarts:
        yield plan_row(spec, rows[restart.row].restarted(restart), seeds)
    if spec.sensitivity:
        yield from _at_other_rates(spec, rows.values(), spec.sensitivity.seeds)
    if spec.lengths:
        for num_epochs in spec.lengths.num_epochs:
            yield from _at_length(spec, rows.values(), num_epochs, spec.lengths.seeds, left_out)


def _at_other_rates(spec: Spec, rows: Iterable[RowSpec], seeds: list[int]) -> Iterator[PlannedRow]:
    """The rows at the main ratio, and those without one, at the rates below and above theirs."""
    for row in rows:
        if row.ratio in (None, 1, spec.statistics.main_ratio):
            assert row.learning_rate is not None, "a settled row has one"
            for rate in neighbouring_rates(row.learning_rate):
                other = row.model_copy(update={"learning_rate": rate})
                yield plan_row(
                    spec, other, seeds, f"{row.row}^{rate:g}", base=row.row, rule="sensitivity"
                )


def _at_length(
    spec: Spec, rows: Iterable[RowSpec], num_epochs: int, seeds: list[int], left_out: list[str]
) -> Iterator[PlannedRow]:
    for row in rows:
        name = f"{row.row}@{num_epochs}"
        try:
            yield plan_row(spec, row, seeds, name, num_epochs, base=row.row)
        except TooShortError as error:
            left_out.append(f"{name} is left out: {error.why}")


def _judged(spec: Spec) -> dict[str, Any]:
    """What an experiment has that its tuning has not: how its rows are compared."""
    statistics = spec.statistics
    contrasts = [
        Contrast(**each.model_dump(exclude={"margin"}), margin=each.margin or statistics.margin)
        for each in spec.contrasts
    ]
    exponents = [Exponent(**each.model_dump()) for each in spec.exponents]
    same = {"baseline", "margin", "floor", "margin_reason", "main_ratio", "declared", "seeds"}
    own = {
        "name": spec.name,
        "title": spec.title,
        "contrasts": contrasts or None,
        "exponents": exponents or None,
        "evidence": spec.evidence and PlannedEvidence(**spec.evidence.model_dump()),
    }
    return own | {key: getattr(statistics, key) for key in same}


def _experiment(
    spec: Spec, rows: list[PlannedRow], argument: str, judged: dict[str, Any]
) -> Experiment:
    common = rows[0].runs[0].config.model_dump(mode="json", include=COMMON)
    tuned = {"seeds": spec.tuning.seeds} if spec.tuning else {}
    algorithms = sorted({planned.row.algorithm for planned in rows})
    return Experiment(
        version=store.VERSION,
        task=spec.task.name,
        model=spec.model.name,
        confidence=spec.statistics.confidence,
        rows=[planned.row for planned in rows],
        config=common
        | {key: getattr(spec, key).model_dump(mode="json") for key in ("schedule", "partition")},
        commands=[f"python -m harness run {argument}", f"python -m harness report {argument}"],
        metric=None if spec.statistics.metric == "accuracy" else spec.statistics.metric,
        families={algorithm: methods()[algorithm].family for algorithm in algorithms},
        **(tuned | judged),
    )
