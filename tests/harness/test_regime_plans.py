"""Experiments that are tuned: candidates, records that do not suffice, other lengths, borrowed
tunings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cser_bench.harness.places import EXPERIMENTS
from cser_bench.harness.plan.plan import Plan, make_plan
from cser_bench.harness.plan.search import TrialOutcome
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.store import write_record
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.spec_file import load_spec
from tests.harness.support import (
    BLOCK,
    CommandLine,
    Table,
    changed,
    shipped_run,
    small_spec,
    write_spec,
)

LOCAL = {"sync_interval": 5}
TOP_K = {"kind": "top_k", "ratio": 8}


def regime_spec() -> Table:
    """Runs of 80 steps: a ceiling, a floor, and a method with three tables of settings, tuned on
    runs of 20 steps."""
    rows: list[Table] = [
        {"row": "sgd", "label": "SGD", "algorithm": "sgd", "ratio": 1},
        {"row": "alone", "label": "alone", "algorithm": "alone"},
        {
            "row": "final_average",
            "label": "final",
            "algorithm": "local_sgd",
            "settings": {"sync_interval": "end"},
        },
        {
            "row": "ef_sgd-4",
            "label": "EF-SGD",
            "algorithm": "ef_sgd",
            "ratio": 4,
            "settings": {"compressor": BLOCK},
        },
        {
            "row": "csea-4",
            "label": "CSEA",
            "algorithm": "csea",
            "ratio": 4,
            "learning_rates": [0.02],
            "candidates": [
                {"error_compressor": BLOCK},
                {"error_compressor": BLOCK | {"num_blocks": 8}},
                {"error_compressor": TOP_K},
            ],
        },
        {
            "row": "local_sgd-5",
            "label": "local SGD",
            "algorithm": "local_sgd",
            "ratio": 5,
            "settings": LOCAL,
        },
    ]
    spec = small_spec() | {"rows": rows, "partition": {"kind": "contiguous"}}
    spec["task"] = {"name": "blobs", "num_train": 800}
    spec["training"] |= {"num_epochs": 4}
    spec["schedule"] = {"kind": "cosine", "warmup_share": 0.1}
    spec["evaluation"] = {"num_scores": 2}
    spec["statistics"] |= {
        "floor": "alone",
        "margin_reason": "it is small",
        "main_ratio": 4,
    }
    spec["tuning"] = {
        "grid": [0.01, 0.02, 0.04],
        "num_trials": 3,
        "seeds": [101, 102],
        "finalists": 1,
        "held_out": 400,
        "num_epochs": 1,
    }
    spec["lengths"] = {"num_epochs": [1, 2], "seeds": [1]}
    return spec


def write_run(
    folder: Path, run_id: str, row: str, seed: int, outcome: TrialOutcome
) -> None:
    """A made-up run that came to this."""
    files = shipped_run()
    score = outcome.accuracy
    run = files["run"] | {
        "run_id": run_id,
        "experiment": "small_tuning",
        "row": row,
        "seed": seed,
    }
    result = files["result"] | {"run_id": run_id, "train_loss": outcome.train_loss}
    if score is None:
        nothing = dict.fromkeys(("test_count", "test_correct", "test_accuracy"))
        result |= {"status": "diverged", "diverged_at_step": 25} | nothing
    else:
        count = 1_000_000
        correct = round(1_000_000 * score)
        result |= {
            "test_count": count,
            "test_correct": correct,
            "test_accuracy": correct / count,
        }
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "result.json").write_text(json.dumps(result))


Scores = Callable[[str, int, float, int], TrialOutcome]
"""By row, candidate, learning rate and seed."""


def tune(spec: Table, folder: Path, scores: Scores) -> Plan:
    """Make up records for what the tuning wants, round by round, until it wants no more; return its
    last plan."""
    path = write_spec(folder, spec)
    while True:
        plan = make_plan(load_spec(path), folder, tuning=True)
        target = folder / plan.experiment.name
        missing = 0
        write_record(target / "experiment.json", plan.experiment)
        for row in plan.experiment.rows:
            assert row.tunes is not None
            for seed, run_id in row.runs.items():
                if not (target / run_id).exists():
                    outcome = scores(
                        row.tunes, row.candidate or 0, row.learning_rate, int(seed)
                    )
                    write_run(target / run_id, run_id, row.row, int(seed), outcome)
                    missing += 1
        if not missing:
            return plan


def second_wins(row: str, candidate: int, rate: float, seed: int) -> TrialOutcome:
    """The second settings and the rate in the middle score best; the third have the least training
    loss."""
    return TrialOutcome(
        0.8 + 0.1 * (candidate == 1) - abs(rate - 0.02),
        1.0 - 0.1 * candidate + abs(rate - 0.02),
    )


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    tune(regime_spec(), tmp_path, second_wins)
    return tmp_path


def planned(folder: Path, spec: Table) -> Plan:
    return make_plan(load_spec(write_spec(folder, spec)), folder)


# Candidates.


def test_the_tuning_tries_every_table_of_settings_with_held_out_samples_and_its_own_length(
    tmp_path: Path,
) -> None:
    plan = make_plan(
        load_spec(write_spec(tmp_path, regime_spec())), tmp_path, tuning=True
    )
    csea = [row for row in plan.experiment.rows if row.tunes == "csea-4"]
    assert [(row.row, row.candidate) for row in csea] == [
        (f"csea-4_c{c}_lr0.02", c) for c in range(3)
    ]
    assert [row.candidate for row in plan.experiment.rows if row.tunes == "sgd"] == [
        None
    ] * 3
    assert {row.num_steps for row in plan.experiment.rows} == {20}
    assert {tuple(row.runs) for row in plan.experiment.rows} == {("101",)}
    configs = {run.row: run.config for run in plan.runs}
    assert configs["csea-4_c2_lr0.02"].settings.table == {"error_compressor": TOP_K}
    assert {
        (config.task.held_out, config.task.num_train, config.num_epochs)
        for config in configs.values()
    } == {(400, 800, 1)}


def test_rows_take_settings_and_rate_from_the_tuning(tuned: Path) -> None:
    plan = planned(tuned, regime_spec())
    config = {run.row: run.config for run in plan.runs}["csea-4"]
    assert config.settings.table == {"error_compressor": BLOCK | {"num_blocks": 8}}
    assert config.learning_rate == 0.02
    tuning = plan.experiment.tuning
    assert tuning is not None
    choice = tuning.choices["csea-4"]
    assert (choice.candidate, choice.num_trials, choice.at_end) == (
        1,
        3,
        True,
    )  # one rate has no neighbours
    assert choice.settings == config.settings.table
    assert not tuning.choices["sgd"].at_end
    assert tuning.choices_by_training_loss["csea-4"].candidate == 2
    rates = {
        row.row: row.learning_rate
        for row in plan.experiment.rows
        if row.repeats is None
    }
    assert {name: each.learning_rate for name, each in tuning.choices.items()} == rates
    experiment = plan.experiment
    assert (
        experiment.floor,
        experiment.margin_reason,
        experiment.main_ratio_group,
    ) == ("alone", "it is small", 4)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("rows.4.learning_rates", [0.01, 0.02], "row 'csea-4' begins with 6 trials"),
        (
            "rows.4.learning_rate",
            0.1,
            "candidates, so it can have neither settings nor a learning_rate",
        ),
        (
            "rows.0.learning_rates",
            [0.1, 0.1000000001, 0.2],
            "rows.0.learning_rates: holds a value twice",
        ),
        ("statistics.floor", "nobody", "the floor 'nobody' is no row"),
        ("lengths.seeds", [101], "tuning.seeds must be other than lengths.seeds"),
        (
            "tuning.lowest",
            0.015,
            "the rate 0.01 lies outside tuning.lowest and highest",
        ),
        (
            "schedule.warmup_epochs",
            1.5,
            "a warm-up of 1.6 epochs is longer than the shortest run",
        ),
    ],
)
def test_specs_that_cannot_be_are_refused(
    path: str, value: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=words):
        load_spec(write_spec(tmp_path, changed(regime_spec(), path, value)))


# Records that do not suffice.


def test_a_tuning_that_is_not_there_or_not_done_is_named_with_the_command_that_makes_it(
    tuned: Path,
) -> None:
    command = r"run the tuning first \(`python -m harness run"
    with pytest.raises(
        SpecError,
        match=rf"the tuning in .*new_tuning no run .*; {command} new --tuning`\)",
    ):
        planned(tuned, regime_spec() | {"name": "new"})
    folder = tuned / "small_tuning"
    row = next(row for row in read_experiment(folder).rows if row.tunes == "sgd")
    (folder / row.runs["101"] / "result.json").unlink()
    words = rf"no run {row.runs['101']} of {row.row} .*it is not done, or .*; {command} small"
    with pytest.raises(SpecError, match=words):
        planned(tuned, regime_spec())


def test_a_row_that_diverged_everywhere_has_no_choice(tmp_path: Path) -> None:
    tune(regime_spec(), tmp_path, lambda *_: TrialOutcome(None, None))
    with pytest.raises(
        SpecError,
        match=r"'sgd' diverged at every learning rate of the grid .* widen the grid",
    ):
        planned(tmp_path, regime_spec())


# Other lengths, both rules.


def test_rows_are_there_again_at_other_lengths_but_for_those_that_send_too_little(
    tuned: Path, cli: CommandLine
) -> None:
    spec = changed(regime_spec(), "tuning.num_trials")
    spec["rows"][5] |= {
        "settings": {"sync_interval": 30},
        "learning_rate": 0.02,
        "ratio": 30,
    }
    path = write_spec(tuned, spec)
    plan = make_plan(load_spec(path), tuned)
    rows = {row.row: row for row in plan.experiment.rows}
    assert len(rows) == 6 * 3 - 1
    assert "local_sgd-5@2" in rows
    for name in ("sgd", "alone", "csea-4", "final_average"):
        for num_epochs in (1, 2):
            row = rows[f"{name}@{num_epochs}"]
            assert (row.repeats, row.num_steps, list(row.runs)) == (
                name,
                20 * num_epochs,
                ["1"],
            )
            assert (row.settings, row.learning_rate) == (
                rows[name].settings,
                rows[name].learning_rate,
            )
    assert rows["final_average@1"].ratio_group == 20
    assert rows["csea-4@1"].ratio_group == 4
    configs = {run.row: run.config for run in plan.runs}
    assert configs["csea-4@2"].num_epochs == 2
    assert configs["csea-4@2"].task.held_out == 0
    assert len({run.run_id for run in plan.runs}) == len(plan.runs)
    sentence = "local_sgd-5@1 is left out: its sync_interval of 30 is more than the run's 20 steps"
    assert plan.left_out == [sentence]
    assert sentence in cli.out("plan", path, "--results", tuned).splitlines()


def test_the_other_rules_choices_are_rows_of_their_own_where_they_differ(
    tuned: Path,
) -> None:
    spec = changed(regime_spec(), "tuning.both_rules", True)
    plan = planned(tuned, spec)
    (row,) = [row for row in plan.experiment.rows if row.chosen_by == "training_loss"]
    assert (row.row, row.repeats, list(row.runs)) == (
        "csea-4~loss",
        "csea-4",
        ["1", "2"],
    )
    assert row.settings == {"error_compressor": TOP_K}
    assert row.num_steps == 80


# A tuning that two experiments share.


def write_borrower(folder: Path, **changes: Any) -> Path:
    write_spec(folder, regime_spec()).rename(folder / "small.toml")
    same: Table = {
        "format": 1,
        "like": "small",
        "name": "other",
        "title": "Another",
        "training": {"num_epochs": 3},
    }
    return write_spec(folder, same | {"rows": ["sgd", "alone", "csea-4"]} | changes)


def test_a_borrower_has_choices_from_the_tuning_beside_rows_of_its_own_and_restarts_any(
    tuned: Path,
) -> None:
    own = {
        "row": "own",
        "label": "Own",
        "algorithm": "ef_sgd",
        "learning_rate": 0.2,
        "settings": {"compressor": BLOCK},
    }
    restarts = [{"row": row, "without": ["momentum"]} for row in ("own", "csea-4")]
    path = write_borrower(
        tuned, rows=["sgd", "alone", "csea-4", own], restarts=restarts
    )
    plan = make_plan(load_spec(path), tuned)
    configs = {run.row: run.config for run in plan.runs}
    assert list(configs) == [
        "sgd",
        "alone",
        "csea-4",
        "own",
        "own~momentum",
        "csea-4~momentum",
    ]
    assert configs["csea-4"].settings.table == {
        "error_compressor": BLOCK | {"num_blocks": 8}
    }
    assert configs["csea-4"].num_epochs == 3
    assert configs["own~momentum"].learning_rate == 0.2
    assert configs["csea-4~momentum"].settings == configs["csea-4"].settings
    assert plan.experiment.tuning is not None
    assert plan.experiment.tuning.experiment == "small_tuning"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"training": {"weight_decay": 0.25}},
            "made with other settings than the spec has",
        ),
        (
            {"tuning": {"records": "small"}},
            "name the experiment whose tuning this shares in `like`",
        ),
        ({"rows": ["sgd", "adam"]}, "rows names 'adam', which is not among the"),
        ({"like": "nothing"}, "no experiment 'nothing'"),
        (
            {"like": "studies/workers_2"},
            "which is itself like 'studies/two_level'; name that instead",
        ),
    ],
)
def test_borrowings_that_cannot_be_are_refused(
    changes: Table, words: str, tuned: Path
) -> None:
    with pytest.raises(SpecError, match=words):
        make_plan(load_spec(write_borrower(tuned, **changes)), tuned)


def test_the_command_tunes_in_rounds_until_nothing_is_missing(
    tmp_path: Path, cli: CommandLine
) -> None:
    spec = regime_spec()
    spec["rows"] = spec["rows"][1:2]
    spec["statistics"]["baseline"] = "alone"
    spec["statistics"].pop("floor")
    del spec["lengths"]
    words = [
        "run",
        write_spec(tmp_path, spec),
        "--results",
        tmp_path,
        "--tuning",
        "--jobs",
        "1",
    ]
    assert "[4/4]" in cli.out(*words)
    recorded = read_experiment(tmp_path / "small_tuning")
    assert sorted(len(row.runs) for row in recorded.rows) == [1, 1, 2]
    assert "all 4 runs of small_tuning are done" in cli.out(*words)


# Experiments that are like another.


def test_what_is_not_said_is_as_in_the_other_experiment(tmp_path: Path) -> None:
    base = load_spec(EXPERIMENTS / "studies/two_level.toml")
    own: Table = {
        "format": 1,
        "name": "own",
        "title": "own",
        "like": "studies/two_level",
    }
    spec = load_spec(
        write_spec(
            tmp_path, own | {"rows": ["sgd", "alone"], "training": {"num_workers": 2}}
        )
    )
    assert spec.training == base.training.model_copy(update={"num_workers": 2})
    assert [row.row for row in spec.rows] == ["sgd", "alone"]
    assert spec.rows[0] == base.rows[0]
    same = {
        "name": base.name,
        "title": base.title,
        "training": base.training,
        "tuning": base.tuning,
        # What an experiment is evidence for is its own.
        "evidence": base.evidence,
    }
    assert spec.model_copy(update=same) == base.model_copy(update={"rows": spec.rows})
    assert (
        spec.tuning is not None and spec.tuning.records == "study_two_level"
    )  # whose choices it takes
