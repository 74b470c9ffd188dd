"""Shipped experiments: the paper's runs stay what they are; its regime; studies that are fair."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.plan.footprint import footprint_of
from harness.plan.plan import make_plan, plan_experiment
from harness.plan.rows import config_of
from harness.plan.tuning import Trial, settled
from harness.records.experiment import read_experiment
from harness.spec_file import EXPERIMENTS, load_spec

RUNS = {
    "cifar100": "35fe51ce85e5",
    "cifar100_released": "fb025d7f083d",
    "imagenet": "09d3d1a69a1c",
    "imagenet_released": "3faaaaefe8c9",
}
"""The digest of all ids of runs. They were looked at beside the paper's tables, and may not change without a word."""


@pytest.mark.parametrize("name", RUNS)
def test_the_papers_experiments_have_the_runs_that_they_had_five_of_each_setting(name: str) -> None:
    plan = make_plan(load_spec(EXPERIMENTS / f"{name}.toml"), Path("no records"))
    ids = sorted({run.run_id for run in plan.runs})
    assert len(ids) == 5 * len(plan.experiment.rows)
    assert hashlib.sha256(" ".join(ids).encode()).hexdigest()[:12] == RUNS[name]


# This project's own


RESULTS = Path(__file__).parents[2] / "results"
RECORDED = sorted(path.parent for path in RESULTS.rglob("experiment.json"))
STUDIES = sorted(path.stem for path in (EXPERIMENTS / "studies").glob("*.toml"))
FIXED = [
    name for name in STUDIES if all(row.learning_rate for row in load_spec(EXPERIMENTS / f"studies/{name}.toml").rows)
]
SHIPPED = [name for name in STUDIES if (RESULTS / f"study_{name}_tuning").is_dir()]


@pytest.mark.parametrize("folder", RECORDED, ids=[str(folder.relative_to(RESULTS)) for folder in RECORDED])
def test_plans_have_the_runs_of_the_records_that_ship(folder: Path) -> None:
    recorded = read_experiment(folder)
    name = recorded.name.removesuffix("_tuning").replace("study_", "studies/")
    planned = plan_experiment(name, RESULTS, tuning=recorded.name.endswith("_tuning")).experiment.rows
    runs = {row.row: row.runs for row in planned}
    for row in recorded.rows:
        assert row.runs.items() <= runs[row.row].items(), row.row


@pytest.mark.parametrize("name", [*FIXED, *SHIPPED])
def test_a_study_has_floor_ceiling_at_least_three_seeds_and_one_budget(name: str) -> None:
    plan = plan_experiment(f"studies/{name}", RESULTS)
    rows = {row.row: row for row in plan.experiment.rows}
    assert plan.experiment.floor == "alone" and plan.experiment.baseline == "sgd" and {"sgd", "alone"} <= rows.keys()
    assert {row.num_steps for row in rows.values()} == {4675} and all(len(row.runs) >= 3 for row in rows.values())
    sent = [(rows[run.row].ratio, footprint_of(run.config).models_sent) for run in plan.runs]
    assert 96 in dict(sent) and all(48 < each < 51 for ratio, each in sent if ratio == 96)
    assert all(193 < each < 200 for ratio, each in sent if ratio == 24)


def test_the_shipped_experiments_are_in_the_papers_regime() -> None:
    """Models sent in a run of so many steps, by overall ratio, as in the paper; at the main ratio 200 and more."""
    long, short = (load_spec(EXPERIMENTS / f"fashion_mnist_{name}.toml") for name in ("long", "regime"))
    paper = {12: 2_438, 96: 305, 384: 76}
    assert {row.ratio for row in long.rows} >= {None, 1, *paper, 1536}
    for row in long.rows:
        for number in range(len(row.tables)):
            seen = footprint_of(config_of(long, settled(row, Trial(number, 0.01)), 1))
            assert (seen.num_steps, seen.num_parameters) == (28_050, 25_450)
            if row.ratio in paper and not seen.gathered_bits and row.row != "sgd_outer":
                assert seen.models_in_training == pytest.approx(paper[int(row.ratio)], rel=0.1), (row.row, number)
    for row in short.rows:
        if row.ratio == short.statistics.main_ratio:
            assert footprint_of(config_of(short, settled(row, Trial(0, 0.01)), 1)).models_sent >= 200, row.row
    assert {row.row for row in short.rows} <= {row.row for row in long.rows}
    for field in ("task", "model", "schedule", "evaluation", "partition"):
        assert getattr(short, field) == getattr(long, field), field
    assert short.tuning is not None and long.tuning is not None and short.tuning.records == long.name


def test_small_fashion_mnist_shares_its_runs_with_the_whole_one() -> None:
    small = make_plan(load_spec(EXPERIMENTS / "fashion_mnist_small.toml"), RESULTS)
    whole = make_plan(load_spec(EXPERIMENTS / "fashion_mnist.toml"), RESULTS)
    runs = {(run.row, run.seed): run.run_id for run in whole.runs}
    assert len(small.runs) == 6
    assert all(run.run_id == runs[run.row, run.seed] for run in small.runs)
