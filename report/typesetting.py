"""Markdown as a PDF: its tokens become Typst source, which a library compiles.

Every text is a quoted string in that source, and so never markup. What the templates use is known:
headings, paragraphs, bullets, quotes, tables, pictures, code, links, bold and italic type.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import typst
from markdown_it.token import Token

from cser_bench.harness.records.atomic import errors_naming
from cser_bench.report.markdown import markdown_parser, without_comments

# A column of texts with a longer cell, in letters, takes what width is left, and wraps.
_LONG = 34

# Sizes of type in points, the one that reads best first.
_SIZES = (9.5, 9.2, 8.9, 8.6, 9.8, 8.3)

# Where the text of the last page should end, in points from the top of a page of 842.
_HALF_FILLED = 420

# A text with more sections has a table of contents.
_MOST_WITHOUT_CONTENTS = 8

_PREAMBLE = (Path(__file__).parent / "templates/page.typ").read_text()


def quote(text: str) -> str:
    """Return a Typst string literal.

    Line breaks inside become spaces, and a number stays on the line of its "%".
    """
    plain = " ".join(text.split()).replace(" %", "\u00a0%")
    # A space beside bold type or code ends the token, and must not be lost.
    if text[:1].isspace():
        plain = f" {plain}"
    if text[-1:].isspace() and text.strip():
        plain = f"{plain} "
    return _literal(plain)


def _literal(text: str) -> str:
    """Return a Typst string literal of just this text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def pdf_of(markdown: str, root: Path) -> bytes:
    """Return the PDF; no date in it, and none of the system's fonts.

    Args:
        markdown: whose pictures are named by paths under `root`; where a PDF lies beside a PNG, it
            is taken.
    """
    source = _best_filled([typst_of(markdown, root, size) for size in _SIZES], root)
    pdf = typst.compile(source.encode(), format="pdf", timestamp=0, **_options(root))
    return bytes(pdf)


def write_pdf(markdown: str, path: Path) -> None:
    """Write the PDF of a text whose pictures are named from the folder of `path`.

    A command that is stopped while it writes leaves the old PDF, whole.

    Raises:
        OSError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    content = pdf_of(markdown, path.parent)
    with errors_naming(path):
        temporary.write_bytes(content)
    temporary.replace(path)


def _best_filled(sources: Sequence[str], root: Path) -> str:
    """Return the first source whose last page is half filled.

    Where none is, return that of the fewest pages, and of these that with the fullest last page.
    """
    ends: list[tuple[int, float]] = []
    for source in sources:
        page, low = _end(source, root)
        # A sole page may be as short as it likes.
        if page == 1 or low >= _HALF_FILLED:
            return source
        ends.append((page, -low))
    return sources[ends.index(min(ends))]


def _options(root: Path) -> dict[str, Any]:
    # The stubs want the root to be of the source's type, which only a path could be.
    return {"root": cast(Any, str(root.resolve())), "ignore_system_fonts": True}


def _end(source: str, root: Path) -> tuple[int, float]:
    """Return the last page's number, and how far down it the text ends, in points."""
    asked = f"{source}\n#context [#metadata((page: here().page(), y: here().position().y)) <end>]"
    [found] = json.loads(
        typst.query(asked.encode(), "<end>", field="value", **_options(root))
    )
    return found["page"], float(found["y"].removesuffix("pt"))


def typst_of(markdown: str, root: Path, size: float = _SIZES[0]) -> str:
    """Return the Typst source of a Markdown text, in type of so many points."""
    tokens = markdown_parser().parse(without_comments(markdown))
    starts = []
    for number, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            starts.append(number)
    bounds = [*starts, len(tokens)]
    parts = [
        f"#let title = {quote(_title(tokens))}",
        f"#let text-size = {size}pt",
        _PREAMBLE,
    ]
    parts += _blocks(tokens[: bounds[0]], root)
    if len(starts) > _MOST_WITHOUT_CONTENTS:
        parts.append("#contents")
    for start, end in pairwise(bounds):
        parts += _blocks(tokens[start:end], root)
    return "\n".join(parts)


def _title(tokens: Sequence[Token]) -> str:
    """Return the text of the first heading."""
    for number, token in enumerate(tokens):
        # A heading is three tokens: what opens it, its text, and its close.
        if token.type == "heading_open":
            return tokens[number + 1].content
    return ""


def _is_picture(token: Token) -> bool:
    children = token.children or []
    return len(children) == 1 and children[0].type == "image"


# Blocks that hold other blocks. Each item of a list is an argument of Typst's `list`, so a comma ends it.
_BOUNDS = {
    "bullet_list_open": "#list(",
    "bullet_list_close": ")",
    "list_item_open": "[",
    "list_item_close": "],",
    "blockquote_open": "#verdict[",
    "blockquote_close": "]",
}


def _blocks(tokens: Sequence[Token], root: Path) -> list[str]:
    """Return the Typst of blocks, in their order: a picture stays under its heading."""
    parts: list[str] = []
    number = 0
    while number < len(tokens):
        token = tokens[number]
        if token.type == "table_open":
            end = number
            while tokens[end].type != "table_close":
                end += 1
            captions = _captions(tokens, end + 1)
            parts.append(_grid_table(tokens[number:end], captions, root))
            # Past the captions too: an opening, a text and a close each.
            number = end + 3 * len(captions)
        elif token.type == "heading_open":
            level = token.tag.removeprefix("h")
            parts.append(
                f"#heading(level: {level})[{_inline(tokens[number + 1], root)}]"
            )
            # Past the heading's text and its close.
            number += 2
        elif token.type == "inline" and _is_picture(token):
            # Past the picture's own text and close.
            captions = _captions(tokens, number + 2)
            parts.append(_picture(token, captions, root))
            number += 1 + 3 * len(captions)
        elif token.type == "inline":
            block = f"#par[{_inline(token, root)}]"
            # The next tokens are this paragraph's close and the opening of what follows.
            if _show_something(tokens[number + 2 : number + 4]):
                block = f"#block(sticky: true)[{block}]"
            parts.append(block)
        elif token.type == "fence":
            parts.append(_code(token))
        elif token.type in _BOUNDS:
            parts.append(_BOUNDS[token.type])
        number += 1
    return parts


def _captions(tokens: Sequence[Token], start: int) -> list[Token]:
    """Return the texts of the paragraphs from `start` on that are all in italics."""
    captions = []
    while start < len(tokens) and tokens[start].type == "paragraph_open":
        text = tokens[start + 1]
        if not _is_italic(text):
            break
        captions.append(text)
        start += 3
    return captions


def _is_italic(text: Token) -> bool:
    children = text.children or []
    if not children:
        return False
    return children[0].type == "em_open" and children[-1].type == "em_close"


def _show_something(tokens: Sequence[Token]) -> bool:
    """Return whether a table or a picture is there, which the paragraph before introduces."""
    return any(token.type == "table_open" or _is_picture(token) for token in tokens)


def _code(token: Token) -> str:
    # Indentation is a part of code, which `quote` would take for spaces between words.
    quoted = [_literal(line) for line in token.content.rstrip("\n").split("\n")]
    return f'#raw(block: true, ({", ".join(quoted)},).join("\\n"))'


def _picture(token: Token, captions: Sequence[Token], root: Path) -> str:
    """Return a picture with the captions below it; without any, with its text."""
    assert token.children is not None, "a picture is the only child of its line"
    picture = token.children[0]
    path = str(picture.attrs["src"])
    # Sharp at any size, where a picture was saved as both.
    vector = str(Path(path).with_suffix(".pdf"))
    if (root / vector).exists():
        path = vector
    below = _paragraphs(captions, root) or _inline(picture, root)
    return f"#picture({quote('/' + path)})[{below}]"


def _paragraphs(texts: Sequence[Token], root: Path) -> str:
    return " ".join(f"#par[{_inline(text, root)}]" for text in texts)


_MARKS = {
    "strong_open": "#strong[",
    "em_open": "#emph[",
    "strong_close": "]",
    "em_close": "]",
    "softbreak": '#" "',
}


def _inline(token: Token, root: Path) -> str:
    """Return the words of a line with their bold type, code and links."""
    parts = []
    # Whether the link whose words follow leads somewhere from a PDF; of another the words stay.
    is_linked = False
    for child in token.children or []:
        if child.type == "text":
            if child.content:
                parts.append(f"#{quote(child.content)}")
        elif child.type == "code_inline":
            parts.append(f"#raw({quote(child.content)})")
        elif child.type == "link_open":
            address = _address(str(child.attrs["href"]), root)
            is_linked = address is not None
            if address is not None:
                parts.append(f"#link({quote(address)})[")
        elif child.type == "link_close":
            if is_linked:
                parts.append("]")
        else:
            # A mark that has no type of its own here is left out.
            parts.append(_MARKS.get(child.type, ""))
    return "".join(parts)


def _address(link: str, root: Path) -> str | None:
    """Return where a link leads from a PDF: to the web, or to the PDF of a text beside it."""
    if link.startswith(("https://", "http://")):
        return link
    pdf = Path(link.partition("#")[0]).with_suffix(".pdf")
    if (root / pdf).is_file():
        return pdf.as_posix()
    return None


def _grid_table(tokens: Sequence[Token], captions: Sequence[Token], root: Path) -> str:
    """Return a table with the captions below it."""
    # Row by row, the head first: each has as many as there are columns.
    cells = [token for token in tokens if token.type == "inline"]
    aligns = []
    for token in tokens:
        if token.type == "th_open":
            style = str(token.attrs.get("style", ""))
            aligns.append(style.removeprefix("text-align:") or "left")
    num_columns = len(aligns)
    head = cells[:num_columns]
    body = cells[num_columns:]
    widths = []
    for column, align in enumerate(aligns):
        lengths = [len(cell.content) for cell in body[column::num_columns]]
        longest = max(lengths, default=0)
        # What width is left is shared out in proportion to the longest cells.
        if align == "left" and longest > _LONG:
            widths.append(f"{longest}fr")
        else:
            widths.append("auto")
    first = ", ".join(f"[{_inline(cell, root)}]" for cell in head)
    others = "".join(f", [{_inline(cell, root)}]" for cell in body)
    below = _paragraphs(captions, root)
    # Behind a sole entry Typst needs the comma to take it for an array.
    return (
        f"#grid-table(({', '.join(widths)},), ({', '.join(aligns)},), "
        f"({first},), [{below}]{others})"
    )
