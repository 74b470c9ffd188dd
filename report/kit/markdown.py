"""A document as Markdown (GitHub's flavour), tables through tabulate."""

from __future__ import annotations

import re

from tabulate import tabulate

from report.kit.document import (
    Block,
    Bullets,
    Code,
    Delimited,
    Document,
    Figure,
    Paragraph,
    Table,
    Verdict,
    exhibit_name,
)

_SPECIAL = re.compile(r"([\\`*<\[\]~|$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def escape(text: str) -> str:
    """Text that Markdown shows as it is; an underscore inside a word is left alone, being plain already."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def render_markdown(document: Document) -> str:
    """The whole document; figures are linked by their relative paths."""
    parts = [f"# {escape(document.title)}", escape(document.subtitle)]
    for section in document.sections:
        parts.append(f"## {escape(section.title)}")
        parts.extend(_block(block) for block in section.blocks)
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return escape(text)
        case Bullets(items):
            return "\n".join(f"- {escape(item)}" for item in items)
        case Code(text):
            return f"```\n{text}\n```"
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)
        case Verdict(title, blocks):
            inner = "\n\n".join([f"**{escape(title)}**", *(_block(inner) for inner in blocks)])
            return "\n".join(f"> {line}".rstrip() for line in inner.split("\n"))
        case Delimited(name, blocks):
            inside = [f"### {escape(name)}", *(_block(inner) for inner in blocks)]
            return "\n\n".join([f"<!-- begin: {name} -->", *inside, f"<!-- end: {name} -->"])


def _table(table: Table) -> str:
    body = [[f"**{escape(cell.text)}**" if cell.strong else escape(cell.text) for cell in row] for row in table.rows]
    grid = tabulate(
        body,
        headers=[escape(column.head) for column in table.columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=[column.align for column in table.columns] if body else None,
    )
    return "\n\n".join([_caption(table), grid, *(escape(note) for note in table.notes)])


def _figure(figure: Figure) -> str:
    picture = f"![{escape(exhibit_name(figure))}: {escape(figure.title)}]({figure.path})"
    return "\n\n".join([picture, _caption(figure), *(escape(note) for note in figure.notes)])


def _caption(exhibit: Table | Figure) -> str:
    name = exhibit_name(exhibit)
    label = f"**{escape(name)}.**" if exhibit.number is None else f"**{name}: {escape(exhibit.title)}.**"
    return f"{label} {escape(exhibit.found)}".rstrip()
