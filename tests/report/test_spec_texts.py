"""Texts of a spec are texts in a report and its page, also where they would be markup."""

import json
import re
import shutil
from html import escape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cser_bench.report.build import build

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]
SMALL = "study_tail"
HOSTILE = "a|b *c* <script>alert(1)</script> [d](e) &lt;"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an experiment whose spec has texts that would be markup."""
    records = tmp_path_factory.mktemp("hostile") / SMALL
    shutil.copytree(ROOT / "results" / SMALL, records)
    record = records / "experiment.json"
    experiment = json.loads(record.read_text())
    for row in experiment["rows"]:
        row["label"] = f"{HOSTILE} {row['label']}"
    for contrast in experiment["contrasts"] or []:
        contrast["question"] = f"{HOSTILE}?"
    experiment["title"] = HOSTILE
    experiment["declared"] = HOSTILE
    record.write_text(json.dumps(experiment))
    return build(records).parent


def words_of(inline: Token) -> str:
    """The words of a line of Markdown."""
    kept = {"text", "code_inline"}
    parts = inline.children or []
    words = [
        " " if part.type == "softbreak" else part.content
        for part in parts
        if part.type in kept | {"softbreak"}
    ]
    return "".join(words)


def test_texts_of_a_spec_are_texts_in_a_report(hostile: Path) -> None:
    """To a reader of Markdown that knows HTML, as most do."""
    tokens = (
        MarkdownIt("commonmark")
        .enable("table")
        .parse((hostile / "report.md").read_text())
    )
    lines = [token for token in tokens if token.type == "inline"]
    parts = [part for line in lines for part in line.children or []]
    html_parts = [part.content for part in parts if part.type == "html_inline"]
    assert not html_parts
    html = [token for token in tokens if token.type == "html_block"]
    blocks = [token.content.strip() for token in html]
    for block in blocks:
        assert re.fullmatch("<!-- [^<>]+ -->", block)
    words = [words_of(line) for line in lines]
    assert words[0] == HOSTILE, "the title"
    assert sum(text.startswith(f"{HOSTILE} ") for text in words) > 2, (
        "labels in a table"
    )
    assert f"Declared {HOSTILE}." in words


def test_texts_of_a_spec_are_texts_in_a_page(hostile: Path) -> None:
    page = (hostile / "report.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert(1)" not in page
    assert f"<h1>{escape(HOSTILE)}</h1>" in page
    assert page.count("<script>") == 1, "the page's own"
