"""The five answers that matter most: the document's first page, and the same between two marks in the README."""

from __future__ import annotations

import textwrap
from pathlib import Path

from harness.records.store import write_text_atomically
from report.answers.answer import Answer
from report.answers.questions import ASKED
from report.kit.document import Bullets, Section, Verdict
from report.kit.markdown import escape

FIRST = (1, 4, 15, 25, 6)
"""Their questions, in the order of the page."""

BEGIN, END = "<!-- begin: answers -->", "<!-- end: answers -->"


def _in_short(answers: dict[int, Answer]) -> list[tuple[str, str]]:
    """Each question with its answer in short and where that was seen, or with what is missing."""
    words = {asked.question.number: asked.question.asked for asked in ASKED}
    found = {number: answers[number] for number in FIRST}
    return [(words[n], f"{a.brief} Regime: {_where(a)}" if a.brief else a.open) for n, a in found.items()]


def _where(answer: Answer) -> str:
    """The first sentence of the regime; how far a model can be trusted follows it in the document."""
    return answer.regime.split(". ")[0].removesuffix(".") + "."


def first_page(answers: dict[int, Answer]) -> Section:
    """The first page of the document."""
    pairs = zip(FIRST, _in_short(answers), strict=True)
    items = tuple(f"{asked} {said} (Question {number})" for number, (asked, said) in pairs)
    return Section("The five that matter most", (Verdict("In short", (Bullets(items),)),))


def readme_block(answers: dict[int, Answer]) -> str:
    """The same as a list in Markdown, of lines that fit the README."""
    items = [f"- **{escape(asked)}** {escape(said)}" for asked, said in _in_short(answers)]
    lines = [textwrap.fill(each, 120, subsequent_indent="  ", break_on_hyphens=False) for each in items]
    return "\n".join((BEGIN, *lines, END))


def put_into(readme: Path, answers: dict[int, Answer]) -> None:
    """Write the list between the marks of a README.

    Raises:
        ValueError: it has no such marks.
        OSError: it cannot be read or written.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no lines {BEGIN} and {END}; put them where the answers in short belong")
    write_text_atomically(readme, before + readme_block(answers) + after, durable=False)
