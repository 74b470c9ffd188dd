"""Shipped experiments: the paper's grids, written out here once more; its regime; studies that are fair."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from harness.plan.footprint import footprint_of
from harness.plan.plan import Plan, make_plan, plan_experiment
from harness.plan.rows import config_of
from harness.plan.tuning import Trial, settled
from harness.records.experiment import read_experiment
from harness.spec import RunConfig, TaskSpec
from harness.spec_file import EXPERIMENTS, load_spec
from tests.harness.support import Table

Setting = tuple[str, tuple[tuple[str, float], ...], float]
"""Method, its numbers sorted by name, learning rate."""


def setting(method: str, rate: float, **numbers: float) -> Setting:
    return method, tuple(sorted(numbers.items())), rate


IMAGENET = {
    setting("SGD", 0.1),
    setting("EF-SGD", 0.025, R=32),
    setting("EF-SGD", 0.025, R=256),
    setting("EF-SGD", 0.025, R=1024),
    setting("QSparse-local-SGD", 0.025, R1=4, H=8),
    setting("QSparse-local-SGD", 0.025, R1=32, H=8),
    setting("QSparse-local-SGD", 0.025, R1=128, H=8),
    setting("CSEA", 0.05, R=32),
    setting("CSEA", 0.025, R=256),
    setting("CSEA", 0.025, R=1024),
    setting("CSER-PL", 0.025, R1=8, H=4),
    setting("CSER-PL", 0.025, R1=16, H=16),
    setting("CSER-PL", 0.025, R1=32, H=32),
    setting("CSER", 0.05, R2=64, R1=4, H=16),
    setting("CSER", 0.025, R2=512, R1=16, H=32),
    setting("CSER", 0.025, R2=2048, R1=8, H=256),
}

POWERS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CSER_PL = [(2, (2, 4, 8)), (4, (2, 4, 8)), (8, (4, 8, 16, 32)), (16, (4, 8, 16, 32)), (32, (32,))]
CSER = [
    *product((4, 8, 16, 32), (2,)),
    *product((8, 16, 32), (4,)),
    *product((16, 32), (8,)),
    *product((64, 128, 256, 512, 1024), (1, 4, 8, 16)),
    *product((2048,), (1, 4, 8, 16, 32)),
]
CIFAR100 = {
    each
    for rate in (0.05, 0.1, 0.5, 1.0)
    for each in [
        setting("SGD", rate),
        *(setting(method, rate, R=ratio) for method, ratio in product(("EF-SGD", "CSEA"), POWERS)),
        *(setting("QSparse-local-SGD", rate, R1=R1, H=H) for R1, H in product((1, 4, 16, 128), (2, 4, 8))),
        *(setting("CSER-PL", rate, R1=R1, H=H) for R1, intervals in CSER_PL for H in intervals),
        *(setting("CSER", rate, R2=R2, R1=R1, H=R2 // R1) for R2, R1 in CSER),
    ]
}

COMMON: dict[str, Table] = {
    "cifar100": {"num_workers": 8, "batch_size": 16, "num_epochs": 200, "momentum": 0.9, "precision": "fp32"},
    "imagenet": {"num_workers": 8, "batch_size": 32, "num_epochs": 120, "momentum": 0.9, "precision": "fp16"},
}
COMMON["cifar100"] |= {"model": {"name": "wide_resnet", "options": {"depth": 40, "width": 8}}, "weight_decay": 5e-4}
COMMON["imagenet"] |= {"model": {"name": "resnet50_v2", "options": {}}, "weight_decay": 1e-4}
FILES = ["cifar100", "cifar100_released", "imagenet", "imagenet_released"]
GRIDS = {"cifar100": CIFAR100, "imagenet": IMAGENET}
NUM_STEPS = {"cifar100": 78_000, "imagenet": 600_480}


def base(name: str) -> str:
    return name.removesuffix("_released")


@cache
def plan_of(name: str) -> Plan:
    return make_plan(load_spec(EXPERIMENTS / f"{name}.toml"), Path("no records"))


def ratio(compressor: Table, released: bool) -> float:
    """Of a block sparsifier; the released one's is the product of what it cuts rows, columns and tensors by."""
    if not released:
        assert set(compressor) == {"kind", "ratio"} and compressor["kind"] == "block"
        return float(compressor["ratio"])
    assert compressor["kind"] == "per_tensor_block"
    return float(compressor["row_ratio"] * compressor["column_ratio"] * compressor["tensor_ratio"])


def in_the_papers_words(config: RunConfig, released: bool) -> Setting:
    """Method, numbers and learning rate of a run."""
    table: dict[str, Any] = config.settings
    if config.algorithm == "sgd":
        return setting("SGD", config.learning_rate)
    if config.algorithm == "ef_sgd":
        return setting("EF-SGD", config.learning_rate, R=ratio(table["compressor"], released))
    if config.algorithm == "qsparse_local_sgd":
        numbers = {"R1": ratio(table["compressor"], released), "H": table["sync_interval"]}
        return setting("QSparse-local-SGD", config.learning_rate, **numbers)
    error, interval = ratio(table["error_compressor"], released), table.get("reset_interval", 1)
    silent = table.get("gradient_compressor", {"kind": "zero"}) == {"kind": "zero"}
    assert config.algorithm == ("mcser_released" if released else "mcser" if not silent else config.algorithm)
    if silent and interval == 1:
        assert released or config.algorithm == "csea"
        return setting("CSEA", config.learning_rate, R=error)
    if silent:
        assert released or config.algorithm == "cser_pl"
        return setting("CSER-PL", config.learning_rate, R1=error, H=interval)
    gradient = ratio(table["gradient_compressor"], released)
    return setting("CSER", config.learning_rate, R2=gradient, R1=error, H=interval)


@pytest.mark.parametrize("name", FILES)
def test_the_grid_is_the_papers_and_each_setting_has_five_runs(name: str) -> None:
    plan = plan_of(name)
    found = [in_the_papers_words(run.config, name.endswith("_released")) for run in plan.runs]
    assert set(found) == GRIDS[base(name)]
    assert {found.count(each) for each in set(found)} == {5}
    assert len({run.run_id for run in plan.runs}) == len(plan.runs) == 5 * len(GRIDS[base(name)])
    labels = {run.row: in_the_papers_words(run.config, name.endswith("_released"))[0] for run in plan.runs}
    assert labels == {row.row: row.label for row in plan.experiment.rows}


@pytest.mark.parametrize("name", FILES)
def test_what_all_runs_share_is_the_papers(name: str) -> None:
    plan, expected = plan_of(name), COMMON[base(name)]
    for run in plan.runs:
        config, schedule = run.config.model_dump(), run.config.schedule
        assert {key: config[key] for key in expected} == expected
        assert run.config.task == TaskSpec(name=base(name))  # nothing is held out
        if base(name) == "imagenet":
            assert (schedule.kind, schedule.warmup_epochs, schedule.staircase_warmup) == ("cosine", 5, False)
        else:
            assert (schedule.kind, schedule.milestones, schedule.factor) == ("milestones", [60, 120, 160], 0.2)
    assert {row.num_steps for row in plan.experiment.rows} == {NUM_STEPS[base(name)]}
    assert base(name) == "imagenet" or {row.num_parameters for row in plan.experiment.rows} == {35_794_516}


RELEASED_WARM_UPS = {
    # max(4, round(R2 * 5/128 * lr/0.05 * 2)), worked out by hand
    setting("CSER", 0.05, R2=4, R1=2, H=2): 4,
    setting("CSER", 0.05, R2=64, R1=4, H=16): 5,
    setting("CSER", 0.1, R2=64, R1=4, H=16): 10,
    setting("CSER", 0.5, R2=64, R1=4, H=16): 50,
    setting("CSER", 1.0, R2=64, R1=4, H=16): 100,
    setting("CSER", 0.5, R2=8, R1=4, H=2): 6,
    setting("CSER", 1.0, R2=2048, R1=32, H=64): 3200,
    # for CSER-PL with H as a further factor
    setting("CSER-PL", 0.05, R1=2, H=2): 4,
    setting("CSER-PL", 0.1, R1=8, H=32): 40,
    setting("CSER-PL", 1.0, R1=32, H=32): 1600,
    setting("CSEA", 0.05, R=1024): 80,
}


def test_released_warm_up_grows_with_ratio_and_rate_and_is_for_the_cser_family_alone() -> None:
    found = {}
    for run in plan_of("cifar100_released").runs:
        found[in_the_papers_words(run.config, released=True)] = run.config.schedule
    assert {key: found[key].warmup_epochs for key in RELEASED_WARM_UPS} == RELEASED_WARM_UPS
    for (method, _, _), schedule in found.items():
        has_warm_up = method in ("CSEA", "CSER-PL", "CSER")
        assert (schedule.warmup_epochs >= 4) == has_warm_up and (schedule.warmup_epochs == 0) != has_warm_up
        assert schedule.staircase_warmup or not has_warm_up


AS_RELEASED = {"average_parameters": True, "skip_gradient_at_reset": True, "decay_in_momentum_only": True}


@pytest.mark.parametrize("name", FILES)
def test_switches_of_the_release_are_all_on_or_all_off(name: str) -> None:
    released, half = name.endswith("_released"), base(name) == "imagenet"
    runs = plan_of(name).runs
    for run in runs:
        config = run.config
        assert config.evaluation.batch_norm == ("local" if released else "average")
        assert config.partition.kind == ("contiguous" if released else "reshuffled")
        switches = {key: value for key, value in config.settings.items() if isinstance(value, bool)}
        if not released:
            assert switches == {}
        elif config.algorithm == "mcser_released":
            assert switches == AS_RELEASED | ({"overwrite_master": True} if half else {})
        elif config.algorithm == "qsparse_local_sgd":
            assert switches == {"decay_in_momentum_only": True} | ({"keep_master": True} if half else {})
        elif config.algorithm == "ef_sgd":
            assert switches == {"decay_apart": True}
    seeds = {run.config.seed for run in runs}
    assert len(seeds) == (1 if released else 5)
    assert len({(run.config.seed, run.config.repeat) for run in runs}) == 5


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
