"""A document as Typst source and as PDF; every text goes in as a quoted string, so that nothing in it is markup."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, cast

import typst

from report.kit.document import (
    Block,
    Bullets,
    Code,
    Column,
    Delimited,
    Document,
    Figure,
    Paragraph,
    Table,
    Verdict,
    exhibit_name,
)

_PREAMBLE = """\
#set document(title: {title}, date: none)
#set page(paper: "a4", margin: (x: 17mm, top: 18mm, bottom: 18mm), numbering: "1 / 1",
  header: context if counter(page).get().first() > 1 [#text(7.5pt, fill: luma(110))[#{title}]])
#set text(font: "Libertinus Serif", size: 9.5pt, lang: "en", hyphenate: false)
#set par(leading: 0.58em, spacing: 0.95em)
#set list(spacing: 0.7em)
#show heading.where(level: 1): set text(size: 13pt)
#show heading.where(level: 1): set block(above: 1.6em, below: 0.8em, sticky: true)
#show heading.where(level: 2): set text(size: 10.5pt)
#show raw: set text(font: "DejaVu Sans Mono", size: 7pt)
#let caption(label, found) = block(width: 100%, sticky: true, above: 1.3em, below: 0.6em)[
  #text(9pt)[*#label* #found]]
#let note(body) = block(above: 0.5em, below: 0.5em)[#text(8pt, fill: luma(70))[#body]]
#let grid-table(size, columns, align, head, ..cells) = block(above: 0.6em, below: 1.1em)[
  #set text(size, number-width: "tabular")
  #set par(leading: 0.42em, justify: false)
  #table(columns: columns, align: align, stroke: none, inset: (x: 0.42em, y: 0.3em),
    fill: (x, y) => if y > 0 and calc.even(y) {{ luma(246) }},
    table.hline(stroke: 0.8pt), table.header(..head.map(h => strong(h))), table.hline(stroke: 0.4pt),
    ..cells, table.hline(stroke: 0.8pt))]
#let verdict(title, body) = block(width: 100%, fill: rgb("#f2f6fa"), stroke: (left: 2.5pt + rgb("#0072B2")),
  inset: 9pt, above: 1em, below: 1.2em)[#text(11pt)[*#title*] #body]
#let timed(name, body) = block(width: 100%, stroke: (top: 0.4pt + luma(150), bottom: 0.4pt + luma(150)),
  inset: (y: 7pt), breakable: true)[#heading(level: 2, name) #body]
"""


def quote(text: str) -> str:
    """A Typst string literal; line breaks inside become spaces."""
    return '"' + " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"') + '"'


def render_typst(document: Document) -> str:
    """The Typst source of the whole document; pictures are named by absolute paths under the root."""
    title = quote(document.title)
    parts = [
        _PREAMBLE.format(title=title),
        f"#block(below: 0.5em)[#text(18pt)[*#{title}*]]",
        f"#block(below: 1em)[#text(10pt, fill: luma(80))[#{quote(document.subtitle)}]]",
    ]
    for section in document.sections:
        heading = [f"#heading(level: 1, {quote(section.title)})"]
        for wide, blocks in itertools.groupby(section.blocks, lambda block: isinstance(block, Table) and block.wide):
            body = [*heading, *(_block(block) for block in blocks)]
            parts.extend(["#page(flipped: true)[", *body, "]"] if wide else body)
            heading = []
        parts.extend(heading)
    return "\n".join(parts) + "\n"


def render_pdf(document: Document, root: Path) -> bytes:
    """PDF bytes, the same for the same document and pictures: no date in it, and none of the system's fonts.

    Args:
        root: folder that the figures' relative paths start from.
    """
    source = render_typst(document).encode()
    # The stubs want the root to be of the source's type, which only a path could be.
    folder = cast(Any, str(root))
    return bytes(typst.compile(source, root=folder, format="pdf", ignore_system_fonts=True, timestamp=0))


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return f"#par[#{quote(text)}]"
        case Bullets(items):
            return "#list(" + ", ".join(f"[#{quote(item)}]" for item in items) + ")"
        case Code(text):
            lines = ", ".join(quote(line) for line in text.split("\n"))
            return f'#raw(block: true, ({lines},).join("\\n"))'
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)
        case Verdict(title, blocks):
            return f"#verdict({quote(title)})[\n" + "\n".join(_block(inner) for inner in blocks) + "\n]"
        case Delimited(name, blocks):
            return f"#timed({quote(name)})[\n" + "\n".join(_block(inner) for inner in blocks) + "\n]"


def _table(table: Table) -> str:
    widths = [_width(column, index, table) for index, column in enumerate(table.columns)]
    aligns = ", ".join(column.align for column in table.columns)
    heads = ", ".join(quote(column.head) for column in table.columns)
    cells = [
        f"strong({quote(cell.text)})" if cell.strong else f"[#{quote(cell.text)}]" for row in table.rows for cell in row
    ]
    wraps = any(width.endswith("fr") for width in widths)
    size = ("7.6pt" if wraps else "8.8pt") if table.wide else "7.6pt" if len(table.columns) > 9 else "8.3pt"
    grid = f"#grid-table({size}, ({', '.join(widths)},), ({aligns},), ({heads},), {', '.join(cells)})"
    return "\n".join([_caption(table), grid, *(f"#note({quote(note)})" for note in table.notes)])


def _width(column: Column, index: int, table: Table) -> str:
    """A column of long texts takes what is left, so that it wraps instead of pushing the others off the page."""
    longest = max((len(row[index].text) for row in table.rows), default=0)
    return f"{longest}fr" if column.align == "left" and longest > 34 else "auto"


def _figure(figure: Figure) -> str:
    picture = (
        f"#block(above: 1.2em, below: 0.4em, sticky: true)[#image({quote('/' + str(figure.vector))}, width: 100%)]"
    )
    caption = _caption(figure).replace("sticky: true", "sticky: false")
    return "\n".join([picture, caption, *(f"#note({quote(note)})" for note in figure.notes)])


def _caption(exhibit: Table | Figure) -> str:
    name = exhibit_name(exhibit)
    label = f"{name}." if exhibit.number is None else f"{name}: {exhibit.title}."
    return f"#caption({quote(label)}, {quote(exhibit.found)})"
