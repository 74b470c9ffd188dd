"""The shipped answers: rebuilt to the byte, their numbers worked out again from raw results, and
their form."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cser_bench.harness.records import shipped
from cser_bench.harness.spec.spec_file import find_spec
from cser_bench.report.advice.advise import advice
from cser_bench.report.advice.which_method import JOB, build_which_method
from cser_bench.report.plotting import style
from cser_bench.report.questions.asked import QUESTIONS
from cser_bench.report.questions.build import BEGIN, END, build_answers, put_into
from cser_bench.report.questions.evidence import evidence_of
from tests.harness.support import CommandLine
from tests.report.faults import faults_of
from tests.report.test_independent import PLANS, difference_of, scores_of

ROOT = Path(__file__).parents[2]
JUDGED, LONG = "fashion_mnist_contrasts", "fashion_mnist_long"
RESULTS = ROOT / "results"
SHIPPED = RESULTS / "answers"
AGAIN = "python -m harness answers --readme README.md"
NUMBER = re.compile(r"(?<![\w.−+-])[−+]?\d[\d,]*(?:\.\d+)?(?!\w*\.?\w*\d\w*[a-z])")
COMPARED = {
    8: ("study_two_level", "study_width_8", "study_width_128"), 11: ("study_two_level",), 12: ("study_two_level",),
    15: ("study_rules",), 17: ("study_rules",), 21: ("study_momentum",), 24: ("study_released",),
    1: (JUDGED,), 23: (LONG,), 25: (JUDGED,),
}  # fmt: skip
"""Questions whose CSV has differences of rows, and the experiments that these are of."""


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("answers")
    shutil.copy(ROOT / "README.md", output)
    build_answers(tmp_path_factory.mktemp("nothing"), output, output / "README.md")
    return output


def test_the_shipped_answers_and_the_cards_are_what_the_records_give_to_the_byte(
    rebuilt: Path,
) -> None:
    for name in ("answers.md", "networks.md"):
        assert (rebuilt / name).read_bytes() == (SHIPPED / name).read_bytes(), f"run {AGAIN}"
    assert (rebuilt / "README.md").read_bytes() == (ROOT / "README.md").read_bytes(), f"run {AGAIN}"
    assert (SHIPPED / "answers.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_of_which_method_is_what_the_records_give_and_leads_to_its_runs(
    tmp_path: Path,
) -> None:
    (tmp_path / "nothing").mkdir()
    page = build_which_method(tmp_path / "nothing", tmp_path).read_text()
    assert page == (SHIPPED / "which-method.md").read_text(), f"run {AGAIN}"
    links = set(re.findall(r"\]\(([^)]+)\)", page))
    assert len(links) > 5
    for link in links:
        assert (SHIPPED / link).is_file(), link


@pytest.mark.parametrize(
    ("network", "method", "setting", "experiment"),
    [
        ("residual", "PowerSGD", "rank 1", "resnet_regime"),
        ("residual", "local SGD", "H 96", "study_resnet_loads"),
        ("gpt", "local AdamW", "H 8", "gpt_text"),
    ],
)
def test_the_page_of_which_method_has_what_advice_prints(
    network: str, method: str, setting: str, experiment: str
) -> None:
    page = (SHIPPED / "which-method.md").read_text()
    head = next(line for line in page.splitlines() if line.startswith("| method"))
    [line] = [line for line in page.splitlines() if line.startswith(f"| {method} | {setting} |")]
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    for name, bandwidth in (("1 Gb/s", 1e9), ("100 Gb/s", 1e11)):
        job = replace(JOB, bits_per_second=bandwidth)
        printed = advice(job, network, evidence_of(None)).splitlines()
        below = printed[printed.index(f"{method}: {setting} ({experiment})") + 1].split("  ")
        traffic, _, needed, *_ = [cell.strip() for cell in below if cell]
        assert (cells["traffic"], cells[name]) == (traffic, needed)
        assert cells["drop"] == below[-1].strip()


def test_findings_say_a_loss_as_a_positive_number_of_points_or_nats(rebuilt: Path) -> None:
    findings = (rebuilt / "README.md").read_text().partition(BEGIN)[2].partition(END)[0]
    said = re.findall(r" loses (\S+) (\w+) \(", findings)
    assert len(said) >= 4, findings
    for amount, unit in said:
        assert float(amount) >= 0 and unit in ("points", "nats")
    lines = re.findall(r"^\| \[.+parameters, .+ steps \|.*", findings, re.MULTILINE)
    assert len(lines) >= 5, findings
    loss = re.compile(r"(gain )?\d+\.\d+( \(at [\d,]+\))?")
    for line in lines:
        for cell in line.split(" | ")[4:]:
            written = bare(cell)
            assert not written or loss.fullmatch(written), cell


def bare(cell: str) -> str:
    """What a cell says, without its marks, its link and the precision of its passes."""
    linked = re.fullmatch(r"\[(.+)\]\(.+?\)( \(\w+\))?", cell.strip(" |"))
    return (linked[1] if linked else cell).strip(" |*")


def test_the_first_pages_table_has_what_each_method_loses_and_what_is_shown(rebuilt: Path) -> None:
    """On the residual network and the GPT, by Welch from the packs, with the reports' verdicts."""
    text = (rebuilt / "README.md").read_text()
    rows = {
        ("resnet_regime", "sgd", 100, 2): {
            "alone": "", "powersgd": "", "ef_topk-96": "*", "local_sgd-24": "**", "mcser_block-24": "**",
        },
        ("gpt_text", "adamw", 1, 4): {"alone": "", "local-8": "**", "cser-8": "**"},
    }  # fmt: skip
    for (name, baseline, in_unit, digits), marks in rows.items():
        [line] = [
            line for line in text.splitlines() if line.startswith("| [") and f"/{name}/" in line
        ]
        for row, mark in marks.items():
            estimate, _, _ = welch(name, row, baseline)
            assert f" {mark}{-in_unit * estimate:.{digits}f}{mark} " in line, row


def test_an_answer_comes_first(rebuilt: Path) -> None:
    """A sentence in bold is first; two have pages besides."""
    sections = (rebuilt / "answers.md").read_text().split("\n## ")[1:]
    assert len(sections) == len(QUESTIONS) + 1
    for question, section in zip(QUESTIONS, sections, strict=False):
        title, answer = section.split("\n\n", 2)[:2]
        assert title == f"{question.number}. {question.asked}"
        assert re.match(r"\*\*[^*]{20,}(\.\*\*|\*\* )", answer), answer
    for page in ("23.md", "25.md"):
        assert f"]({page})" in "".join(sections) and (rebuilt / page).exists()


def test_figures_have_no_small_or_overlapping_type_and_few_lines() -> None:
    known = evidence_of(None)
    with style():
        figures = [
            answer.figure
            for question in QUESTIONS
            if (answer := question.answer(known)) and answer.figure
        ]
        assert len(figures) > 5
        assert [faults_of(figure) for figure in figures] == [[]] * len(figures)


# Worked out again, with pandas and scipy alone.


def folder_of(name: str) -> Path:
    return next(path for path in (RESULTS / "reference" / name, RESULTS / name) if path.exists())


def welch(name: str, row: str, reference: str) -> tuple[float, float, float]:
    """Difference of means and its interval of 95 %."""
    return difference_of(folder_of(name), row, reference)


@pytest.mark.parametrize("number", COMPARED)
def test_differences_are_those_of_the_raw_results(number: int, rebuilt: Path) -> None:
    frame = pd.read_csv(rebuilt / "csv" / f"question_{number}.csv")
    names = COMPARED[number]
    ats = list(dict.fromkeys(frame["at"].dropna())) if len(names) > 1 else []
    order = (
        dict(zip(ats, ("study_width_8", "study_two_level", "study_width_128"), strict=True))
        if ats
        else {}
    )
    assert len(frame) >= 3
    for line in frame.itertuples():
        name = order.get(getattr(line, "at", None)) or getattr(line, "experiment", names[0])
        found = welch(name, str(line.row), str(line.reference))
        assert found == pytest.approx((line.estimate, line.low, line.high), rel=1e-9, abs=1e-12), (
            line.row
        )


def test_trials_are_counted_from_the_raw_results(rebuilt: Path) -> None:
    """Of question 20: a loss beyond 1,000 times that of a guess among ten has diverged."""
    folder, frame = folder_of(f"{LONG}_tuning"), pd.read_csv(rebuilt / "csv" / "question_20.csv")
    trials = scores_of(folder, PLANS[folder]).drop_duplicates("run_id").set_index("run_id")
    diverged = trials.loc[frame["run_id"], "diverged"].to_numpy()
    assert (diverged == (frame["status"] == "diverged")).all()
    text = (SHIPPED / "answers.md").read_text()
    # A run that is a trial of two rows counts once.
    num_diverged = frame["run_id"][diverged].nunique()
    assert f"{num_diverged} of {frame['run_id'].nunique()} runs diverged" in text
    assert f"diverged from a rate of {frame['learning_rate'][diverged].min():g} on" in text


def test_factors_over_baselines_are_those_of_the_timings(rebuilt: Path) -> None:
    frame = pd.read_csv(rebuilt / "csv" / "question_2.csv").set_index("method")
    timing = json.loads(
        (RESULTS / "speedups" / "timing-resnet50_v100-8x1-10000mbps.json").read_text()
    )

    def step(name: str) -> float:
        cells = [each for each in timing["cells"] if each["method"] == name]
        return float(sum(each["share"] * np.median(each["seconds"]) for each in cells))

    for name in ("ddp", "ddp_fp16", "powersgd_2"):
        assert frame.loc[name, "factor"] == pytest.approx(step(name) / step("mcser"), rel=1e-9)


def test_the_table_of_networks_is_of_the_raw_results(rebuilt: Path) -> None:
    """A loss is the mean of everything sent less the method's, in points of a hundred or nats.

    What sends 4 bits is from another experiment, against its own runs of everything sent.
    """
    lines = (rebuilt / "networks.md").read_text().splitlines()
    [head] = [line for line in lines if line.startswith("| network |")]
    columns = [text.strip() for text in head.split("|")[1:-1]]
    for name, column, experiment, row, reference in (
        ("resnet_regime", "local steps", "resnet_regime", "local_sgd-24", "sgd"),
        ("resnet_regime", "error reset, top-k", "resnet_regime", "mcser_topk", "sgd"),
        ("resnet_regime", "error feedback, 4 bits", "resnet_methods", "qsparse_4-3", "sgd"),
        ("resnet_regime", "error reset, 4 bits", "resnet_methods", "cser_pl_4-3", "sgd"),
        ("gpt_text", "a worker alone", "gpt_text", "alone", "adamw"),
        ("gpt_text", "error feedback, 4 bits", "study_gpt_text_every_step", "qsparse_4-1", "adamw"),
        ("gpt_text", "error reset, 4 bits", "study_gpt_text_every_step", "csea_4", "adamw"),
        ("study_network_densenet", "error reset, blocks", "study_network_densenet", "mcser-h16-r1_3-r2_48", "sgd"),
    ):  # fmt: skip
        [line] = [line for line in lines if f"/{name}/report.md" in line]
        # Empty cells count: a method that was not run has one.
        cells = dict(zip(columns, (text.strip() for text in line.split("|")[1:-1]), strict=True))
        estimate, low, high = welch(experiment, row, reference)
        scale = 1 if cells["unit"] == "nats" else 100
        assert float(bare(cells[column])) == pytest.approx(-scale * estimate, abs=0.0051)
        assert high < 0 or "**" not in cells[column], f"{row}: {low} to {high}"


def test_answer_1_says_what_a_worker_alone_with_all_data_loses(rebuilt: Path) -> None:
    """And where its whole interval lies within half a point, which is so on the perceptron alone."""
    [section] = re.findall(r"\n## 1\. .+?\n## 2\.", (rebuilt / "answers.md").read_text(), re.DOTALL)
    for name, is_within in (("study_perceptron_bounds", True), ("study_resnet_bounds", False)):
        estimate, low, high = (-100 * value for value in welch(name, "alone_all", "sgd"))
        said = f"loses {estimate:.2f} points ({high:.2f} to {low:.2f})."
        assert (low < 0.5) == is_within
        assert (f"{said} That is within the margin" in section) == is_within and said in section
        assert f"sees {percent_dealt_to_one_worker(name):.0f} % of it, {said}" in section


def percent_dealt_to_one_worker(name: str) -> float:
    """Of all samples, by dealing: each epoch is shuffled anew, and a worker gets its share of it."""
    plan = PLANS[folder_of(name)]
    [row] = [row for row in plan["rows"] if row["row"] == "alone_all"]
    generator = np.random.default_rng(0)
    has_seen = np.zeros(80_000, dtype=bool)
    for _ in range(row["num_epochs"]):
        share = len(has_seen) // plan["config"]["num_workers"]
        has_seen[generator.permutation(len(has_seen))[:share]] = True
    return 100 * float(has_seen.mean())


def test_the_first_page_has_the_form_of_error_reset_that_loses_least_of_all_experiments(
    rebuilt: Path,
) -> None:
    """On the GPT, of the rows of its family, by their means; with its interval."""
    text = (rebuilt / "README.md").read_text()
    forms = {
        "gpt_text_methods": ["cser-64", "cser_topk-64", "cser_pl_4-8"],
        "study_gpt_text_every_step": ["csea_4"],
    }
    losses = []
    for name, rows in forms.items():
        losses += [[-value for value in welch(name, row, "adamw")] for row in rows]
    estimate, low, high = min(losses)
    assert f" loses {estimate:.4f} nats ({high:.4f} to {low:.4f})" in text


def test_a_loss_is_the_rows_where_a_question_names_first_what_it_is_held_against() -> None:
    name = "study_gpt_text_every_step"
    estimate, low, high = (-value for value in welch(name, "csea_4", "adamw"))
    report = (RESULTS / name / "report.md").read_text()
    [line] = re.findall(r"^\| Does AdamW with 4 bits and error reset .*", report, re.MULTILINE)
    assert f"It loses {estimate:.4f} nats" in line
    assert f"| {estimate:.4f} | {high:.4f} to {low:.4f} |" in line


def test_an_answer_names_the_load_at_which_an_order_is_another(rebuilt: Path) -> None:
    """Each a row against everything sent, at about 130 models on a link of the perceptron."""
    rows = {
        "error reset by blocks": "mcser_block-384",
        "local steps": "local_sgd-384",
        "error feedback with top-k": "ef_topk-1536",
    }
    losses = {name: -welch("fashion_mnist_long", row, "sgd")[0] for name, row in rows.items()}
    order = ", ".join(sorted(losses, key=lambda name: losses[name]))
    text = (rebuilt / "answers.md").read_text()
    assert f"At 130 models on a link the order on the perceptron is another: {order}." in text


# What goes wrong.


def test_without_runs_every_question_names_a_command_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "nothing")
    (tmp_path / "results").mkdir()
    text = build_answers(tmp_path / "results").read_text()
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for question in QUESTIONS:
        assert f"`{question.command}` would" in text
        assert question.command.split()[1] in targets
        for name in question.command.partition('STUDIES="')[2].rstrip('"').split():
            assert find_spec(f"studies/{name}").exists()


def test_mistakes_end_in_a_sentence(tmp_path: Path, cli: CommandLine) -> None:
    assert "there is no folder" in cli.refused("answers", "--results", tmp_path / "nowhere")
    (tmp_path / "README.md").write_text("nothing of the kind")
    with pytest.raises(ValueError, match="has no lines <!-- begin: cards -->"):
        put_into(tmp_path / "README.md", "")
