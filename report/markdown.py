"""How pages and PDFs read Markdown: CommonMark with tables, and no HTML."""

import re

from markdown_it import MarkdownIt

_COMMENT = re.compile(r"^<!--.*-->$", re.MULTILINE)


def markdown_parser() -> MarkdownIt:
    """Return a parser to which a tag is a text as any other."""
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def without_comments(markdown: str) -> str:
    """Return a text with empty lines for those that are comments, as they mark generated parts."""
    return _COMMENT.sub("", markdown)
