"""Answers take a new network by its spec alone, and no code of reports names an experiment or a
row."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cser_bench.harness.plan.plan import plan_experiment
from cser_bench.harness.records.packs import NAME, unpack_runs
from cser_bench.harness.records.shipped import SHIPPED, shipped_experiments
from cser_bench.harness.records.store import write_record
from cser_bench.report.questions.asked import QUESTIONS
from cser_bench.report.questions.build import cards_of, words_of
from cser_bench.report.questions.evidence import Answer, Evidence, evidence_of
from cser_bench.report.render import environment

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
SPEC = """
format = 1
like = "resnet_regime"
name = "made_up"
title = "A made-up network"
rows = ["sgd", "alone", "local_sgd-24", "mcser_block-24", "ef_topk-96"]

[statistics]
declared = "before its runs"

[[contrasts]]
row = "mcser_block-24"
reference = "sgd"
kind = "non-inferiority"
question = "Does M-CSER lose less than the margin?"

[[contrasts]]
row = "mcser_block-24"
reference = "local_sgd-24"
kind = "equivalence"
question = "Does local SGD do as well?"

[evidence]
roles = ["network"]
network = "a made-up network"
data = "images"
dataset = "Fashion-MNIST"
kind = "Made up"
order = 15
in_readme = true

[evidence.rows]
reset = "mcser_block-24"
blocks = "mcser_block-24"
local = "local_sgd-24"
feedback = "ef_topk-96"
"""
"""Its runs are those of a shipped experiment, so that they can be taken from there."""


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """What there is to answer from where someone has run a network of their own."""
    results = tmp_path_factory.mktemp("own") / "results"
    spec = results.parent / "made_up.toml"
    spec.write_text(SPEC)
    records = results / "made_up"
    shutil.copytree(RESULTS / "reference" / "resnet_regime", records, ignore=only_records)
    unpack_runs(records)
    (records / NAME).unlink()
    write_record(records / "experiment.json", plan_experiment(str(spec), RESULTS).experiment)
    return evidence_of(results)


def only_records(_: str, names: list[str]) -> set[str]:
    return set(names) - {"experiment.json", NAME}


@pytest.fixture(scope="module")
def answers(evidence: Evidence) -> dict[int, Answer]:
    found = {}
    for question in QUESTIONS:
        if question.number in (1, 9, 25):
            answer = question.answer(evidence)
            assert answer is not None
            found[question.number] = answer
    return found


@pytest.mark.parametrize("number", [1, 9, 25])
def test_a_new_network_is_in_the_answers(answers: dict[int, Answer], number: int) -> None:
    answer = answers[number]
    template = environment().get_template(f"questions/{number}.md.j2")
    text = template.render(words_of(answer), figure="figure.png")
    sentence = {
        1: "| a made-up network | 77,594 |",
        9: "6 of 6 kinds of network on images have one order",
        25: "| made-up network | M-CSER block | local SGD |",
    }
    assert sentence[number] in text


def test_a_new_network_is_in_the_figure_of_kinds_and_on_the_cards(
    evidence: Evidence, answers: dict[int, Answer]
) -> None:
    figure = answers[9].figure
    assert figure is not None
    assert "Made up" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
    cards: dict[str, Any] = cards_of(evidence, answers)
    assert "a made-up network" in [line["network"] for line in cards["losses"]]
    assert "| [made-up network](" in environment().get_template("cards.md.j2").render(cards)


def test_reports_name_no_experiment_and_no_row() -> None:
    """By literals of Python and the heads and bodies of templates; names that are an algorithm's
    or a word's as well tell nothing."""
    names = set()
    for folder in shipped_experiments():
        plan = json.loads((folder / "experiment.json").read_text())
        if plan.get("evidence"):
            names |= {plan["name"], *(row["row"] for row in plan["rows"])}
            names -= {row["algorithm"] for row in plan["rows"]}
    names = {name for name in names if not name.isalpha()}
    assert len(names) > 100
    literals = set()
    for path in (ROOT / "report").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.add(node.value)
    assert not names & literals
    for path in (ROOT / "report" / "templates").rglob("*.j2"):
        body = [line for line in path.read_text().splitlines() if "command = " not in line]
        text = "\n".join(body)
        assert not [name for name in names if f'"{name}"' in text or f"`{name}`" in text], path


def test_evidence_that_ships_is_read_where_nothing_was_run(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    known = evidence_of(tmp_path / "results").first("reference")
    assert known is not None and known.frames.folder.is_relative_to(SHIPPED)
