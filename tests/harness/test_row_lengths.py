"""A row's own length, lengths of runs and number of workers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cser_bench.harness.plan import tuning
from cser_bench.harness.plan.plan import make_plan
from cser_bench.harness.spec.spec import Spec
from tests.harness.support import TUNING, Table, changed, small_spec


def lengthened() -> Table:
    """Rows of 40 steps, one of which is tuned at 30 and run at 25 and 36, and one with four workers."""
    spec = small_spec()
    spec["training"]["num_epochs"] = 4
    spec["training"]["num_steps"] = 40
    spec["schedule"] = {"kind": "cosine", "warmup_share": 0.1}
    spec["tuning"] = TUNING
    _, cser, ef_sgd = spec["rows"]
    del cser["learning_rate"]
    cser["num_steps"] = 30
    cser["run_lengths"] = [25, 36]
    ef_sgd["num_workers"] = 4
    return spec


def result_of(place: Path) -> SimpleNamespace:
    """A result in which every trial is as good as every other."""
    return SimpleNamespace(
        test_accuracy=0.5, test_loss=None, metrics=None, train_loss=0.0
    )


def test_a_row_is_tuned_at_its_own_length_and_run_at_its_run_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Spec.model_validate(lengthened())
    trials = make_plan(spec, tmp_path, tuning=True)
    assert {run.config.num_steps for run in trials.runs} == {30}
    monkeypatch.setattr(tuning, "read_result", result_of)
    plan = make_plan(spec, tmp_path)
    lengths = {row.row: row.num_steps for row in plan.experiment.rows}
    assert lengths == {"sgd": 40, "cser@25": 25, "cser@36": 36, "ef_sgd": 40}
    # Of equals the smaller rate wins.
    rates = {row.learning_rate for row in plan.experiment.rows if "@" in row.row}
    assert rates == {0.01}


def test_a_row_has_its_own_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "read_result", result_of)
    table = lengthened()
    plan = make_plan(Spec.model_validate(table), tmp_path)
    own = {run.row: run.config.num_workers for run in plan.runs}
    usual = table["training"]["num_workers"]
    assert usual != 4
    assert own == {"sgd": usual, "cser@25": usual, "cser@36": usual, "ef_sgd": 4}
    recorded = {row.row: row.num_workers for row in plan.experiment.rows}
    assert recorded["ef_sgd"] == 4
    assert recorded["sgd"] is None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (changed(lengthened(), "rows.1.num_steps"), "has run_lengths and no num_steps"),
        (
            lengthened() | {"cells": [{"cell": "short", "num_steps": 20}]},
            "has num_steps, so it can be in no cell",
        ),
    ],
)
def test_lengths_that_contradict_are_refused(table: Table, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Spec.model_validate(table)
