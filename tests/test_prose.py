"""What people read is short: no sentence of more than 30 words, nor one with more than four numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "results/README.md", "results/answers/answers.md", *DOCUMENTS]
SPEED = "results/speedups/report.md"
REPORTS = sorted({str(path.relative_to(ROOT)) for path in ROOT.glob("results/*/**/report.md")} | {SPEED})
NUMBERED = ("README.md", "results/answers/answers.md")
"""Pages whose sentences have few numbers; a document's formulas may have more."""

MOST_WORDS, MOST_NUMBERS = 30, 4
BUDGET = 10_000
"""Words of all documents, with README and that of the results, without their code."""

NUMBER = re.compile(r"(?<![\w.−+-])[−+]?\d[\d,]*(?:\.\d+)?")


def sentences(text: str) -> list[str]:
    """Of paragraphs, lists and quotes; code, tables, headings, pictures and addresses are left out."""
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    unquoted = [line.removeprefix("> ") for line in text.splitlines()]
    skipped = re.compile(r"\||#|!\[|    +(?![-*] )\S")
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(x for x in unquoted if not skipped.match(x)))
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", re.sub(r"`[^`]*`", "x", " ".join(part.split()))) for part in parts]
    return [sentence for part in plain for sentence in re.split(r"(?<=[.?!:])[*_\")]*\s+", part) if sentence]


@pytest.mark.parametrize("page", [*PAGES, SPEED])
def test_sentences_are_short(page: str) -> None:
    """But for the commands, packages and machines behind the report of speed, which are a list at its end."""
    found = sentences((ROOT / page).read_text().partition("## How it was timed")[0])
    assert [each for each in found if len(each.split()) > MOST_WORDS] == []
    if page in NUMBERED:
        assert [each for each in found if len(NUMBER.findall(each)) > MOST_NUMBERS] == []


def test_a_verdict_is_short() -> None:
    """The quoted paragraphs at the head of a report."""
    for report in REPORTS:
        text = (ROOT / report).read_text()
        found = sentences("\n".join(line for line in text.splitlines() if line.startswith(">")))
        assert [each for each in found if len(each.split()) > MOST_WORDS] == [], report
        assert [each for each in found if len(NUMBER.findall(each)) > MOST_NUMBERS] == [], report


def words(page: Path) -> int:
    """With a letter or a digit in them, code left out."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def test_documents_keep_to_their_budget() -> None:
    assert words(ROOT / "README.md") <= 1_200
    assert sum(words(ROOT / page) for page in ("README.md", "results/README.md", *DOCUMENTS)) <= BUDGET


def test_the_lint_sees_what_it_should() -> None:
    long = "word " * 31 + "end. Short one."
    assert [len(each.split()) for each in sentences(long)] == [32, 2]
    assert sentences("- one item of 3.5 points.\n- another: `code here`\n\n    indented\n| a | table |") == [
        "one item of 3.5 points.".join(["- ", ""]), "- another:", "x",
    ]  # fmt: skip
    assert len(NUMBER.findall("from −0.22 to 1,204 at R2 and fp32, 5.82x")) == 3
