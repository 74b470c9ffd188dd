"""The document: what a report says, as plain data, before anyone decides how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

Align = Literal["left", "right"]


@dataclass(frozen=True)
class Cell:
    """One cell of a table. `runs` are the ids of the runs that its text was computed from."""

    text: str
    runs: tuple[str, ...] = ()
    strong: bool = False


@dataclass(frozen=True)
class Column:
    """The head of a column. Text is set left, numbers right.

    `below`: its texts are long; where pages are narrow they stand under their row, over its whole width.
    """

    head: str
    align: Align = "right"
    below: bool = False


def texts(*heads: str) -> tuple[Column, ...]:
    """Columns of short texts."""
    return tuple(Column(head, "left") for head in heads)


def numbers(*heads: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(head) for head in heads)


@dataclass(frozen=True)
class Table:
    """A table with the one sentence of what it shows.

    The list of exhibits gives it its number; None for one that has none (inside a box, or a small list of settings).
    """

    title: str
    found: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    number: int | None = None


@dataclass(frozen=True)
class Figure:
    """A picture, its path relative to the document, with the one sentence of what it shows."""

    title: str
    found: str
    path: PurePosixPath
    number: int
    notes: tuple[str, ...] = ()
    floats: bool = False
    """Whether on paper what follows may come before it, so that no page is left half empty for its sake."""

    @property
    def vector(self) -> PurePosixPath:
        """The same picture for paper, beside it."""
        return self.path.with_suffix(".pdf")


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of short texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines to be typed or read as they are."""

    text: str


@dataclass(frozen=True)
class Verdict:
    """The box at the top: what was found, in plain words."""

    title: str
    blocks: tuple[Paragraph | Bullets | Table, ...]


@dataclass(frozen=True)
class Delimited:
    """A part with marked ends, for what may differ between two rebuilds from equal science (times, attempts)."""

    name: str
    blocks: tuple[Paragraph | Bullets | Table, ...]


Block = Paragraph | Bullets | Code | Table | Figure | Verdict | Delimited


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]


def exhibit_name(exhibit: Table | Figure) -> str:
    """What the text calls an exhibit: "Table 2", "Figure 1"; a table without a number goes by its title."""
    if exhibit.number is None:
        return exhibit.title
    return f"{'Table' if isinstance(exhibit, Table) else 'Figure'} {exhibit.number}"
