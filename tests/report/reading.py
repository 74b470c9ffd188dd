"""What a document says, piece by piece, to hold its renderings against."""

from __future__ import annotations

from collections.abc import Iterator

from report.kit.document import Block, Bullets, Code, Delimited, Document, Figure, Paragraph, Table, Verdict


def blocks_of(document: Document) -> Iterator[Block]:
    """Every block in reading order, those inside boxes too."""
    for section in document.sections:
        for block in section.blocks:
            yield block
            if isinstance(block, Verdict | Delimited):
                yield from block.blocks


def texts_of(document: Document) -> Iterator[str]:
    """Every piece of text in reading order: what a rendering has to show, whatever its format."""
    yield document.title
    yield document.subtitle
    for section in document.sections:
        yield section.title
        for block in section.blocks:
            yield from _block_texts(block)


def _block_texts(block: Block) -> Iterator[str]:
    match block:
        case Paragraph(text) | Code(text):
            yield text
        case Bullets(items):
            yield from items
        case Table():
            yield from (block.title, block.found, *block.notes)
            yield from (column.head for column in block.columns)
            yield from (cell.text for row in block.rows for cell in row)
        case Figure():
            yield from (block.title, block.found, *block.notes)
        case Verdict(title, blocks):
            yield title
            for inner in blocks:
                yield from _block_texts(inner)
        case Delimited(name, blocks):
            yield name
            for inner in blocks:
                yield from _block_texts(inner)
