"""The shipped answers: rebuilt to the byte, their form, and numbers worked out again from raw results."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cser_bench.harness.errors import UsageError
from cser_bench.report.advice.advise import advice
from cser_bench.report.advice.which_method import build_which_method
from cser_bench.report.answers.build import (
    INDEX,
    INTRODUCTION,
    OWN,
    PAGES,
    PLACEHOLDER,
    build_answers,
    part_of,
    queries_of,
    questions,
    rendered,
)
from cser_bench.report.answers.scores import Scores
from cser_bench.report.answers.times import Times
from cser_bench.report.collection import Collection, collection_of
from cser_bench.report.speed.job import RESNET50
from tests.harness.support import CommandLine
from tests.report.test_independent import difference_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
SHIPPED = RESULTS / "answers"
AGAIN = "python -m harness answers"
SOURCES = sorted(PAGES.glob("*.md"))
LONG = sorted(PAGES.glob(f"{OWN}*.md"))


@pytest.fixture(scope="module")
def shipped() -> Collection:
    """What ships, read once for all tests."""
    return collection_of(None)


@pytest.fixture(scope="module")
def scores(shipped: Collection) -> Scores:
    return Scores(shipped)


@pytest.fixture(scope="module")
def rebuilt(shipped: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("answers")
    build_answers(output, shipped, with_pdf=False)
    return output


def test_the_shipped_answers_are_what_the_records_give_to_the_byte(
    rebuilt: Path, shipped: Collection
) -> None:
    """So each placeholder of every page gives a number."""
    names = [path.name for path in rebuilt.iterdir()]
    assert len(names) == 1 + len(LONG)
    for name in names:
        assert (rebuilt / name).read_bytes() == (SHIPPED / name).read_bytes(), (
            f"run {AGAIN}"
        )
    index = rendered(INDEX, queries_of(shipped, root="."))
    assert index == (RESULTS / "README.md").read_text(), f"run {AGAIN}"
    assert (SHIPPED / "answers.pdf").read_bytes().startswith(b"%PDF")


def test_the_index_counts_the_scored_sessions() -> None:
    sessions = sorted((RESULTS / "scored_speedups").glob("*.json"))
    assert len(sessions) == 4
    assert "exactly what is scored, four sessions" in INDEX.read_text()


def test_readme_says_the_hours_that_the_guide_has() -> None:
    guide = (RESULTS.parent / "docs" / "first-gpu-day.md").read_text()
    of_stage = re.search(r"\| CIFAR-100, first \|[^|]*\| 7 \| (\d+ to \d+) \|", guide)
    assert of_stage
    said = f"first stage takes {of_stage[1]} hours on eight V100s"
    assert said in (RESULTS.parent / "README.md").read_text()


# Form


def test_there_are_twelve_questions_from_practice_and_the_paper_s_twenty_five_in_order() -> (
    None
):
    parts = [part_of(source) for source in questions()]
    assert parts == ["practice"] * 12 + ["paper"] * 25
    assert (
        "Twelve questions from practice, then the 25 that" in INTRODUCTION.read_text()
    )
    root = RESULTS.parent
    said = "to twelve questions of practitioners and 25 of the paper's readers"
    assert said in (root / "README.md").read_text()
    assert "begins with twelve questions" in (root / "CHANGELOG.md").read_text()
    for number, source in enumerate(questions()[12:], 1):
        assert source.read_text().startswith(f"# {number}. ")


def test_the_answer_comes_first_in_few_words_and_two_numbers(rebuilt: Path) -> None:
    sections = re.split(
        r"^### ", (rebuilt / "answers.md").read_text(), flags=re.MULTILINE
    )[1:]
    assert len(sections) == 37
    for source, section in zip(questions(), sections, strict=True):
        title, answer = section.split("\n\n", 2)[:2]
        assert title.endswith("?"), title
        said = re.match(r"\*\*([^*]+)\*\*$", answer)
        assert said, answer
        assert len(said[1].split()) <= 20, said[1]
        typed_bold = source.read_text().split("\n\n", 2)[1]
        assert len(PLACEHOLDER.findall(typed_bold)) <= 2, typed_bold


def test_every_answer_says_where_it_is_from_and_links_lead_somewhere(
    rebuilt: Path,
) -> None:
    sections = re.split(
        r"^### ", (rebuilt / "answers.md").read_text(), flags=re.MULTILINE
    )[1:]
    for section in sections:
        assert re.search(r"^From .*\]\(", section, re.MULTILINE), section
    for page in (*rebuilt.glob("*.md"), RESULTS / "README.md"):
        folder = RESULTS if page.name == "README.md" else SHIPPED
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (folder / link).exists() or link == "which-method.md", (
                page.name,
                link,
            )


def test_specs_and_commands_that_pages_name_are_there() -> None:
    for source in SOURCES:
        for name in re.findall(r"`(harness/\S+\.toml)`", source.read_text()):
            assert (ROOT / name).is_file(), name
    makefile = (ROOT / "Makefile").read_text()
    for source in SOURCES:
        for name in re.findall(r"`make ([a-z-]+)`", source.read_text()):
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


# Numbers worked out again, with pandas and scipy alone


def folder_of(name: str) -> Path:
    return next(
        path for path in (RESULTS / "reference" / name, RESULTS / name) if path.exists()
    )


@pytest.mark.parametrize(
    ("experiment", "row", "reference", "digits"),
    [
        ("resnet_regime", "ef_topk-96", "sgd", 2),
        ("study_resnet_loads", "ef_topk-24", "sgd", 2),
        ("study_rules", "block-reset", "block-feedback", 2),
        ("gpt_text", "cser-8", "local-8", 3),
        ("study_gpt_text_every_step", "csea_4", "qsparse_4-1", 3),
    ],
)
def test_a_difference_is_that_of_the_raw_results_and_positive_where_worse(
    experiment: str, row: str, reference: str, digits: int, scores: Scores
) -> None:
    said = scores.contrast(experiment, row, reference)
    found = difference_of(folder_of(experiment), row, reference)
    scale, unit = (100, "points") if digits == 2 else (1, "nats")
    estimate, high, low = (round(-scale * value, digits) + 0.0 for value in found)
    number = f"{estimate:.{digits}f} {unit}"
    assert said == f"{number} (95 % CI {low:.{digits}f} to {high:.{digits}f})"
    assert scores.contrast(experiment, row, reference, "short") == number


def test_a_gap_of_a_repetition_is_to_the_baseline_of_its_size_and_length(
    scores: Scores,
) -> None:
    row = "local-8@w32-s3844"
    assert scores.gap("gap_text_longer", row) == scores.contrast(
        "gap_text_longer", row, "adamw@w32-s3844"
    )


def test_tests_are_counted_by_their_verdicts(scores: Scores) -> None:
    names = ("resnet_regime", "gpt_text")
    words = ("beyond the margin", "within the margin", "inconclusive")
    each = [int(scores.count(*names, verdict=word)) for word in words]
    assert sum(each) == int(scores.count(*names)) == 16
    assert scores.verdict("resnet_regime", "ef_topk-96") == "within the margin"
    assert scores.verdict("study_rules", "block-reset") == "not tested"


def test_speed_ups_are_those_of_the_timings(shipped: Collection) -> None:
    times = Times(shipped)
    path = RESULTS / "speedups" / "timing-resnet50_v100-8x1-10000mbps.json"
    timing = json.loads(path.read_text())

    def step(name: str) -> float:
        cells = [each for each in timing["cells"] if each["method"] == name]
        return float(sum(each["share"] * np.median(each["seconds"]) for each in cells))

    for name in ("ddp", "ddp_fp16", "powersgd_2"):
        assert times.timed("mcser", name) == f"{step(name) / step('mcser'):.2f}x"


# What goes wrong


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ('gap("resnet_regime", "ef_top")', "has no runs of a row ef_top; name one of sgd"),
        ('gap("resnet_regim", "sgd")', "no experiment resnet_regim"),
        ('gap("resnet_regime", "sgd")', "have no difference"),
        ('gap("resnet_regime")', "missing 1 required positional argument"),
        ('loss("resnet_regime", "sgd")', "'loss' is undefined"),
        ('efficiency("gpt_text_methods", "qsr-64") + 1', "gives no number"),
        ("gap", "call a query"),
        ('gap.__self__.collection.folders[0]', "gives no number"),
        ('speedup("mcser-96", "ddp", 3)', "no step of ddp was timed at 3 Gb/s"),
    ],
)  # fmt: skip
def test_a_placeholder_that_gives_no_number_is_named_with_its_file(
    shipped: Collection, call: str, said: str, tmp_path: Path
) -> None:
    source = tmp_path / "paper-26-new.md"
    source.write_text(f"# 26. New?\n\n**It is {{{{ {call} }}}}.**\n")
    with pytest.raises(UsageError) as error:
        rendered(source, queries_of(shipped))
    assert source.name in str(error.value)
    assert call in str(error.value)
    assert said in str(error.value)


def test_mistakes_end_in_a_sentence(tmp_path: Path, cli: CommandLine) -> None:
    assert "there is no" in cli.refused("answers", "--results", tmp_path / "nowhere")


# Which method, when


def test_the_page_of_which_method_is_what_the_records_give_and_leads_to_its_runs(
    tmp_path: Path,
) -> None:
    (tmp_path / "nothing").mkdir()
    page = build_which_method(tmp_path / "nothing", tmp_path).read_text()
    assert page == (SHIPPED / "which-method.md").read_text(), f"run {AGAIN}"
    links = set(re.findall(r"\]\(([^)]+)\)", page))
    assert len(links) > 5
    for link in links:
        place, _, _ = link.partition("#")
        assert not place or (SHIPPED / place).is_file(), link


@pytest.mark.whole
@pytest.mark.parametrize(
    ("network", "method", "setting", "experiment"),
    [
        ("residual", "PowerSGD", "rank 1", "resnet_regime"),
        ("residual", "local SGD", "H 96", "study_resnet_loads"),
        ("gpt", "local AdamW", "H 8", "gpt_text"),
    ],
)
def test_the_page_of_which_method_has_what_advice_prints(
    shipped: Collection, network: str, method: str, setting: str, experiment: str
) -> None:
    page = (SHIPPED / "which-method.md").read_text()
    head = next(line for line in page.splitlines() if line.startswith("| method"))
    [line] = [
        line
        for line in page.splitlines()
        if line.startswith(f"| {method} | {setting} |")
    ]
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    for name, bandwidth in (("1 Gb/s", 1e9), ("100 Gb/s", 1e11)):
        job = replace(RESNET50, bits_per_second=bandwidth)
        printed = advice(job, network, shipped, shows_all=True).splitlines()
        [row] = [text for text in printed if text.startswith(f"{method}: {setting}  ")]
        traffic, _, needed, *_ = re.split(r"\s{2,}", row)[1:]
        assert (cells["traffic"], cells[name]) == (traffic, needed)
    assert f"`{experiment}`" in line
