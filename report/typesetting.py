"""Markdown as a PDF: its tokens become Typst source in which every text is a quoted string, and so
never markup.

It knows what the templates use: headings, paragraphs, bullets, quotes, tables, pictures, code, bold
and italic type.
"""

import json
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, cast

import typst
from markdown_it import MarkdownIt
from markdown_it.token import Token

_LONG = 34
"""Letters from which on a column of texts takes what width is left, and wraps, where the table is
too wide."""

_MOST_KEPT = 8
"""Rows of a table that is not broken; a section of such tables and one picture at most is kept on
one page."""

_SCALES = (0.9, 0.94, 0.97, 1.0, 1.04, 1.08, 1.12)
"""Sizes of type that are tried."""

_LEAST_WIDTH = 0.94
"""Of a picture, in the width of the text: its type is at 7 points then."""

_PREAMBLE = (Path(__file__).parent / "templates/page.typ").read_text()

_END = "#context { let at = here().position(); [#metadata((at.page, at.y / page.height)) <end>] }\n"
"""The page on which a text ends, and the share of that page's height above the end."""


def quote(text: str) -> str:
    """A Typst string literal; line breaks inside become spaces, and a number stays with its "%"."""
    plain = " ".join(text.split()).replace(" %", "\u00a0%")
    keeps = (" " if text[:1].isspace() else "", " " if text[-1:].isspace() and text.strip() else "")
    return '"' + f"{keeps[0]}{plain}{keeps[1]}".replace("\\", "\\\\").replace('"', '\\"') + '"'


def pdf_of(markdown: str, root: Path) -> bytes:
    """The PDF; no date in it, and none of the system's fonts.

    Args:
        markdown: whose pictures are named by paths under `root`; where a PDF lies beside a PNG, it
            is taken.
    """
    return bytes(
        typst.compile(fitted_source(markdown, root), format="pdf", timestamp=0, **_options(root))
    )


def fitted_source(markdown: str, root: Path) -> bytes:
    """The Typst source with the fewest pages of those whose last page is at least half full.

    Sizes of type are tried, and where none fits so, whether the last sections begin a page.
    """
    tried = []
    for scale, last in [*product(_SCALES, (0,)), *product((1.0,), (2, 3, 4))]:
        source = typst_of(markdown, root, scale, last).encode()
        page, height = json.loads(
            typst.query(source, "<end>", field="value", one=True, **_options(root))
        )
        tried.append((page > 1 and height < 0.5, page, last, abs(scale - 1), source))
    return min(tried)[-1]


def _options(root: Path) -> dict[str, Any]:
    # The stubs want the root to be of the source's type, which only a path could be.
    return {"root": cast(Any, str(root.resolve())), "ignore_system_fonts": True}


def typst_of(markdown: str, root: Path, scale: float = 1.0, last: int = 0) -> str:
    """The Typst source of a Markdown text; `<end>` in it says where it ends.

    Args:
        scale: of the type, in the usual size.
        last: so many sections at the end begin a page; 0 for none.
    """
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    title = next(
        (tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"),
        "",
    )
    starts = [
        n for n, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"
    ]
    before = _blocks(tokens[: starts[0] if starts else len(tokens)], root)
    width = f"{100 * min(max(scale, _LEAST_WIDTH), 1):g}%"
    known = {"title": quote(title), "scale": scale, "width": width, "most_kept": _MOST_KEPT}
    parts = [*(f"#let {name} = {value}" for name, value in known.items()), _PREAMBLE, *before]
    for start, end in pairwise([*starts, len(tokens)]):
        section = tokens[start:end]
        rows, pictures = (
            sum(map(of, section)) for of in (lambda token: token.type == "tr_open", _is_picture)
        )
        parts += ["#pagebreak()"] if start in starts[-last:][: last and 1] else []
        is_short = rows <= _MOST_KEPT and pictures < 2
        parts += (
            ["#kept[", *_blocks(section, root), "]"]
            if is_short
            else _blocks(section, root, floats=True)
        )
    return "\n".join([*parts, _END])


def _is_picture(token: Token) -> bool:
    children = token.children or []
    return len(children) == 1 and children[0].type == "image"


_BOUNDS = {
    "bullet_list_open": "#list(", "bullet_list_close": ")", "list_item_open": "[", "list_item_close": "],",
    "blockquote_open": "#verdict[", "blockquote_close": "]",
}  # fmt: skip


def _blocks(tokens: Sequence[Token], root: Path, floats: bool = False) -> list[str]:
    """Typst of blocks; pictures that float go to the top or bottom of a page, and the text goes on
    before them."""
    parts: list[str] = []
    number = 0
    while number < len(tokens):
        token = tokens[number]
        if token.type == "table_open":
            end = next(n for n in range(number, len(tokens)) if tokens[n].type == "table_close")
            parts.append(_table(tokens[number:end]))
            number = end
        elif token.type == "heading_open":
            parts.append(f"#heading(level: {token.tag[1:]})[{_inline(tokens[number + 1])}]")
            number += 2
        elif token.type == "inline":
            leads = any(
                each.type == "table_open" or _is_picture(each)
                for each in tokens[number + 2 : number + 4]
            )
            said = _paragraph(token, root)
            if floats and _is_picture(token):
                said = f"#place(auto, float: true, clearance: 1em, align(left)[{said}])"
            parts.append(f"#block(sticky: true)[{said}]" if leads else said)
        elif token.type == "fence":
            lines = ", ".join(
                quote(line) if line.strip() else '""'
                for line in token.content.rstrip("\n").split("\n")
            )
            parts.append(f'#raw(block: true, ({lines},).join("\\n"))')
        elif token.type in _BOUNDS:
            parts.append(_BOUNDS[token.type])
        number += 1
    return parts


def _paragraph(token: Token, root: Path) -> str:
    if token.children and _is_picture(token):
        path = str(token.children[0].attrs["src"])
        vector = str(Path(path).with_suffix(".pdf"))
        shown = vector if (root / vector).exists() else path
        return f"#picture({quote('/' + shown)})[{_inline(token.children[0])}]"
    return f"#par[{_inline(token)}]"


_MARKS = {
    "strong_open": "#strong[",
    "em_open": "#emph[",
    "strong_close": "]",
    "em_close": "]",
    "softbreak": '#" "',
}


def _inline(token: Token) -> str:
    parts = []
    for child in token.children or []:
        if child.type == "text":
            parts.append(f"#{quote(child.content)}" if child.content else "")
        elif child.type == "code_inline":
            parts.append(f"#raw({quote(child.content)})")
        else:
            parts.append(_MARKS.get(child.type, ""))
    return "".join(parts)


def _table(tokens: Sequence[Token]) -> str:
    cells = [token for token in tokens if token.type == "inline"]
    heads = [token for token in tokens if token.type == "th_open"]
    aligns = [
        str(token.attrs.get("style", "")).removeprefix("text-align:") or "left" for token in heads
    ]
    head, *body = (cells[start : start + len(heads)] for start in range(0, len(cells), len(heads)))
    longest = [
        max((len(row[place].content) for row in body), default=0) for place in range(len(head))
    ]
    is_wide = [
        align == "left" and length > _LONG for length, align in zip(longest, aligns, strict=True)
    ]
    widths = [
        f"{length}fr" if wide else "auto" for length, wide in zip(longest, is_wide, strict=True)
    ]
    first = ", ".join(f"[{_inline(cell)}]" for cell in head)
    others = "".join(f", [{_inline(cell)}]" for row in body for cell in row)
    return (
        f"#grid-table(({', '.join(widths)},), ({', '.join(aligns)},), {len(body)}, "
        f"({first},){others})"
    )
