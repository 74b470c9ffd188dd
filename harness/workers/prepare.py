"""Before runs start: the experiment's record on disk, and which runs are missing."""

from __future__ import annotations

from pathlib import Path

from cser_bench.harness.measures.declared import (
    begun_in_words,
    is_without_verdict,
    run_files,
    runs_begun,
    starts_of,
    with_dates,
)
from cser_bench.harness.plan.plan import Plan
from cser_bench.harness.records import packs, store
from cser_bench.harness.records.experiment import Experiment, Exponent
from cser_bench.harness.records.provenance import now
from cser_bench.harness.records.state import is_done
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import PlannedRun
from cser_bench.harness.train import checkpoint


def missing_runs(plan: Plan, folder: Path) -> list[PlannedRun]:
    """Return the runs without a result, seeds first, so that early reports cover all rows.

    Those of the second rule come last.
    """
    packs.read_pack(folder)  # A damaged one is said, also where no run is asked for.
    seeds = {seed: number for number, seed in enumerate(plan.experiment.seeds)}
    missing = [
        run for run_id, run in plan.by_id.items() if not is_done(folder / run_id)
    ]
    second = {
        row.row for row in plan.experiment.rows if row.chosen_by == "training_loss"
    }
    # The sort is stable: within a seed runs stay in the order of rows.
    return sorted(missing, key=lambda run: (run.row in second, seeds.get(run.seed, 0)))


def prepare(plan: Plan, results: Path) -> list[PlannedRun]:
    """Write experiment.json, and return the runs that are missing.

    What processes that were killed just after a result left behind is cleared up.
    """
    folder = write_experiment(plan, results)
    missing = missing_runs(plan, folder)
    for run_id in plan.by_id.keys() - {run.run_id for run in missing}:
        checkpoint.discard(folder / run_id / checkpoint.FOLDER)
    return missing


def write_experiment(plan: Plan, results: Path) -> Path:
    """Write experiment.json, if it says anything new, and return the experiment's folder.

    Contrasts that it did not have are declared by that; those that come too late for a verdict are
    named.

    Raises SpecError where it holds the experiment of another spec, whose report would be lost.
    """
    folder = results / plan.experiment.name
    path = folder / "experiment.json"
    written = store.read_optional(path, Experiment)
    if written is not None and _is_of_another_spec(written, plan.experiment):
        raise SpecError(
            f"{folder} holds the experiment {plan.experiment.name!r} of another spec "
            f"(`{written.commands[0]}`); give one of the two another name, or another folder by "
            f"--results (or delete {path} if they are the same: contrasts then count as declared "
            "anew)"
        )
    declared_at = now()
    experiment = with_dates(plan.experiment, written, declared_at)
    if written is not None:
        # No plan knows the next stage: it is noted when a stage is done, see `note_next_stage`.
        # Nor does one know the p of old questions.
        kept = {
            "next_stage": written.next_stage,
            "exponents": _with_p(experiment.exponents, written.exponents),
        }
        experiment = experiment.model_copy(update=kept)
    if written != experiment:
        store.write_record(path, experiment)
        _name_late_contrasts(experiment, declared_at, folder)
    return folder


def _with_p(
    planned: list[Exponent] | None, written: list[Exponent] | None
) -> list[Exponent] | None:
    """Return the planned questions, as they are written where these are the same but for a p."""
    without_p = [each.model_copy(update={"p": None}) for each in written or []]
    if without_p == planned:
        return written
    return planned


def _name_late_contrasts(
    experiment: Experiment, declared_at: str, folder: Path
) -> None:
    """Print the contrasts declared at this time that get no verdict.

    Runs of both their rows had begun before.
    """
    # Contrasts that this write declares bear its moment.
    new = [
        contrast
        for contrast in experiment.contrasts or []
        if contrast.declared_at == declared_at
    ]
    if not new:
        return
    starts = starts_of(run_files(folder))
    runs = {row.row: row.runs.values() for row in experiment.rows}
    for contrast in new:
        begun = runs_begun(
            contrast, runs[contrast.row], runs[contrast.reference], starts
        )
        if is_without_verdict(contrast, begun):
            print(
                f"{experiment.name}: the {contrast.kind} of {contrast.row} to {contrast.reference} "
                f"is declared {begun_in_words(begun)}: it gets an interval and no verdict"
            )


def note_next_stage(plan: Plan, results: Path, added: str | None) -> None:
    """Write into experiment.json what the next stage adds, for reports; None where there is none."""
    path = results / plan.experiment.name / "experiment.json"
    written = store.read_record(path, Experiment)
    if written.next_stage != added:
        store.write_record(path, written.model_copy(update={"next_stage": added}))


def _is_of_another_spec(written: Experiment, planned: Experiment) -> bool:
    """Say whether the written experiment was planned from another file and has other runs.

    One of the two is not enough: a spec may change, or be found by two names.
    """
    if not written.commands or written.commands[0] == planned.commands[0]:
        return False
    return [row.runs for row in written.rows] != [row.runs for row in planned.rows]
