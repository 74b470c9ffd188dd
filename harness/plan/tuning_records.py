"""What the records of a tuning say, and why they do not say enough."""

from __future__ import annotations

from pathlib import Path

from harness.plan.tuning import TrialOutcome
from harness.records.experiment import read_experiment
from harness.records.metrics import ACCURACY, Metric, score_in
from harness.records.packs import read_result
from harness.spec import Spec, SpecError

SHIPPED = Path(__file__).parents[1] / "shipped"
"""Records that come with the program: in a checkout its results folder, in an installation the tunings of it."""


def tuning_name(spec: Spec) -> str:
    """Name of the spec's tuning experiment, and of its folder under results/."""
    return f"{(spec.tuning and spec.tuning.records) or spec.name}_tuning"


def tuning_folder(spec: Spec, results: Path) -> Path:
    """The folder of the tuning's records: under `results`, or where none was begun there, those that ship."""
    own, shipped = results / tuning_name(spec), SHIPPED / tuning_name(spec)
    has_own = (own / "experiment.json").exists()
    return shipped if not has_own and (shipped / "experiment.json").exists() else own


def outcome(folder: Path, run_id: str, metric: Metric = ACCURACY) -> TrialOutcome | None:
    """How a run of the tuning in `folder` ended, by this metric; None where it has not.

    Raises:
        RecordError: one of its records is damaged.
    """
    result = read_result(folder / run_id)
    return None if result is None else TrialOutcome(score_in(result, metric), result.train_loss)


def incomplete(folder: Path, row: str, trial: str, seed: int, run_id: str, command: str) -> SpecError:
    """Why a row's choice is not known: the tuning was not begun, is another one, or is not done.

    Args:
        trial: name of the tuning's row whose run at `seed` is missing.
        command: what makes the tuning.

    Raises:
        RecordError: the tuning's experiment.json is damaged.
    """
    advice = f"run the tuning first (`{command}`)"
    if not (folder / "experiment.json").exists():
        return SpecError(
            f"learning rates are left to the tuning, but {folder / 'experiment.json'} is missing: there is no tuning "
            f"yet; {advice}"
        )
    rows = [each for each in read_experiment(folder).rows if each.tunes == row]
    if not rows:
        return SpecError(f"{folder} holds no tuning of row {row!r}; {advice}")
    recorded = {each.row: each.runs.get(str(seed), run_id) for each in rows}
    if recorded.get(trial, run_id) != run_id:
        return SpecError(
            f"the tuning records in {folder} were made with other settings of {trial} than the spec has; run the "
            f"tuning again (`{command}`), or give the spec a [tuning] of its own if these are another experiment's"
        )
    return SpecError(f"the tuning in {folder} is not complete (run {run_id} of {trial} is missing); {advice}")
