"""Markdown as a PDF: its tokens become Typst source in which every text is a quoted string, and so never markup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, cast

import typst
from markdown_it import MarkdownIt
from markdown_it.token import Token

_LONG = 34
"""Letters from which on a column of texts takes what width is left, and wraps, where the table is too wide."""

_MOST_KEPT = 8
"""Rows of a table that is not broken; a section of such tables and one picture at most is kept on one page."""

_SCALES = (0.9, 0.94, 0.97, 1.0, 1.04, 1.08, 1.12)
"""Sizes of type that are tried."""

_LEAST_WIDTH = 0.94
"""Of a picture, in the width of the text: its type is at 7 points then."""

_PREAMBLE = """\
#set document(title: {title}, date: none)
#set page(paper: "a4", margin: (x: 17mm, top: 15mm, bottom: 15mm), numbering: "1 / 1",
  header: context if counter(page).get().first() > 1 [#text(7.5pt, fill: luma(110))[#{title}]])
#set text(font: "Libertinus Serif", size: {scale} * 9.5pt, lang: "en", hyphenate: false)
#set par(leading: 0.58em, spacing: 0.95em)
#set list(spacing: 0.7em)
#show heading.where(level: 1): set text(size: 15pt)
#show heading.where(level: 2): set text(size: 13pt)
#show heading.where(level: 2): set block(above: 1.5em, below: 0.8em, sticky: true)
#show heading.where(level: 3): set text(size: 10.5pt)
#show heading.where(level: 3): set block(above: 1.2em, below: 0.7em, sticky: true)
#show raw: set text(font: "DejaVu Sans Mono", size: 0.82em)
#show link: set text(fill: rgb("#0b4f8a"))
#let verdict(body) = block(width: 100%, fill: rgb("#f2f6fa"), stroke: (left: 2.5pt + rgb("#0072B2")),
  inset: 9pt, above: 1em, below: 1.2em, body)
#let picture(path, body) = block(above: 1.1em, below: 1.1em, breakable: false)[
  #image(path, width: {width}) #block(above: 0.5em)[#text({scale} * 8.5pt, fill: luma(60), body)]]
#let kept(body) = block(breakable: false, width: 100%, above: 1.6em, body)
#let grid-table(columns, align, count, head, ..cells) = block(width: 100%, above: 0.8em, below: 1.1em,
  breakable: count > {most_kept}, layout(page => {{
    let drawn(size, columns) = {{
      set text(calc.max(7pt, {scale} * size), number-width: "tabular")
      set par(leading: 0.42em, justify: false)
      table(columns: columns, align: align, stroke: none, inset: (x: 0.36em, y: 0.3em),
        fill: (x, y) => if y > 0 and calc.even(y) {{ luma(246) }},
        table.hline(stroke: 0.8pt), table.header(
          ..head.zip(align).map(((head, align)) => table.cell(align: align + bottom, strong(head)))),
        table.hline(stroke: 0.4pt), ..cells, table.hline(stroke: 0.8pt))
    }}
    let fits(columns) = size => measure(drawn(size, columns)).width <= page.width
    let whole = columns.map(_ => auto)
    let narrow = columns.map(width => if width == auto {{ auto }} else {{ 11em }})
    let size = (8.5pt, 7.8pt).find(fits(whole))
    if size != none {{ drawn(size, whole) }} else {{
      let size = (8.5pt, 7.8pt, 7pt).find(fits(narrow))
      drawn(if size == none {{ 7pt }} else {{ size }}, columns)
    }}
  }}))
"""

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
        markdown: whose pictures are named by paths under `root`; where a PDF lies beside a PNG, it is taken.
    """
    return bytes(typst.compile(fitted_source(markdown, root), format="pdf", timestamp=0, **_options(root)))


def fitted_source(markdown: str, root: Path) -> bytes:
    """The Typst source with the fewest pages of those whose last page is at least half full.

    Sizes of type are tried, and where none fits so, whether the last sections begin a page.
    """
    tried = []
    for scale, last in [*product(_SCALES, (0,)), *product((1.0,), (2, 3, 4))]:
        source = typst_of(markdown, root, scale, last).encode()
        page, height = json.loads(typst.query(source, "<end>", field="value", one=True, **_options(root)))
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
    title = next((tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"), "")
    starts = [n for n, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"]
    before = _blocks(tokens[: starts[0] if starts else len(tokens)], root)
    numbers = {"most_kept": _MOST_KEPT, "scale": scale, "width": f"{100 * min(max(scale, _LEAST_WIDTH), 1):g}%"}
    parts = [_PREAMBLE.format(title=quote(title), **numbers), *before]
    for start, end in pairwise([*starts, len(tokens)]):
        section = tokens[start:end]
        rows, pictures = (sum(map(of, section)) for of in (lambda token: token.type == "tr_open", _is_picture))
        parts += ["#pagebreak()"] if start in starts[-last:][: last and 1] else []
        is_short = rows <= _MOST_KEPT and pictures < 2
        parts += ["#kept[", *_blocks(section, root), "]"] if is_short else _blocks(section, root, floats=True)
    return "\n".join([*parts, _END])


def _is_picture(token: Token) -> bool:
    children = token.children or []
    return len(children) == 1 and children[0].type == "image"


_OPENED = {
    "bullet_list_open": "#list(",
    "ordered_list_open": "#enum(",
    "list_item_open": "[",
    "blockquote_open": "#verdict[",
}
_CLOSED = {"bullet_list_close": ")", "ordered_list_close": ")", "list_item_close": "],", "blockquote_close": "]"}


def _blocks(tokens: Sequence[Token], root: Path, floats: bool = False) -> list[str]:
    """Typst of blocks; pictures that float go to the top or bottom of a page, and the text goes on before them."""
    parts: list[str] = []
    number = 0
    while number < len(tokens):
        token = tokens[number]
        if token.type == "table_open":
            end = next(n for n in range(number, len(tokens)) if tokens[n].type == "table_close")
            parts.append(_table(tokens[number:end], root))
            number = end
        elif token.type == "heading_open":
            parts.append(f"#heading(level: {token.tag[1:]})[{_inline(tokens[number + 1], root)}]")
            number += 2
        elif token.type == "inline":
            leads = any(each.type == "table_open" or _is_picture(each) for each in tokens[number + 2 : number + 4])
            said = _paragraph(token, root)
            said = (
                f"#place(auto, float: true, clearance: 1em, align(left)[{said}])"
                if floats and _is_picture(token)
                else said
            )
            parts.append(f"#block(sticky: true)[{said}]" if leads else said)
        elif token.type in ("fence", "code_block"):
            lines = ", ".join(quote(line) if line.strip() else '""' for line in token.content.rstrip("\n").split("\n"))
            parts.append(f'#raw(block: true, ({lines},).join("\\n"))')
        elif token.type == "hr":
            parts.append("#line(length: 100%, stroke: 0.4pt + luma(150))")
        elif token.type in _OPENED:
            parts.append(_OPENED[token.type])
        elif token.type in _CLOSED:
            parts.append(_CLOSED[token.type])
        number += 1
    return parts


def _paragraph(token: Token, root: Path) -> str:
    if token.children and _is_picture(token):
        path = str(token.children[0].attrs["src"])
        vector = str(Path(path).with_suffix(".pdf"))
        shown = vector if (root / vector).exists() else path
        return f"#picture({quote('/' + shown)})[{_inline(token.children[0], root)}]"
    return f"#par[{_inline(token, root)}]"


_MARKS = {"strong_open": "#strong[", "em_open": "#emph[", "strong_close": "]", "em_close": "]", "link_close": "]"}


def _inline(token: Token, root: Path) -> str:
    parts = []
    for child in token.children or []:
        if child.type == "text":
            parts.append(f"#{quote(child.content)}" if child.content else "")
        elif child.type == "code_inline":
            parts.append(f"#raw({quote(child.content)})")
        elif child.type in ("softbreak", "hardbreak"):
            parts.append('#" "' if child.type == "softbreak" else "#linebreak()")
        elif child.type == "link_open":
            target = str(child.attrs["href"])
            parts.append(f"#link({quote(target)})[" if "://" in target else "#[")
        elif child.type in _MARKS:
            parts.append(_MARKS[child.type])
    return "".join(parts)


def _table(tokens: Sequence[Token], root: Path) -> str:
    rows: list[list[Token]] = []
    aligns: list[str] = []
    for number, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(tokens[number + 1])
            if token.type == "th_open":
                aligns.append(str(token.attrs.get("style", "")).removeprefix("text-align:") or "left")
    head, *body = rows
    longest = [max((len(row[place].content) for row in body), default=0) for place in range(len(head))]
    widths = [
        f"{length}fr" if align == "left" and length > _LONG else "auto"
        for length, align in zip(longest, aligns, strict=True)
    ]
    heads = ", ".join(f"[{_inline(cell, root)}]" for cell in head)
    cells = "".join(f", [{_inline(cell, root)}]" for row in body for cell in row)
    return f"#grid-table(({', '.join(widths)},), ({', '.join(aligns)},), {len(body)}, ({heads},){cells})"
