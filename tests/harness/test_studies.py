"""The studies: what they take from where, what they hold equal, and experiments that are like another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plan.footprint import footprint_of
from harness.plan.plan import Plan, plan_experiment
from harness.records.experiment import read_experiment
from harness.records.packs import read_runs
from harness.spec_file import EXPERIMENTS, load_spec

RESULTS = Path(__file__).parents[2] / "results"
TUNING = RESULTS / "fashion_mnist_long_tuning"
STUDIES = sorted(path.stem for path in (EXPERIMENTS / "studies").glob("*.toml"))
FIXED = [
    name for name in STUDIES if all(row.learning_rate for row in load_spec(EXPERIMENTS / f"studies/{name}.toml").rows)
]
SHIPPED = [name for name in STUDIES if (RESULTS / f"study_{name}_tuning").is_dir()]

LENDERS = {
    "sgd": "sgd",
    "alone": "alone",
    "local_sgd": "local_sgd-96",
    "mcser": "mcser_block-96",
    "mcser_released": "mcser_block-96",
    "cser": "cser-96",
    "qsparse_local_sgd": "qsparse-96",
}
"""By algorithm, the row of fashion_mnist_long whose learning rate a study's row has."""


def lender_of(algorithm: str, settings: str, momentum_0: bool) -> str:
    if algorithm == "ef_sgd":
        return "ef_topk-96" if "top_k" in settings else "ef_block-96"
    if algorithm in ("cser_pl", "csea"):
        return "cser-96" if momentum_0 else "cser_pl-96" if algorithm == "cser_pl" else "csea-96"
    return LENDERS[algorithm]


def best_of_tuning(row: str) -> float:
    """The rate with the best mean accuracy over the tuning seeds, recomputed from the packed runs of the search."""
    experiment, runs = read_experiment(TUNING), read_runs(TUNING)
    scores: dict[float, list[float]] = {}
    for each in experiment.rows:
        if each.tunes == row and len(each.runs) == len(experiment.seeds):
            found = [runs[run_id].result for run_id in each.runs.values()]
            scores.setdefault(each.learning_rate, [])
            mean = sum(result.test_accuracy or 0 for result in found if result) / len(found)
            scores[each.learning_rate].append(mean)
    return max(scores, key=lambda rate: max(scores[rate]))


def planned(name: str) -> Plan:
    return plan_experiment(f"studies/{name}", RESULTS)


@pytest.mark.parametrize("name", STUDIES)
def test_rates_that_are_given_are_those_of_the_tuning_of_the_same_length(name: str) -> None:
    lent: dict[str, float] = {}
    for row in load_spec(EXPERIMENTS / f"studies/{name}.toml").rows:
        if row.learning_rate is None:
            continue
        lender = lender_of(row.algorithm, str(row.settings), row.momentum == 0)
        lent.setdefault(lender, best_of_tuning(lender))
        assert row.learning_rate == lent[lender], row.row


@pytest.mark.parametrize("name", [*FIXED, *SHIPPED])
def test_a_study_has_floor_ceiling_three_seeds_and_one_budget(name: str) -> None:
    plan = planned(name)
    rows = {row.row: row for row in plan.experiment.rows}
    assert plan.experiment.floor == "alone" and plan.experiment.baseline == "sgd" and {"sgd", "alone"} <= rows.keys()
    assert {row.num_steps for row in rows.values()} == {4675} and all(len(row.runs) == 3 for row in rows.values())
    sent = [(rows[run.row].ratio, footprint_of(run.config).models_sent) for run in plan.runs]
    assert 96 in dict(sent) and all(48 < each < 51 for ratio, each in sent if ratio == 96)
    assert all(193 < each < 200 for ratio, each in sent if ratio == 24)


def test_a_row_with_a_learning_rate_is_not_tuned() -> None:
    plan = plan_experiment("studies/rules", Path("no records"), tuning=True)
    tuned = {row.tunes for row in plan.experiment.rows}
    open_rows = {r.row for r in load_spec(EXPERIMENTS / "studies/rules.toml").rows if r.learning_rate is None}
    assert tuned == open_rows and len(plan.runs) == 3 * len(open_rows)


def like(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(f'format = 1\nname = "own"\ntitle = "own"\n{text}')
    return path


def test_what_is_not_said_is_as_in_the_other_experiment(tmp_path: Path) -> None:
    base = load_spec(EXPERIMENTS / "studies/two_level.toml")
    spec = load_spec(
        like(tmp_path, 'like = "studies/two_level"\nrows = ["sgd", "alone"]\n[training]\nnum_workers = 2\n')
    )
    assert spec.training == base.training.model_copy(update={"num_workers": 2})
    assert [row.row for row in spec.rows] == ["sgd", "alone"] and spec.rows[0] == base.rows[0]
    same = {"name": base.name, "title": base.title, "training": base.training, "tuning": base.tuning}
    assert spec.model_copy(update=same) == base.model_copy(update={"rows": spec.rows})
    assert spec.tuning is not None and spec.tuning.records == "study_two_level"  # whose choices it takes


def test_rows_taken_by_name_are_tuned_where_the_variation_has_a_tuning(tmp_path: Path) -> None:
    tuning = "[tuning]\ngrid = [0.1, 0.3, 1.0]\nseeds = [101]\nheld_out = 1000\n"
    rows = load_spec(like(tmp_path, f'like = "studies/two_level"\nrows = ["sgd", "alone"]\n{tuning}')).rows
    assert [row.learning_rate for row in rows] == [None, None]
    own = '[[rows]]\nrow = "sgd"\nlabel = "SGD"\nalgorithm = "sgd"\nratio = 1\nlearning_rate = 0.2\n'
    alone = own.replace('"sgd"', '"alone"').replace("ratio = 1\n", "")
    rows = load_spec(like(tmp_path, f'like = "studies/two_level"\n{tuning}{own}{alone}')).rows
    assert [row.learning_rate for row in rows] == [0.2, 0.2]
