"""The exhibits of a report as they come, numbered, and the report's two files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from harness.records.store import write_text_atomically
from report.kit.document import Block, Document, Figure, Paragraph, Table
from report.kit.markdown import render_markdown
from report.kit.pdf import render_pdf
from report.kit.plotting import style


@dataclass
class Exhibits:
    """Numbers the exhibits as they come and keeps them by key, for the list of questions."""

    output: Path
    shown: dict[str, Table | Figure] = field(default_factory=dict)
    tables: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    figures: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def table(self, table: Table, key: str | None = None, filled: bool = True) -> Table:
        """The table with its number, kept by its key where it is filled."""
        table = replace(table, number=next(self.tables))
        if key and filled:
            self.shown[key] = table
        return table

    def figure(
        self, key: str, name: str, title: str, draw: Callable[[Path], bool], found: Callable[[], str], *notes: str
    ) -> Block:
        """The figure, or a sentence saying that there is nothing to draw yet (an old picture is then removed)."""
        path = self.output / "figures" / name
        with style():
            drawn = draw(path)
        if not drawn:
            path.unlink(missing_ok=True)
            path.with_suffix(".pdf").unlink(missing_ok=True)
            return Paragraph(f"No figure of {title[:1].lower()}{title[1:]} yet: no run has what it needs.")
        kept = tuple(note for note in notes if note)
        figure = Figure(title, found(), PurePosixPath("figures") / name, next(self.figures), kept)
        self.shown[key] = figure
        return figure


def write_document(document: Document, output: Path, name: str = "report") -> Path:
    """Write `name`.pdf and `name`.md into `output`; returns the path of the latter.

    Raises:
        OSError: the folder cannot be written.
    """
    pdf = render_pdf(document, output)
    temporary = output / f".{name}.pdf.part"
    temporary.write_bytes(pdf)
    temporary.replace(output / f"{name}.pdf")
    write_text_atomically(output / f"{name}.md", render_markdown(document), durable=False)
    return output / f"{name}.md"
