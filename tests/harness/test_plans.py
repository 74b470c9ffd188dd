"""Plans: run ids, what a row promises in bits, and the shipped experiments."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli.show import show_plan
from harness.plan.plan import Plan, make_plan
from harness.rows import RowSpec
from harness.spec import RunConfig, Spec, SpecError, run_id
from harness.spec_file import EXPERIMENTS, load_spec
from harness.tasks.task import find_task
from harness.train.build import num_steps_of
from tests.harness.support import CSER, ROOT, Table, changed, small_config, small_spec, write_spec

SHIPPED = sorted(path.stem for path in EXPERIMENTS.glob("*.toml"))

OTHER_WORDS = {
    "schedule.kind": "constant",
    "evaluation.batch_norm": "local",
    "partition.kind": "contiguous",
    "precision": "bf16",
    "wire": "fp16",
    "local_step": "adamw",
    "schedule.milestones": [0.5],
    "evaluation.num_scores": 5,
    "restart": {"without": ["error"]},
    "betas": [0.8, 0.999],
}
"""Of fields whose other values are not just any text or number."""


def dumped() -> Table:
    """The scientific fields of a run as plain data, defaults included."""
    return small_config("cser", CSER).model_dump(mode="json")


def id_of(table: Table) -> str:
    return run_id(RunConfig.model_validate(table))


def leaves(table: Table, prefix: str = "") -> list[str]:
    """Paths of the values that are no tables."""
    found: list[str] = []
    for key, value in table.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def other(path: str, value: Any) -> Any:
    """Another value for the field."""
    if path in OTHER_WORDS:
        return OTHER_WORDS[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.01
    return [*value, 9] if isinstance(value, list) else f"{value}-2"


@pytest.mark.parametrize("path", [path for path in leaves(dumped()) if path != "task.max_undecodable"])  # always 0
def test_run_id_depends_on_every_scientific_field(path: str) -> None:
    value: Any = dumped()
    for part in path.split("."):
        value = value[part]
    assert id_of(changed(dumped(), path, other(path, value))) != id_of(dumped())


def test_fields_at_their_default_are_no_part_of_the_hash_so_that_new_ones_change_no_old_id() -> None:
    written_down = {
        "task": {"name": "blobs"},
        "model": {"name": "small_cnn", "options": {"widths": [4, 8]}},
        "num_workers": 2,
        "batch_size": 20,
        "num_epochs": 1,
        "algorithm": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 0.001,
        "schedule": {"kind": "cosine", "warmup_epochs": 0.25},
        "evaluation": {"per_epoch": 2},
        "seed": 1,
    }
    text = json.dumps(written_down, sort_keys=True)
    assert run_id(small_config()) == hashlib.sha256(text.encode()).hexdigest()[:12]


def plan_of(table: Table, folder: Path, tuning: bool = False) -> Plan:
    return make_plan(load_spec(write_spec(folder, table)), folder, tuning)


def test_run_ids_do_not_depend_on_names_words_and_statistics(tmp_path: Path) -> None:
    table, elsewhere = small_spec(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = copy.deepcopy(table) | {"name": "other", "title": "Other"}
    other["statistics"] |= {"margin": 0.1, "confidence": 0.9}
    other["rows"] = [row | {"label": "x", "ratio": 7} for row in reversed(other["rows"])]
    other = changed(other, "tuning")
    ids = {run.run_id for run in plan_of(table, tmp_path).runs}
    assert {run.run_id for run in plan_of(other, elsewhere).runs} == ids
    assert len(ids) == 6


def test_plan_is_what_the_spec_says(tmp_path: Path) -> None:
    plan = plan_of(changed(small_spec(), "rows.1.warmup_epochs", 0.5), tmp_path)
    assert [row.row for row in plan.experiment.rows] == ["sgd", "cser", "ef_sgd"]
    for row in plan.experiment.rows:
        runs = {str(run.seed): run.run_id for run in plan.runs if run.row == row.row}
        assert row.runs == runs and list(runs) == ["1", "2"]
        assert (row.num_steps, row.num_parameters) == (40, 742)
    by_row = {run.row: run.config for run in plan.runs}
    assert (by_row["sgd"].momentum, by_row["cser"].momentum) == (0.9, 0.0)
    assert {config.num_workers for config in by_row.values()} == {2}
    warm_ups = {row: config.schedule.warmup_epochs for row, config in by_row.items()}
    assert warm_ups == {"sgd": 0.25, "cser": 0.5, "ef_sgd": 0.25}
    # Parameters, gradients, momentum; and an error of the same size where one is kept.
    numbers = {row: each.memory_bytes // (4 * 742) for row, each in plan.footprints.items()}
    assert numbers == {"sgd": 3, "cser": 3, "ef_sgd": 4}


def test_a_plan_prints_what_rows_share_and_momentum_that_is_not_nesterovs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small_spec()
    spec["rows"][2]["algorithm"] = "ef21_sgdm"
    spec["statistics"]["baseline_seeds"] = [1, 2, 3]
    show_plan(plan_of(spec, tmp_path))
    said = capsys.readouterr().out
    assert "ratio 4); momentum 0.9 (heavy ball with dampening)\n" in said
    assert said.startswith("Small\nbatch_size: 20\ncommunication_dtype: fp32\nevaluation: per_epoch 2\n")
    assert "\nseeds: 1, 2\nbaseline_seeds: 1, 2, 3\n" in said
    assert "model: small_cnn (options widths 4, 8)\n" in said and "schedule: cosine (warmup_epochs 0.25, " in said


def without_rates(spec: Table) -> Table:
    """The spec with all learning rates left to its tuning."""
    return spec | {"rows": [{key: row[key] for key in row if key != "learning_rate"} for row in spec["rows"]]}


def test_tuning_plan_holds_out_and_tries_every_rate(tmp_path: Path) -> None:
    plan = plan_of(without_rates(small_spec()), tmp_path, tuning=True)
    tried = {(row.tunes, row.learning_rate) for row in plan.experiment.rows}
    assert tried == {(row, rate) for row in ("sgd", "cser", "ef_sgd") for rate in (0.01, 0.1)}
    assert {run.config.task.held_out for run in plan.runs} == {400}
    assert {run.seed for run in plan.runs} == {101}
    assert plan.experiment.name == "small_tuning" and plan.experiment.baseline is None
    assert num_steps_of(plan.runs[0].config) == (30, 30)


def test_the_reports_commands_name_the_spec_as_it_was_given(tmp_path: Path) -> None:
    path = write_spec(tmp_path, small_spec()).rename(tmp_path / "my spec.toml")
    for given_as, argument in ((None, "small"), ("small", "small"), (str(path), f"'{path}'")):
        plan = make_plan(load_spec(path), tmp_path, given_as=given_as)
        assert plan.experiment.commands == [f"python -m harness {what} {argument}" for what in ("run", "report")]
    path = write_spec(tmp_path, without_rates(small_spec()))
    tuning = make_plan(load_spec(path), tmp_path, tuning=True, given_as="small")
    assert tuning.experiment.commands[0] == "python -m harness run small --tuning"


def with_rates(spec: Spec) -> Spec:
    """The spec with a learning rate in every row, one of its own, where it leaves them to a tuning."""

    def settled(number: int, row: RowSpec) -> RowSpec:
        rate = row.learning_rate or 0.1 + number / 1000
        return row.model_copy(update={"learning_rate": rate, "settings": row.tables[0], "candidates": []})

    return spec.model_copy(update={"rows": [settled(number, row) for number, row in enumerate(spec.rows)]})


def allow_short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of a few steps be planned that would send less than one model, or end before a reset."""
    for module in ("rows", "plan"):
        monkeypatch.setattr(f"harness.plan.{module}.why_too_short", lambda row, footprint: None)


def test_small_fashion_mnist_shares_its_runs_with_the_whole_one() -> None:
    results = ROOT / "results"  # the learning rates of the whole one come from records that ship
    small = make_plan(load_spec(EXPERIMENTS / "fashion_mnist_small.toml"), results)
    whole = make_plan(load_spec(EXPERIMENTS / "fashion_mnist.toml"), results)
    runs = {(run.row, run.seed): run.run_id for run in whole.runs}
    assert len(small.runs) == 6
    assert all(run.run_id == runs[run.row, run.seed] for run in small.runs)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_experiments_plan(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_short_runs(monkeypatch)
    spec = load_spec(EXPERIMENTS / f"{name}.toml")
    assert spec.name == name
    # A few steps are enough here: some bits can only be counted draw by draw.
    num_train = spec.task.num_train or find_task(spec.task.name).num_train
    batch_size = num_train // spec.training.num_workers // 4
    shorter = {"num_epochs": 1, "batch_size": batch_size}
    training = spec.training.model_copy(update=shorter)
    evaluation = spec.evaluation.model_copy(update={"num_scores": None})
    spec = spec.model_copy(update={"training": training, "evaluation": evaluation})
    if spec.restarts:  # of parts of a state that the settings which were chosen have
        spec = spec.model_copy(update={"restarts": []})
    plan = make_plan(with_rates(spec), tmp_path)
    seeds = {row.row: list(row.runs) for row in plan.experiment.rows}
    assert len({run.run_id for run in plan.runs}) == sum(map(len, seeds.values()))
    for row in spec.all_rows():
        own = spec.statistics.baseline_seeds if row.row == spec.statistics.baseline else []
        assert seeds[row.row] == [str(seed) for seed in own or spec.statistics.seeds]
    if spec.tuning is not None and spec.tuning.records is None:
        tuning = make_plan(spec, tmp_path, tuning=True)
        trials = sum(len(row.tables) * len(row.learning_rates or spec.tuning.grid) for row in spec.all_rows())
        num_seeds = len(spec.tuning.seeds) if spec.tuning.finalists is None else 1
        assert len(tuning.runs) == trials * num_seeds  # rows that share a candidate share its runs


def test_some_rows_and_seeds_of_a_plan(tmp_path: Path) -> None:
    plan = make_plan(load_spec(EXPERIMENTS / "cifar100.toml"), tmp_path)
    row, other = plan.experiment.rows[3].row, plan.experiment.rows[5].row
    some = plan.only([row, other], [1, 2])
    assert {(run.row, run.config.seed) for run in some.runs} == {
        (name, seed) for name in (row, other) for seed in (1, 2)
    }
    assert some.experiment == plan.experiment and plan.only([], []).runs == plan.runs
    with pytest.raises(SpecError, match=f"has no row 'mcsr'; its rows are {plan.experiment.rows[0].row}, "):
        plan.only([row, "mcsr"], [])
    with pytest.raises(SpecError, match="has no run of these seeds"):
        plan.only([row], [77])
