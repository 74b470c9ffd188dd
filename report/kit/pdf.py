"""A document as Typst source and as PDF; every text goes in as a quoted string, so that nothing in it is markup."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import typst

from report.kit.document import (
    Block,
    Bullets,
    Cell,
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

_MOST_COLUMNS = 17
"""A table of more stands on a page on its side."""

_WHOLE = 12
"""A table of so few lines is not broken, nor are its notes taken from it."""

_HEAD = 9
"""Letters that a line of a head may hold, however short the numbers under it are."""

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
#let below(count, body) = table.cell(colspan: count, align: left, inset: (left: 1.5em, top: 0em, bottom: 0.35em))[
  #text(fill: luma(70))[#body]]
#let grid-table(columns, align, shaded, head, ..cells) = block(
  width: 100%, above: 0.7em, below: 1.1em, layout(page => {{
  let drawn(size, columns, wraps: true) = {{
    let said(head) = if wraps {{ head }} else {{ head.replace("-\\n", "-").replace("\\n", " ") }}
    set text(size, number-width: "tabular")
    set par(leading: 0.42em, justify: false)
    table(columns: columns, align: align, stroke: none, inset: (x: 0.36em, y: 0.3em),
      fill: (x, y) => if y in shaded {{ luma(246) }},
      table.hline(stroke: 0.8pt), table.header(
        ..head.zip(align).map(((head, align)) => table.cell(align: align + bottom, strong(said(head))))),
      table.hline(stroke: 0.4pt), ..cells, table.hline(stroke: 0.8pt))
  }}
  let texts = columns.map(width => if width == auto {{ auto }} else {{ 11em }})
  let fits(size, wraps) = measure(drawn(size, texts, wraps: wraps)).width <= page.width
  let size = (8.3pt, 7.6pt, 7pt).find(size => fits(size, true))
  if size == none {{ drawn(7pt, columns.map(width => auto)) }}
  else {{ drawn(size, columns, wraps: not fits(size, false)) }}
}}))
#let verdict(title, body) = block(width: 100%, fill: rgb("#f2f6fa"), stroke: (left: 2.5pt + rgb("#0072B2")),
  inset: 9pt, above: 1em, below: 1.2em)[#text(11pt)[*#title*] #body]
#let timed(name, body) = block(width: 100%, stroke: (top: 0.4pt + luma(150), bottom: 0.4pt + luma(150)),
  inset: (y: 7pt), breakable: true)[#heading(level: 2, name) #body]
"""


def quote(text: str) -> str:
    """A Typst string literal; line breaks inside become spaces, and a number stays with its "%"."""
    plain = " ".join(text.split()).replace(" %", "\u00a0%")
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def render_typst(document: Document) -> str:
    """The Typst source of the whole document; pictures are named by absolute paths under the root."""
    title = quote(document.title)
    parts = [
        _PREAMBLE.format(title=title),
        f"#block(below: 0.9em)[#text(18pt)[*#{title}*]]",
        f"#block(below: 1em)[#text(10pt, fill: luma(80))[#{quote(document.subtitle)}]]",
    ]
    for section in document.sections:
        heading = [f"#heading(level: 1, {quote(section.title)})"]
        for flipped, blocks in itertools.groupby(section.blocks, _is_flipped):
            body = [*heading, *(_block(block) for block in blocks)]
            parts.extend(["#page(flipped: true)[", *body, "]"] if flipped else body)
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
    places = [index for index, column in enumerate(table.columns) if not column.below]
    longest = {place: max((len(row[place].text) for row in table.rows), default=0) for place in places}
    widths = ", ".join(_width(table.columns[place], longest[place]) for place in places)
    aligns = ", ".join(table.columns[place].align for place in places)
    heads = ", ".join(_head(table.columns[place].head, longest[place]) for place in places)
    cells: list[str] = []
    shaded: list[int] = []
    line = 0
    for number, row in enumerate(table.rows):
        under = [(column.head, cell.text) for column, cell in zip(table.columns, row, strict=True) if column.below]
        said = [f"below({len(places)}, {quote(f'{head}: {text}')})" for head, text in under if text]
        cells += [*(_cell(row[place]) for place in places), *said]
        shaded += range(line + 1, line + 2 + len(said)) if number % 2 else ()
        line += 1 + len(said)
    shades = "".join(f"{shade}, " for shade in shaded)
    grid = f"#grid-table({', '.join((f'({widths},)', f'({aligns},)', f'({shades})', f'({heads},)', *cells))})"
    parts = [_caption(table), grid, *(f"#note({quote(note)})" for note in table.notes)]
    return "\n".join(parts) if line > _WHOLE else _together(parts)


def _together(parts: Sequence[str]) -> str:
    """On one page."""
    return "\n".join(("#block(breakable: false)[", *parts, "]"))


def _cell(cell: Cell) -> str:
    return f"strong({quote(cell.text)})" if cell.strong else f"[#{quote(cell.text)}]"


def _head(head: str, longest: int) -> str:
    """With the breaks that it has where the table needs them: then a head is about as wide as the numbers under it."""
    lines = textwrap.wrap(head, max(longest, _HEAD, len(head) // 3), break_long_words=False)
    return '"' + "\\n".join(quote(line)[1:-1] for line in lines) + '"'


def _width(column: Column, longest: int) -> str:
    """A column of long texts takes what is left, so that it wraps instead of pushing the others off the page."""
    return f"{longest}fr" if column.align == "left" and longest > 34 else "auto"


def _figure(figure: Figure) -> str:
    picture = f"#block(above: 1.2em, below: 0.4em)[#image({quote('/' + str(figure.vector))}, width: 100%)]"
    together = _together([picture, _caption(figure), *(f"#note({quote(note)})" for note in figure.notes)])
    return f"#place(auto, float: true, clearance: 1.2em)[\n{together}\n]" if figure.floats else together


def _is_flipped(block: Block) -> bool:
    """Whether a table has too many columns for a page that stands."""
    return isinstance(block, Table) and len(block.columns) > _MOST_COLUMNS


def _caption(exhibit: Table | Figure) -> str:
    name = exhibit_name(exhibit)
    label = f"{name}." if exhibit.number is None else f"{name}: {exhibit.title}."
    return f"#caption({quote(label)}, {quote(exhibit.found)})"
