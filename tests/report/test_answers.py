"""The answers: the shipped document and its part of the README rebuilt, made-up studies, records that do not fit."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text
from matplotlib.transforms import BboxBase
from scipy import stats

from harness.records.packs import open_runs
from harness.spec_file import find_spec, load_spec
from report.answers import evidence
from report.answers.__main__ import main
from report.answers.build import build_answers
from report.answers.first_page import put_into
from report.answers.questions import ASKED
from report.kit import exhibits
from report.kit.plotting import SIZE
from tests.report.made_up_studies import edit, made_up_accuracy, write_study

README = Path(__file__).parents[2] / "README.md"
RESULTS = README.parent / "results"
SHIPPED = RESULTS / "answers"
AGAIN = "python -m report.answers --readme README.md"
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
def crowded() -> list[str]:
    """What is wrong with the texts of the figures, filled when the document is built."""
    return []


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory, crowded: list[str]) -> Path:
    """The document from what ships, with a copy of the README beside it."""
    output = tmp_path_factory.mktemp("answers")
    shutil.copy(README, output)
    save = Drawing.savefig

    def watched(figure: Drawing, path: Path, **options: Any) -> None:
        save(figure, path, **options)
        if path.suffix == ".pdf":  # The last one; drawing once more might move what is drawn.
            crowded.extend(f"{path.name}: {wrong}" for wrong in _wrong_texts(figure))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "savefig", watched)
        build_answers(RESULTS, output, output / README.name)
    return output


def _wrong_texts(figure: Drawing) -> list[str]:
    """Names, numbers and labels that touch one another, leave the picture, or are too small."""
    figure.draw_without_rendering()  # Labels stand where the last drawing, of another resolution, has put them.
    texts = [
        t for axes in figure.axes for t in (*axes.texts, *axes.get_xticklabels(), axes.xaxis.label, axes.yaxis.label)
    ]
    boxes = [(t.get_text(), Text.get_window_extent(t)) for t in texts if t.get_text()]
    wrong = [f"{t.get_text()!r} is small" for t in texts if t.get_text() and t.get_fontsize() < SIZE]
    wrong += [f"{a!r} on {b!r}" for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]
    return wrong + [f"{text!r} is cut off" for text, box in boxes if not _inside(box, figure)]


def _inside(box: BboxBase, figure: Drawing) -> bool:
    return box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1


def test_no_text_of_a_figure_is_small_cut_off_or_on_another(rebuilt: Path, crowded: list[str]) -> None:
    assert list((rebuilt / "figures").glob("*.png")) and not crowded


def test_the_shipped_answers_are_what_the_records_give_to_the_byte(rebuilt: Path) -> None:
    for name in ("answers.md", "csv/numbers.csv"):
        assert (rebuilt / name).read_bytes() == (SHIPPED / name).read_bytes(), f"{name}: run {AGAIN}"
    assert (SHIPPED / "answers.pdf").read_bytes().startswith(b"%PDF")


def test_the_shipped_figures_are_what_the_records_give_to_the_byte(rebuilt: Path) -> None:
    both = [{path.name: path.read_bytes() for path in (each / "figures").iterdir()} for each in (rebuilt, SHIPPED)]
    assert both[0].keys() == both[1].keys()
    drawn_with = next(iter(open_runs(RESULTS / "study_two_level").values())).run.attempts[-1].packages["matplotlib"]
    if metadata.version("matplotlib") != drawn_with:
        pytest.skip(f"the figures were drawn with matplotlib {drawn_with}; another one draws other pixels")
    assert both[0] == both[1]


def test_the_readme_says_the_first_page(rebuilt: Path) -> None:
    assert (rebuilt / README.name).read_text() == README.read_text(), f"run {AGAIN}"


def test_a_readme_without_marks_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing of the kind")
    with pytest.raises(ValueError, match="has no lines <!-- begin: cards -->"):
        put_into(tmp_path / "README.md", {})


def test_every_question_is_answered_or_names_the_command_that_would(rebuilt: Path) -> None:
    text = (rebuilt / "answers.md").read_text()
    assert [asked.question.number for asked in ASKED] == list(range(1, 26))
    parts = text.split("\n## ")
    for asked in ASKED:
        part = next(p for p in parts if p.startswith(f"{asked.question.number}. "))
        assert "Seen in:" in part or f"This fills it: {asked.question.command}" in part, asked.question.number


def test_studies_that_commands_name_are_there() -> None:
    named = [asked.question.command.partition('STUDIES="')[2].rstrip('"').split() for asked in ASKED]
    assert len({find_spec(f"studies/{name}") for names in named for name in names}) > 10


def test_sentences_say_the_numbers(rebuilt: Path) -> None:
    """Every difference of these answers, with its interval, as their numbers have it."""
    parts = (rebuilt / "answers.md").read_text().split("\n## ")
    said = 0
    for (number, key), each in numbers_of(rebuilt).items():
        if (
            number in (15, 24)
            or (number == 21 and "momentum" in key)
            or key in ("final_average", "mcser-96 − local_sgd-96")
        ):
            low, value, high = (f"{100 * each[k]:+.2f}".replace("-", "−") for k in ("low", "value", "high"))
            part = next(p for p in parts if p.startswith(f"{number}. "))
            assert value in part and f"{low} to {high}" in part, key
            said += 1
    assert said > 5


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
        assert f"{value:.2f}x over {label.replace(', ', ' with ')}" in text


@pytest.fixture
def only_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ships, so that what is read is what a test has written; nothing is drawn, which takes the most time."""
    monkeypatch.setattr(evidence, "SHIPPED", tmp_path / "nothing")
    monkeypatch.setattr(Drawing, "savefig", lambda *_, **__: None)
    monkeypatch.setattr(exhibits, "render_pdf", lambda *_: b"")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("written")
    for name in (
        "two_level",
        "skew_class_shards",
        "workers_16",
        "weak_scaling_16",
        "network_cnn",
        "momentum",
        "released",
    ):
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
    at_96 = ~scores.row.isin(("mcser-h16-r1_3-r2_48", "local_sgd-24"))
    means = scores[at_96 & scores.label.str.startswith(("M-CSER", "local"))].groupby("row").accuracy.mean()
    assert numbers[12, "splits"]["value"] == len(means) >= 15
    assert_apart(numbers[12, str(means.idxmax())], scores, str(means.idxmax()), "sgd")
    assert_apart(numbers[12, str(means.idxmin())], scores, str(means.idxmin()), "sgd")
    skew = scores_of(studies / "study_skew_class_shards")
    assert_apart(numbers[18, "local_sgd-96, two classes a worker"], skew, "local_sgd-96", "sgd")
    assert_apart(numbers[18, "local_sgd-96, equal shares"], scores, "local_sgd-96", "sgd")
    assert_apart(numbers[19, f"{both}, 16 workers"], scores_of(studies / "study_workers_16"), both, "sgd")
    assert_apart(numbers[18, "local_sgd-24, two classes a worker"], skew, "local_sgd-24", "sgd")
    weak = scores_of(studies / "study_weak_scaling_16")
    assert_apart(numbers[19, f"{both}, 16 workers of 16 images"], weak, both, "sgd")
    cnn = scores_of(studies / "study_network_cnn")
    assert_apart(numbers[9, f"{both}, CNN"], cnn, both, "sgd")
    assert_apart(numbers[9, f"{both} − ef_topk-96, CNN"], cnn, both, "ef_topk-96")
    assert_apart(numbers[24, "released − written"], scores_of(studies / "study_released"), "released", "written")
    momentum = scores_of(studies / "study_momentum")
    assert_apart(numbers[21, "M-CSER, momentum 0.9 − CSER"], momentum, "mcser-m0.9", "cser-m0")
    assert "Not run yet: 2 workers, 4 workers and 32 workers." in text


def test_methods_of_another_task_stand_between_its_bounds(studies: Path, tmp_path: Path) -> None:
    """Records of a study under the name of a task's experiment."""

    def rename(data: Any) -> None:
        data["name"] = "cmudict"

    (studies / "study_released").rename(studies / "cmudict")
    edit(studies / "cmudict" / "experiment.json", rename)
    build_answers(studies, tmp_path / "out")
    numbers, scores = numbers_of(tmp_path / "out"), scores_of(studies / "cmudict")
    assert_apart(numbers[10, "cmudict: written − sgd"], scores, "written", "sgd")
    floor = scores[scores.row == "alone"].accuracy.mean()
    assert numbers[10, "cmudict: alone"]["value"] == pytest.approx(floor)
    part = next(p for p in (tmp_path / "out" / "answers.md").read_text().split("\n## ") if p.startswith("10. "))
    names = [line.split("|")[2].strip() for line in part.splitlines() if line.startswith("| letters to phones by SGD")]
    assert names[0] == "SGD" and names[-1] == "alone" and len(names) > 2
    assert "Not run yet: letters to phones by AdamW and English to Spanish by AdamW. This fills it: " in part
    assert "run cmudict_adamw" in part and "run cmudict " not in part


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
