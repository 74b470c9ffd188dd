"""Plans: run ids, what a row promises in bits, and that shipped experiments stay what they are."""

from __future__ import annotations

import copy
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cser_bench.algorithms import StackedCollectives
from cser_bench.harness.models.transformer import GPT
from cser_bench.harness.places import EXPERIMENTS
from cser_bench.harness.plan.footprint import footprint_of
from cser_bench.harness.plan.plan import Plan, make_plan, plan_experiment
from cser_bench.harness.plan.rows import config_of
from cser_bench.harness.plan.search import Trial
from cser_bench.harness.plan.show import show_plan
from cser_bench.harness.plan.tuning import settled
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import MethodSettings, RunConfig, run_id
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.train.build import build_optimizer
from tests.harness.support import (
    BLOCK,
    CSER,
    ROOT,
    Table,
    changed,
    small_config,
    small_spec,
    write_spec,
)


def test_run_id_depends_on_scientific_fields() -> None:
    others = {
        "learning_rate": 0.06,
        "settings.reset_interval": 4,
        "task.held_out": 1,
        "restart": {"without": ["error"]},
    }
    config = small_config("cser", CSER)
    table = config.model_dump(mode="json")
    ids = {run_id(config)}
    for path, other in others.items():
        changed_table = changed(table, path, other)
        changed_config = RunConfig.model_validate(changed_table)
        ids.add(run_id(changed_config))
    assert len(ids) == 1 + len(others)


def plan_of(table: Table, folder: Path) -> Plan:
    spec = load_spec(write_spec(folder, table))
    return make_plan(spec, folder)


def ids_of(plan: Plan) -> set[str]:
    return {run.run_id for run in plan.runs}


def test_run_ids_do_not_depend_on_names_words_and_statistics(tmp_path: Path) -> None:
    table = small_spec()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = copy.deepcopy(table)
    other["name"] = "other"
    other["title"] = "Other"
    other["statistics"]["margin"] = 0.05
    other["statistics"]["confidence"] = 0.9
    other["rows"].reverse()
    for row in other["rows"]:
        row["label"] = f"x{row['label']}"
        del row["ratio"]
    ids = ids_of(plan_of(table, tmp_path))
    assert ids_of(plan_of(other, elsewhere)) == ids
    assert len(ids) == 6


def test_plan_is_what_the_spec_says(tmp_path: Path) -> None:
    spec = changed(small_spec(), "rows.1.warmup_epochs", 0.5)
    spec["rows"][0]["partition"] = {"kind": "contiguous"}
    plan = plan_of(spec, tmp_path)
    rows = [row.row for row in plan.experiment.rows]
    assert rows == ["sgd", "cser", "ef_sgd"]
    for row in plan.experiment.rows:
        runs = {}
        for run in plan.runs:
            if run.row == row.row:
                runs[str(run.seed)] = run.run_id
        assert row.runs == runs
        assert list(runs) == ["1", "2"]
        assert row.num_steps == 40
        assert row.num_parameters == 742
    by_row = {run.row: run.config for run in plan.runs}
    assert by_row["sgd"].momentum == 0.9
    assert by_row["cser"].momentum == 0.0
    sgd = by_row["sgd"]
    cser = by_row["cser"]
    ef_sgd = by_row["ef_sgd"]
    for config in by_row.values():
        assert config.num_workers == 2
    assert sgd.schedule.warmup_epochs == 0.25
    assert cser.schedule.warmup_epochs == 0.5
    assert ef_sgd.schedule.warmup_epochs == 0.25
    assert sgd.partition.kind == "contiguous"
    assert cser.partition.kind == "reshuffled"
    assert ef_sgd.partition.kind == "reshuffled"
    recorded = plan.experiment.config["partition"]
    assert recorded["kind"] == "reshuffled", (
        "the experiment's, though its first row has another"
    )


def test_a_plan_warns_of_settings_that_will_go_wrong_in_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once for each row, and by no other way."""
    row: Table = {
        "row": "pairs",
        "label": "NoLoCo",
        "algorithm": "noloco",
        "learning_rate": 0.05,
    }
    spec = changed(small_spec(), "training.num_workers", 8)
    for momentum, is_warned_of in ((0.9, True), (0.5, False)):
        row["settings"] = {
            "sync_interval": 4,
            "outer_lr": 0.7,
            "outer_momentum": momentum,
        }
        rows = [*spec["rows"], row]
        table = spec | {"rows": rows}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan = plan_of(table, tmp_path)
        show_plan(plan)
        lines = capsys.readouterr().out.splitlines()
        said = [line for line in lines if line.startswith("warning: ")]
        assert len(said) == is_warned_of
        words = "warning: pairs: with outer_lr = 0.7 and outer_momentum = 0.9"
        for line in said:
            assert line.startswith(words)


def test_some_rows_and_seeds_of_a_plan(tmp_path: Path) -> None:
    spec = load_spec(EXPERIMENTS / "cifar100.toml")
    plan = make_plan(spec, tmp_path)
    row = plan.experiment.rows[3].row
    other = plan.experiment.rows[5].row
    some = plan.only([row, other], [1, 2])
    found = {(run.row, run.seed) for run in some.runs}
    assert found == {(row, 1), (row, 2), (other, 1), (other, 2)}
    assert some.experiment == plan.experiment
    assert plan.only([], []).runs == plan.runs
    with pytest.raises(SpecError, match="has no row 'mcsr'"):
        plan.only([row, "mcsr"], [])
    with pytest.raises(SpecError, match="has no run of these seeds"):
        plan.only([row], [77])


def test_runs_that_share_a_seed_are_chosen_by_the_plans(tmp_path: Path) -> None:
    spec = load_spec(EXPERIMENTS / "cifar100_released.toml")
    plan = make_plan(spec, tmp_path)
    shared = {run.config.seed for run in plan.runs}
    assert shared == {0}
    chosen = plan.only([], [1, 3])
    seeds = {run.seed for run in chosen.runs}
    assert seeds == {1, 3}
    with pytest.raises(SpecError, match="has no run of these seeds"):
        plan.only([], [0])


def test_a_plan_has_each_rows_local_step_and_the_optimiser_its_numbers(
    tmp_path: Path,
) -> None:
    """All rows by AdamW, the second one with numbers of its own, the third by SGD."""
    spec = small_spec()
    training = spec["training"]
    training["local_step"] = "adamw"
    training["betas"] = [0.9, 0.98]
    training["eps"] = 1e-9
    _, second, third = spec["rows"]
    second["betas"] = [0.8, 0.9]
    second["eps"] = 1e-6
    del second["momentum"]
    third["local_step"] = "sgd"
    plan = plan_of(spec, tmp_path)
    configs = {run.row: run.config for run in plan.runs}
    stepping = {}
    for row, each in configs.items():
        stepping[row] = (each.local_step, each.momentum, each.betas, each.eps)
    assert stepping == {
        "sgd": ("adamw", 0.0, [0.9, 0.98], 1e-9),
        "cser": ("adamw", 0.0, [0.8, 0.9], 1e-6),
        "ef_sgd": ("sgd", 0.9, [0.9, 0.999], 1e-8),
    }
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    model = torch.nn.ParameterList([parameter])
    collectives = StackedCollectives(2)
    optimizer = build_optimizer(configs["sgd"], model, collectives, 1)
    (group,) = optimizer.param_groups
    del group["params"]
    assert group == {
        "lr": 0.05,
        "betas": (0.9, 0.98),
        "eps": 1e-9,
        "weight_decay": 1e-3,
    }
    # Two moments, of which SGD has one.
    without_settings = {"settings": MethodSettings(), "algorithm": "sgd"}
    plain = configs["ef_sgd"].model_copy(update=without_settings)
    sgd = footprint_of(plain)
    adamw = footprint_of(configs["sgd"])
    assert adamw.checkpoint_bytes - sgd.checkpoint_bytes == 4 * 742


def test_muon_leaves_a_models_embeddings_and_output_to_adamw() -> None:
    """Stacked workers' parameters are grouped as their model's own, and stay in its order."""
    config = small_config(local_step="muon", momentum=0.95)
    model = GPT(8, 11, width=4, num_heads=2, num_layers=1, feedforward=6)
    stacked = []
    for each in model.parameters():
        own = each.detach()
        of_both = own.expand(2, *own.shape)
        parameter = torch.nn.Parameter(of_both.clone())
        stacked.append(parameter)
    collectives = StackedCollectives(2)
    optimizer = build_optimizer(config, model, collectives, 1, stacked)
    apart, hidden = optimizer.param_groups
    assert not apart["muon"]
    assert hidden["muon"]
    assert hidden["momentum"] == 0.95
    shapes = [tuple(each.shape) for each in apart["params"]]
    assert shapes == [(2, 11, 4), (2, 8, 4)]
    grouped = apart["params"] + hidden["params"]
    assert grouped == stacked


# Models sent.

LOCAL = {"sync_interval": 5}
TOP_K = {"kind": "top_k", "ratio": 8}
RING = 2 * 3 / 4
"""What a ring of four workers carries of an all-reduce, in payloads."""
DPSGD = {"order": "adapt_then_combine"}
CHOCO = {"topology": "exponential", "compressor": BLOCK, "gamma": 0.5}
SIGN = (8 * 93 + 32) / (32 * 742)
"""A message of signs, in models."""
SIGNS = {"kind": "quantised_blocks", "bits": 1}
SENT = 3 * (256 + 32) / (32 * 742)
"""Signs that are all-reduced, and their three blocks, in models."""


@dataclass(frozen=True)
class Sent:
    """What a method with these settings sends in 20 steps, and what a link carries, in models."""

    algorithm: str
    settings: Table
    models: float
    link: float
    final_exchange: bool = False
    """Whether one follows at the end."""


# Blocks of 186 numbers; top-k keeps 92 of 742, each with an index. A link carries once what goes to
# neighbours, and the average at the end is all-reduced.
SENT_BY = {
    "DDP": Sent("sgd", {}, models=20, link=RING * 20),
    "no communication": Sent("alone", {}, models=0, link=0),
    "gradient accumulation": Sent(
        algorithm="sgd_accumulate",
        settings={"accumulation_steps": 6},
        models=3,
        link=RING * 3,
    ),
    "local SGD": Sent("local_sgd", LOCAL, models=4, link=RING * 4),
    "local SGD, a rest": Sent(
        algorithm="local_sgd",
        settings={"sync_interval": 6},
        models=4,
        link=RING * 4,
        final_exchange=True,
    ),
    "local SGD, one average": Sent(
        algorithm="local_sgd",
        settings={"sync_interval": "end"},
        models=1,
        link=RING * 1,
    ),
    "EF blocks": Sent(
        algorithm="ef_sgd",
        settings={"compressor": BLOCK},
        models=20 * 186 / 742,
        link=RING * 20 * 186 / 742,
    ),
    "EF top-k": Sent(
        algorithm="ef_sgd",
        settings={"compressor": TOP_K},
        models=20 * 184 / 742,
        link=3 * 20 * 184 / 742,
    ),
    "EF signs": Sent(
        algorithm="ef_sgd",
        settings={"compressor": SIGNS},
        models=20 * SENT,
        link=RING * 20 * SENT,
    ),
    "CSEA blocks": Sent(
        algorithm="csea",
        settings={"error_compressor": BLOCK},
        models=20 * 186 / 742 + 1,
        link=RING * (20 * 186 / 742 + 1),
        final_exchange=True,
    ),
    "CSEA top-k": Sent(
        algorithm="csea",
        settings={"error_compressor": TOP_K},
        models=20 * 184 / 742 + 1,
        link=3 * 20 * 184 / 742 + RING,
        final_exchange=True,
    ),
    "D-PSGD, ring": Sent(
        algorithm="dpsgd",
        settings=DPSGD | {"topology": "ring"},
        models=2 * 20 + 1,
        link=2 * 20 + RING,
        final_exchange=True,
    ),
    "D-PSGD, one peer": Sent(
        algorithm="dpsgd",
        settings=DPSGD | {"topology": "one_peer"},
        models=20 + 1,
        link=20 + RING,
        final_exchange=True,
    ),
    "D-PSGD, complete": Sent(
        algorithm="dpsgd",
        settings=DPSGD | {"topology": "complete"},
        models=3 * 20,
        link=3 * 20,
    ),
    "CHOCO-SGD": Sent(
        algorithm="choco_sgd",
        settings=CHOCO,
        models=2 * 20 * 186 / 742 + 1,
        link=2 * 20 * 186 / 742 + RING,
        final_exchange=True,
    ),
    "DeepSqueeze": Sent(
        algorithm="deep_squeeze",
        settings=CHOCO | {"compressor": {"kind": "sign"}},
        models=2 * 20 * SIGN + 1,
        link=2 * 20 * SIGN + RING,
        final_exchange=True,
    ),
}


@pytest.mark.parametrize("name", SENT_BY)
def test_models_sent_and_what_a_link_carries(name: str) -> None:
    """Footprint of 20 steps of four workers with 742 parameters."""
    case = SENT_BY[name]
    config = small_config(case.algorithm, case.settings, num_workers=4)
    seen = footprint_of(config)
    assert seen.num_steps == 20
    assert seen.num_parameters == 742
    assert seen.final_exchange == case.final_exchange
    assert seen.models_sent == pytest.approx(case.models)
    assert seen.link_models == pytest.approx(case.link)


# Shipped experiments.

RUNS = {
    "cifar100": "35fe51ce85e5",
    "cifar100_released": "fb025d7f083d",
    "imagenet": "09d3d1a69a1c",
    "imagenet_released": "3faaaaefe8c9",
}
"""The digest of all ids of runs. They were looked at beside the paper's tables, and may not change
without a word."""


@pytest.mark.whole
@pytest.mark.parametrize("name", RUNS)
def test_the_papers_experiments_have_the_runs_that_they_had_five_of_each_setting(
    name: str,
) -> None:
    spec = load_spec(EXPERIMENTS / f"{name}.toml")
    plan = make_plan(spec, Path("no records"))
    ids = sorted(ids_of(plan))
    assert len(ids) == 5 * len(plan.experiment.rows)
    text = " ".join(ids)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest.startswith(RUNS[name])


RESULTS = ROOT / "results"
WITHOUT_SPEC = {"kjv_es", "kjv_es_tuning"}
"""Records whose task has left; docs/history.md names the commit that can plan them."""
RECORDED = [each for each in shipped_experiments() if each.name not in WITHOUT_SPEC]
SPECS = {
    path.stem: load_spec(path) for path in (EXPERIMENTS / "studies").glob("*.toml")
}
STUDIES = sorted(SPECS)


def has_all_rates(name: str) -> bool:
    return all(row.learning_rate for row in SPECS[name].rows)


FIXED = [name for name in STUDIES if has_all_rates(name)]
LONG_STUDIES = [name for name in STUDIES if SPECS[name].training.num_epochs == 150]
"""Studies of the perceptron at the length of the main experiment."""
SHORT_STUDIES = ["cnn_hooks"]
"""Like table_cnn, whose length is 1,496 steps."""
SHIPPED = [name for name in STUDIES if (RESULTS / f"study_{name}_tuning").is_dir()]


@pytest.mark.whole
@pytest.mark.parametrize(
    "folder", RECORDED, ids=[str(folder.relative_to(RESULTS)) for folder in RECORDED]
)
def test_plans_have_the_runs_of_the_records_that_ship(folder: Path) -> None:
    recorded = read_experiment(folder)
    is_tuning = recorded.name.endswith("_tuning")
    name = recorded.name.removesuffix("_tuning")
    spec_name = name.replace("study_", "studies/")
    plan = plan_experiment(spec_name, RESULTS, tuning=is_tuning)
    for row, footprint in plan.footprints.items():
        assert footprint.caution is None, row
    assert recorded.evidence == plan.experiment.evidence
    families = plan.experiment.families
    assert recorded.families.items() <= families.items()
    planned = {row.row: row.runs for row in plan.experiment.rows}
    for recorded_row in recorded.rows:
        runs = recorded_row.runs
        plan_runs = planned[recorded_row.row]
        assert runs.items() <= plan_runs.items(), recorded_row.row


@pytest.mark.parametrize("name", [*FIXED, *SHIPPED])
def test_a_study_has_floor_ceiling_at_least_three_seeds_and_one_budget(
    name: str,
) -> None:
    plan = plan_experiment(f"studies/{name}", RESULTS)
    rows = {row.row: row for row in plan.experiment.rows}
    config = plan.runs[0].config
    task = config.task.name
    lengths = {
        "fashion_mnist": (4675, "sgd"),
        "fashion_mnist_crops": (4680, "sgd"),
        "kjv_text": (1922, "adamw"),
        "gcide": (480, "adamw"),
    }
    num_steps, baseline = lengths[task]
    assert plan.experiment.floor == "alone"
    assert plan.experiment.baseline == baseline
    assert {baseline, "alone"} <= rows.keys()
    for row in rows.values():
        assert len(row.runs) >= 3, row.row
    if name in LONG_STUDIES:
        num_steps = 28050
    if name in SHORT_STUDIES:
        num_steps = 1496
    found_steps = {row.num_steps for row in rows.values()}
    assert found_steps == {num_steps}
    if task != "fashion_mnist":
        return
    if name in LONG_STUDIES or name in SHORT_STUDIES:
        return
    ratios = set()
    for run in plan.runs:
        ratio = rows[run.row].ratio_group
        ratios.add(ratio)
        sent = footprint_of(run.config).models_sent
        if ratio == 96:
            assert 48 < sent < 51, run.row
        if ratio == 24:
            assert 193 < sent < 200, run.row
    assert 96 in ratios


def test_the_long_experiment_is_in_the_papers_regime() -> None:
    """Models sent in a run of so many steps, by overall ratio, as in the paper."""
    long = load_spec(EXPERIMENTS / "fashion_mnist_long.toml")
    paper = {12: 2_438, 96: 305, 384: 76}
    ratios = {row.ratio_group for row in long.rows}
    assert ratios >= {None, 1, *paper, 1536}
    for row in long.rows:
        for number in range(len(row.settings_to_try)):
            trial = Trial(number, 0.01)
            settled_row = settled(row, trial)
            config = config_of(long, settled_row, 1)
            seen = footprint_of(config)
            assert seen.num_steps == 28_050
            assert seen.num_parameters == 25_450
            if row.ratio_group not in paper:
                continue
            if row.row == "sgd_outer":
                continue
            if not seen.gathered_bits:
                models = paper[int(row.ratio_group)]
                expected = pytest.approx(models, rel=0.1)
                assert seen.models_in_training == expected, (row.row, number)
