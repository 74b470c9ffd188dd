"""The answers: numbers worked out again from raw JSON, the shipped document rebuilt, and records that do not fit."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.records.packing import unpack
from harness.spec_file import find_spec, load_spec
from report.answers import evidence
from report.answers.__main__ import main
from report.answers.build import build_answers
from report.answers.questions import ASKED
from tests.report.made_up_studies import edit, made_up_accuracy, write_study

RESULTS = Path(__file__).parents[2] / "results"
SHIPPED = RESULTS / "answers"
Numbers = dict[tuple[int, str], dict[str, float]]


def numbers_of(folder: Path) -> Numbers:
    with (folder / "csv" / "numbers.csv").open() as file:
        lines = list(csv.DictReader(file))
    keys = ("value", "low", "high", "count")
    return {(int(x["question"]), x["key"]): {k: float(x[k]) for k in keys if x[k]} for x in lines}


def scores_of(folder: Path) -> pd.DataFrame:
    """Accuracy by row and seed, by counting, of an experiment's folders of runs."""
    lines: list[dict[str, Any]] = []
    for row in json.loads((folder / "experiment.json").read_text())["rows"]:
        for seed, run_id in row["runs"].items():
            path = folder / run_id / "result.json"
            if path.exists():
                result = json.loads(path.read_text())
                own = {key: row[key] for key in ("row", "label", "tunes", "learning_rate", "ratio")}
                done = result["status"] == "done"
                score = result["test_correct"] / result["test_count"] if done else np.nan
                lines.append(
                    {
                        **own,
                        "seed": int(seed),
                        "accuracy": score,
                        "train_loss": result["train_loss"] if done else np.nan,
                    }
                )
    return pd.DataFrame(lines)


def assert_apart(number: dict[str, float], scores: pd.DataFrame, left: str, right: str) -> None:
    """The number is the mean of left minus right, paired by seed, with its t interval."""
    series = {row: scores[scores.row == row].set_index("seed").accuracy for row in (left, right)}
    differences = (series[left] - series[right]).dropna()
    low, high = stats.t.interval(0.95, len(differences) - 1, differences.mean(), stats.sem(differences))
    assert (number["value"], number["low"], number["high"]) == pytest.approx((differences.mean(), low, high))
    assert number["count"] == len(differences)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped experiments as folders of runs."""
    results = tmp_path_factory.mktemp("raw")
    for folder in (RESULTS / "reference/fashion_mnist_long", RESULTS / "fashion_mnist_long_tuning"):
        shutil.copytree(folder, results / folder.name, ignore=shutil.ignore_patterns("figures", "csv", "report.*"))
        unpack(results / folder.name)
    return results


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("answers")
    build_answers(RESULTS, output)
    return output


def test_the_shipped_answers_are_what_the_records_give_to_the_byte(rebuilt: Path) -> None:
    for name in ("answers.md", "csv/numbers.csv"):
        assert (rebuilt / name).read_bytes() == (SHIPPED / name).read_bytes(), name
    assert (SHIPPED / "answers.pdf").read_bytes().startswith(b"%PDF")


def test_every_question_is_answered_or_names_the_command_that_would(rebuilt: Path) -> None:
    text = (rebuilt / "answers.md").read_text()
    assert [asked.question.number for asked in ASKED] == list(range(1, 26))
    parts = text.split("\n## ")
    for asked in ASKED:
        part = next(p for p in parts if p.startswith(f"{asked.question.number}. "))
        assert "Seen in:" in part or f"This fills it: {asked.question.command}" in part, asked.question.number


def test_losses_are_those_of_the_runs(rebuilt: Path, raw: Path) -> None:
    numbers, scores = numbers_of(rebuilt), scores_of(raw / "fashion_mnist_long")
    losses = [key for number, key in numbers if number == 1 and key.endswith("-96")]
    assert len(losses) >= 10
    for key in losses:
        assert_apart(numbers[1, key], scores, key, "sgd")
    sgd = scores[scores.row == "sgd"].accuracy
    low, high = stats.t.interval(0.95, len(sgd) - 1, sgd.mean(), stats.sem(sgd))
    assert tuple(numbers[1, "sgd"].values()) == pytest.approx((sgd.mean(), low, high, len(sgd)))
    text = (rebuilt / "answers.md").read_text()
    assert f"the {100 * sgd.mean():.2f} % (95 %: {100 * low:.2f} to {100 * high:.2f}) that SGD reaches" in text


def test_differences_between_methods_are_those_of_the_runs(rebuilt: Path, raw: Path) -> None:
    numbers, scores = numbers_of(rebuilt), scores_of(raw / "fashion_mnist_long")
    assert_apart(numbers[25, "final_average"], scores, "final_average", "sgd")
    named = {key: value for (number, key), value in numbers.items() if number == 25 and " − " in key}
    assert named
    for key, value in named.items():
        assert_apart(value, scores, *key.split(" − "))


def test_the_search_is_counted_again(rebuilt: Path, raw: Path) -> None:
    numbers, scores = numbers_of(rebuilt), scores_of(raw / "fashion_mnist_long_tuning")
    trials = scores.groupby("row").accuracy
    assert numbers[14, "trials"]["value"] == numbers[20, "trials"]["value"] == len(trials)
    assert numbers[20, "diverged"]["value"] == sum(group.isna().any() for _, group in trials)
    walls = [
        json.loads(path.read_text())["wall_seconds"]
        for path in (raw / "fashion_mnist_long_tuning").glob("*/result.json")
    ]
    assert numbers[14, "hours"]["value"] == pytest.approx(sum(walls) / 3600)
    screened = scores[scores.seed == 101]
    costs, others = [], 0
    for _, group in screened.groupby("tunes"):
        whole = group[~group.row.isin(scores[scores.accuracy.isna()].row)]
        cost = whole.accuracy.max() - whole.sort_values(["train_loss", "learning_rate"]).accuracy.iloc[0]
        costs.append(cost)
        others += cost > 0
    lost = numbers[13, "accuracy lost by the other rule, mean"]
    low, high = stats.t.interval(0.95, len(costs) - 1, np.mean(costs), stats.sem(costs))
    assert (lost["value"], lost["low"], lost["high"]) == pytest.approx((np.mean(costs), low, high))
    assert numbers[13, "rows that choose otherwise"]["value"] == others


def test_trials_needed_by_trying_all_choices(rebuilt: Path, raw: Path) -> None:
    """By drawing: the median of the best of k is near the best from k on, and not with one fewer."""
    numbers, scores = numbers_of(rebuilt), scores_of(raw / "fashion_mnist_long_tuning")
    bad = scores[scores.accuracy.isna()].row
    random = np.random.default_rng(1)
    for row in ("sgd", "mcser-96", "ef_block-96"):
        group = scores[(scores.tunes == row) & (scores.seed == 101)]
        values = group.accuracy.where(~group.row.isin(bad), -1.0).to_numpy()
        count = int(numbers[14, f"trials needed, {row}"]["value"])

        def near(size: int, values: np.ndarray[Any, np.dtype[np.float64]] = values) -> float:
            best = [random.choice(values, size, replace=False).max() for _ in range(4000)]
            return float(np.mean(np.array(best) >= values.max() - 0.002))

        assert near(count) > 0.47 and (count == 1 or near(count - 1) < 0.53), row


def test_speed_ups_lie_between_those_of_the_exported_steps(rebuilt: Path) -> None:
    """The export has rates on either side of the one that is spoken of."""
    numbers, text = numbers_of(rebuilt), (rebuilt / "answers.md").read_text()
    modelled = pd.read_csv(RESULTS / "speedups/csv/modelled.csv")
    table = modelled[modelled.workload == "resnet50_v100"].pivot(
        index="bits_per_second", columns="method", values="seconds"
    )
    around = table.loc[[table.index[table.index < 10e9].max(), table.index[table.index > 10e9].min()]]
    labels = {
        "ddp": "DDP",
        "ddp_fp16": "DDP, fp16",
        "powersgd_2": "DDP, PowerSGD rank 2",
        "all_reduce": "SGD, one all-reduce",
    }
    for name, label in labels.items():
        ends = around[name] / around["mcser"]
        value = numbers[2, f"speed-up over {label}"]["value"]
        assert ends.min() * 0.999 <= value <= ends.max() * 1.001, name
        assert f"{value:.2f}x over {label}" in text


@pytest.fixture
def only_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ships, so that what is read is what a test has written."""
    monkeypatch.setattr(evidence, "SHIPPED", tmp_path / "nothing")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("written")
    for name in ("two_level", "skew_class_shards", "workers_16", "momentum", "released"):
        write_study(results, name)
    return results


@pytest.fixture
def studies(written: Path, only_own: None, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "results"))


def test_studies_fill_their_questions(studies: Path, tmp_path: Path) -> None:
    build_answers(studies, tmp_path / "out")
    numbers, text = numbers_of(tmp_path / "out"), (tmp_path / "out" / "answers.md").read_text()
    scores = scores_of(studies / "study_two_level")
    both = "mcser-h16-r1_12-r2_192"
    for row in ("mcser-c1_zero", "mcser-h1-r1_192-r2_192", "cser_pl-h8-r1_12"):
        assert_apart(numbers[11, f"{row} − {both}"], scores, row, both)
    means = scores[scores.label.str.startswith(("M-CSER", "local"))].groupby("row").accuracy.mean()
    assert numbers[12, "splits"]["value"] == len(means) >= 15
    assert_apart(numbers[12, str(means.idxmax())], scores, str(means.idxmax()), "sgd")
    assert_apart(numbers[12, str(means.idxmin())], scores, str(means.idxmin()), "sgd")
    skew = scores_of(studies / "study_skew_class_shards")
    assert_apart(numbers[18, "local_sgd-96, two classes a worker"], skew, "local_sgd-96", "sgd")
    assert_apart(numbers[18, "local_sgd-96, equal shares"], scores, "local_sgd-96", "sgd")
    assert_apart(numbers[19, f"{both}, 16 workers"], scores_of(studies / "study_workers_16"), both, "sgd")
    assert_apart(numbers[24, "released − written"], scores_of(studies / "study_released"), "released", "written")
    momentum = scores_of(studies / "study_momentum")
    assert_apart(numbers[21, "M-CSER, momentum 0.9 − CSER"], momentum, "mcser-m0.9", "cser-m0")
    assert "Not run yet: 2 workers and 4 workers." in text


def test_other_records_give_other_sentences(studies: Path, tmp_path: Path) -> None:
    build_answers(studies, tmp_path / "one")
    shutil.rmtree(studies / "study_two_level")
    write_study(
        studies, "two_level", lambda row, seed: (made_up_accuracy(row, seed) or 0) - 0.01 * (row == "mcser-c1_zero")
    )
    build_answers(studies, tmp_path / "two")
    one, two = ((tmp_path / name / "answers.md").read_text().split("\n## ") for name in ("one", "two"))
    changed = {a.split(".")[0] for a, b in zip(one, two, strict=True) if a != b}
    assert {"11", "12"} <= changed and "2" not in changed


def test_partial_records_are_said_to_be_partial(only_own: None, tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_study(results, "two_level", lambda row, seed: made_up_accuracy(row, seed) if seed < 3 else None)
    build_answers(results, tmp_path / "out")
    text = (tmp_path / "out" / "answers.md").read_text()
    num_rows = len(load_spec(find_spec("studies/two_level")).rows)
    assert f"(from {2 * num_rows} of {3 * num_rows} runs of study_two_level)" in text
    part = next(p for p in text.split("\n## ") if p.startswith("12. "))
    assert "Its study is not complete" in part and "This fills it: make studies" in part


def test_a_study_of_other_settings_is_left_out_in_a_sentence(studies: Path, tmp_path: Path) -> None:
    def other(data: Any) -> None:
        data["settings"]["weight decay"] = "0.1 on all parameters"

    edit(studies / "study_workers_16" / "experiment.json", other)
    build_answers(studies, tmp_path / "out")
    part = next(p for p in (tmp_path / "out" / "answers.md").read_text().split("\n## ") if p.startswith("19. "))
    assert "study_workers_16 is left out: its weight decay is '0.1 on all parameters'" in part
    assert "16 workers" not in part.split("\n", 1)[1].split("This fills it")[0].replace("study_workers_16", "")


def _renamed(results: Path) -> None:
    shutil.rmtree(results / "study_momentum")
    shutil.copytree(results / "study_released", results / "study_momentum")


def _other_version(results: Path) -> None:
    edit(results / "study_two_level" / "experiment.json", lambda data: data.update(version=0))


def _edited(results: Path) -> None:
    def change(data: Any) -> None:
        data["config"]["learning_rate"] = 0.5

    edit(next((results / "study_momentum").glob("*/run.json")), change)


@pytest.mark.parametrize(
    ("spoil", "part"),
    [(_renamed, "holds the records of study_released"), (_other_version, "version"), (_edited, "was edited")],
)
def test_records_that_do_not_fit_are_refused_in_a_sentence(
    spoil: Any, part: str, studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(studies)
    assert main(["--results", str(studies), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and part in error and error.count("\n") == 1


def test_no_folder_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
