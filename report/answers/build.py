"""From the texts of pages/ and the shipped records to results/answers and the index of results."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import SandboxedEnvironment

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.atomic import write_text_atomically
from cser_bench.harness.records.shipped import SHIPPED, ships
from cser_bench.report.answers.net import Net
from cser_bench.report.answers.scores import Scores
from cser_bench.report.answers.times import Times
from cser_bench.report.collection import Collection
from cser_bench.report.typesetting import write_pdf

NAME = "answers"

PAGES = Path(__file__).parent / "pages"
INTRODUCTION = PAGES / "introduction.md"
INDEX = PAGES / "results.md"
"""The text of results/README.md."""

PARTS = {
    "practice": "Questions from practice",
    "paper": "What readers of the paper asked",
}
"""Heads of the parts of answers.md, by how the names of their files begin."""

OWN = "page-"
"""How the name of a file begins whose text is a page of its own."""

PLACEHOLDER = re.compile(r"\{\{(.+?)\}\}", re.DOTALL)

Progress = Callable[[float, float, str], None]


def build_answers(
    output: Path,
    shipped: Collection,
    progress: Progress = lambda done, total, what: None,
    with_pdf: bool = True,
) -> Path:
    """Write answers.md, its PDF and the pages of long answers; return answers.md.

    All are of what ships alone: people wrote the sentences about these records. Where the folder
    ships, the index of the results beside it is written too. The same records give the same bytes.

    Args:
        output: a folder; made if it is not there.
        shipped: what ships.
        progress: takes the texts that are done, how many there are, and the one that is next.

    Raises:
        UsageError: a placeholder gives no number; the message names it and its file.
        RecordError: a record is damaged or of another version.
        OSError: the output cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    queries = queries_of(shipped)
    sources = questions()
    parts = [rendered(INTRODUCTION, queries)]
    heads = dict(PARTS)
    for number, source in enumerate(sources):
        progress(number, len(sources) + 2, source.stem)
        head = heads.pop(part_of(source), None)
        if head is not None:
            parts.append(f"## {head}\n")
        # A question is the title of its own file, and a heading of the page.
        parts.append(f"##{rendered(source, queries)}")
    for source in sorted(PAGES.glob(f"{OWN}*.md")):
        name = source.stem.removeprefix(OWN)
        _write(output / f"{name}.md", rendered(source, queries))
    if ships(output):
        _write(SHIPPED / "README.md", rendered(INDEX, queries_of(shipped, root=".")))
    progress(len(sources) + 1, len(sources) + 2, "the PDF")
    text = "\n".join(parts)
    if with_pdf:
        write_pdf(text, output / f"{NAME}.pdf")
    path = output / f"{NAME}.md"
    _write(path, text)
    return path


def questions() -> list[Path]:
    """Return the texts of the questions in the order in which they are answered."""
    return [path for part in PARTS for path in sorted(PAGES.glob(f"{part}-*.md"))]


def part_of(source: Path) -> str:
    """Return the part of answers.md that a question is in."""
    return source.stem.partition("-")[0]


def queries_of(
    collection: Collection, root: str = ".."
) -> dict[str, Callable[..., str]]:
    """Return the queries that a placeholder can call, by name.

    Args:
        root: the folder of the results, from the page.
    """
    rooms = (Scores(collection, root), Times(collection), Net(collection))
    return {
        name: getattr(room, name)
        for room in rooms
        for name, function in vars(type(room)).items()
        if not name.startswith("_") and callable(function)
    }


def rendered(source: Path, queries: Mapping[str, Callable[..., str]]) -> str:
    """Return a text with the numbers in the place of its placeholders.

    Raises:
        UsageError: a placeholder gives no number.
    """
    # A placeholder can call queries and nothing else, not even jinja's own `range`.
    environment = SandboxedEnvironment()
    environment.globals.clear()
    environment.globals.update(queries)

    def number(match: re.Match[str]) -> str:
        try:
            value: Any = environment.compile_expression(
                match[1], undefined_to_none=False
            )()
        except (UsageError, TemplateError, TypeError, ValueError, KeyError) as error:
            raise UsageError(
                f"{source.name} has {match[0]}, which gives no number: {error}"
            ) from None
        if not isinstance(value, str) or re.search(r"\bnan\b|\binf\b", value):
            raise UsageError(
                f"{source.name} has {match[0]}, which gives {value!r} and no text; call a query"
            )
        return value

    return PLACEHOLDER.sub(number, source.read_text()).rstrip() + "\n"


def _write(path: Path, text: str) -> None:
    write_text_atomically(path, text, durable=False)
