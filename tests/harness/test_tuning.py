"""The choice of learning rates, by its rule, on made-up records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.plan import make_plan
from harness.spec import SpecError, load_spec
from harness.store import RecordError, Result, RunFile, read_record, write_record
from harness.tuning import select_learning_rates
from tests.harness.support import Table, changed, small_spec, write_spec

Scores = dict[float, list[float | None]]
"""Accuracy per learning rate and tuning seed; None for a run that diverged."""


def made_up(folder: Path, scores: dict[str, Scores]) -> Path:
    """The folder of a tuning with these scores, as its own plan lays it out."""
    spec = tuning_spec(list(next(iter(scores.values()))))
    plan = make_plan(load_spec(write_spec(folder, spec)), folder, tuning=True)
    target = folder / "small_tuning"
    write_record(target / "experiment.json", plan.experiment)
    for row in plan.experiment.rows:
        assert row.tunes is not None
        for seed, run_id in row.runs.items():
            score = scores[row.tunes][row.learning_rate][int(seed) - 101]
            write_run(target / run_id, run_id, row.row, int(seed), score)
    return target


def tuning_spec(grid: list[float]) -> Table:
    spec = changed(changed(small_spec(), "tuning.grid", grid), "tuning.seeds", [101, 102])
    spec["rows"] = [{k: v for k, v in row.items() if k != "learning_rate"} for row in spec["rows"][:2]]
    return spec


def write_run(folder: Path, run_id: str, row: str, seed: int, score: float | None) -> None:
    run = RunFile(version=1, run_id=run_id, experiment="small_tuning", row=row, seed=seed, config={}, attempts=[])
    write_record(folder / "run.json", run)
    result = Result(
        version=1,
        run_id=run_id,
        attempt="made-up",
        status="diverged" if score is None else "done",
        diverged_at_step=25 if score is None else None,
        num_steps=30,
        num_parameters=742,
        world_size=2,
        train_loss=None if score is None else 1.0,
        test_loss=None if score is None else 1.0,
        test_correct=None if score is None else round(400 * score),
        test_count=None if score is None else 400,
        test_accuracy=score,
        traffic={},
        expected_traffic={},
        overall_ratio=None,
        clock_seconds={},
        wall_seconds=1.0,
        parameters_sha256="0" * 64,
    )
    write_record(folder / "result.json", result)


SGD: Scores = {0.01: [0.5, 0.7], 0.1: [0.7, 0.6], 1.0: [0.9, 0.1]}
CSER: Scores = {0.01: [0.1, 0.2], 0.1: [0.5, 0.5], 1.0: [0.5, 0.6]}


def chosen(folder: Path, sgd: Scores, cser: Scores = CSER) -> dict[str, float]:
    return select_learning_rates(made_up(folder, {"sgd": sgd, "cser": cser}), ["sgd", "cser"])


def test_the_best_mean_wins(tmp_path: Path) -> None:
    assert chosen(tmp_path, SGD) == {"sgd": 0.1, "cser": 1.0}


@pytest.mark.parametrize("grid", [[0.01, 0.1, 1.0], [1.0, 0.1, 0.01], [0.1, 1.0, 0.01]])
def test_of_equals_the_smaller_rate_wins(grid: list[float], tmp_path: Path) -> None:
    scores: Scores = {0.01: [0.5, 0.25], 0.1: [0.75, 0.5], 1.0: [0.5, 0.75]}
    in_order = {rate: scores[rate] for rate in grid}
    assert chosen(tmp_path, in_order)["sgd"] == 0.1


def test_a_rate_with_a_diverged_run_is_not_eligible(tmp_path: Path) -> None:
    assert chosen(tmp_path, {0.01: [0.3, 0.3], 0.1: [0.99, None], 1.0: [None, None]})["sgd"] == 0.01


def test_diverged_everywhere(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'sgd' diverged at every learning rate of the grid .* widen the grid"):
        chosen(tmp_path, {0.01: [0.3, None], 0.1: [None, 0.5], 1.0: [None, None]})


def test_no_tuning_at_all(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"learning rates are left to the tuning.* --tuning"):
        select_learning_rates(tmp_path / "small_tuning", ["sgd"])


@pytest.mark.parametrize("missing", ["result.json", "run.json"])
def test_incomplete_tuning(missing: str, tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"sgd": SGD, "cser": CSER})
    run_id = json.loads((folder / "experiment.json").read_text())["rows"][0]["runs"]["102"]
    (folder / run_id / missing).unlink()
    with pytest.raises(SpecError, match=rf"not complete \(run {run_id} of sgd_lr0.01 is missing\); run the tuning"):
        select_learning_rates(folder, ["sgd"])
    assert select_learning_rates(folder, ["cser"]) == {"cser": 1.0}


def test_row_that_was_not_tuned(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"sgd": SGD, "cser": CSER})
    with pytest.raises(SpecError, match=r"holds no tuning of row 'ef_sgd'; run the tuning"):
        select_learning_rates(folder, ["ef_sgd"])


def test_damaged_record_is_not_a_missing_one(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"sgd": SGD, "cser": CSER})
    path = folder / "experiment.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(RecordError, match=r"experiment.json is damaged"):
        select_learning_rates(folder, ["sgd"])


def test_plan_takes_the_chosen_rates_and_leaves_given_ones(tmp_path: Path) -> None:
    made_up(tmp_path, {"sgd": SGD, "cser": CSER})
    spec = tuning_spec([0.01, 0.1, 1.0])
    spec["rows"][1]["learning_rate"] = 0.25
    plan = make_plan(load_spec(write_spec(tmp_path, spec)), tmp_path)
    assert {run.row: run.config.learning_rate for run in plan.runs} == {"sgd": 0.1, "cser": 0.25}
    assert {row.row: row.learning_rate for row in plan.experiment.rows} == {"sgd": 0.1, "cser": 0.25}
    assert plan.experiment.tuning is not None and plan.experiment.tuning.selected == {"sgd": 0.1}
    assert {run.config.task.held_out for run in plan.runs} == {0}
    result = tmp_path / "small_tuning" / read_some_run(tmp_path) / "result.json"
    assert read_record(result, Result).num_steps == 30


def read_some_run(results: Path) -> str:
    rows = json.loads((results / "small_tuning" / "experiment.json").read_text())["rows"]
    return str(rows[0]["runs"]["101"])


def test_a_tuning_made_with_other_settings_is_refused(tmp_path: Path) -> None:
    made_up(tmp_path, {"sgd": SGD, "cser": CSER})
    spec = tuning_spec(list(SGD))
    assert make_plan(load_spec(write_spec(tmp_path, spec)), tmp_path).experiment.tuning is not None
    other = changed(spec, "training.weight_decay", 0.25)
    with pytest.raises(SpecError, match="other settings"):
        make_plan(load_spec(write_spec(tmp_path, other)), tmp_path)
