"""Markdown to HTML: its links lead to pages of the site, and names of experiments are links too."""

import html
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markdown_it.token import Token

from cser_bench.report.markdown import markdown_parser, without_comments
from cser_bench.report.site.places import Places, page_of, relative

HERE = Path(__file__).parent

# A cell with more letters has a width of its own, or it would be a column of single words.
_LONG = 40


@dataclass(frozen=True)
class Text:
    """A text as HTML.

    title: of the first heading, plain. headings: the others' ids and plain texts, in order.
    """

    title: str
    body: str
    headings: Sequence[tuple[str, str]]


def html_of(
    markdown: str,
    source: str,
    places: Places,
    named: Mapping[str, str],
    under_heading: Callable[[str, str, str], str] | None = None,
) -> Text:
    """Return a text as HTML.

    Args:
        markdown: of the text.
        source: its path in the repository, from which its links go.
        places: what can be linked to.
        named: by the name of an experiment, the path of its report in the repository. Where texts
            name it in code, or a file that has a page, the name is a link.
        under_heading: returns the HTML to put under a heading of the first three levels, given its
            tag, its id and the Markdown under it.
    """
    markdown = without_comments(markdown)
    parser = markdown_parser()
    tokens = parser.parse(markdown)
    # Before links are set, which put other spaces into words.
    title, headings = _headings(tokens)
    for token in tokens:
        if token.type == "inline":
            token.children = _linked(token.children or [], source, places, named)
    if under_heading:
        tokens = _with_notes(tokens, markdown.split("\n"), under_heading)
    body = parser.renderer.render(_with_scrolled_tables(tokens), parser.options, {})
    return Text(title, body, headings)


def _headings(tokens: Sequence[Token]) -> tuple[str, list[tuple[str, str]]]:
    """Give each heading its id, and return the title and the other headings' ids and texts."""
    taken: set[str] = set()
    headings = []
    title = ""
    for number, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        text = plain(tokens[number + 1])
        name = _free_id(text, taken)
        token.attrSet("id", name)
        if token.tag == "h1":
            title = title or text
        else:
            headings.append((name, text))
    return title, headings


def _with_notes(
    tokens: Sequence[Token],
    lines: Sequence[str],
    under_heading: Callable[[str, str, str], str],
) -> list[Token]:
    """Return the tokens, with what `under_heading` says below each heading of three levels."""
    shown = []
    for number, token in enumerate(tokens):
        shown.append(token)
        if token.type == "heading_close" and token.tag in ("h1", "h2", "h3"):
            # A heading is three tokens: what opens it, with its id, its text, and its close.
            name = str(tokens[number - 2].attrGet("id"))
            section = _section(tokens, lines, number)
            shown.append(_markup(under_heading(token.tag, name, section)))
    return shown


def _with_scrolled_tables(tokens: Sequence[Token]) -> list[Token]:
    """Return the tokens, each table in a box that scrolls on a narrow screen."""
    box = '<div class="scroll" tabindex="0" role="region" aria-label="Table">'
    shown = []
    for number, token in enumerate(tokens):
        if token.type == "td_open" and len(tokens[number + 1].content) > _LONG:
            token.attrSet("class", "long")
        if token.type == "table_open":
            shown.append(_markup(box))
        shown.append(token)
        if token.type == "table_close":
            shown.append(_markup("</div>"))
    return shown


def plain(inline: Token) -> str:
    """Return the words of a line of Markdown."""
    words = []
    for child in inline.children or []:
        if child.type in ("text", "code_inline"):
            words.append(child.content)
        elif child.type == "softbreak":
            words.append(" ")
    return "".join(words)


def _section(tokens: Sequence[Token], lines: Sequence[str], number: int) -> str:
    """Return the Markdown under a heading, whose close has this number.

    That is up to the next heading of its level or of one above.
    """
    start = tokens[number - 1].map or [0, 0]
    end = len(lines)
    for token in tokens[number + 1 :]:
        if (
            token.type == "heading_open"
            and token.map
            and token.tag <= tokens[number].tag
        ):
            end = token.map[0]
            break
    return "\n".join(lines[start[1] : end])


def _markup(text: str) -> Token:
    return Token("html_block", "", 0, content=f"{text}\n")


def _free_id(text: str, taken: set[str]) -> str:
    """Return the id that GitHub gives a heading, on which links of texts rely."""
    words = re.sub(r"[^\w\- ]", "", text.lower())
    name = words.replace(" ", "-")
    free = name
    number = 0
    # The first of a name has no number, the second has 1.
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free)
    return free


def _linked(
    children: Sequence[Token], source: str, places: Places, named: Mapping[str, str]
) -> list[Token]:
    """Return the parts of a line with its links as pages of the site have them."""
    parts: list[Token] = []
    is_in_link = False
    # The words of a link that leads nowhere stay, without the link.
    is_dropped = False
    for token in children:
        if token.type == "link_open":
            link = places.link(source, str(token.attrGet("href")))
            is_dropped = link is None
            is_in_link = True
            if link is not None:
                token.attrSet("href", link)
        elif token.type == "image":
            link = places.link(source, str(token.attrGet("src")))
            token.attrSet("src", link or "")
            token.attrSet("loading", "lazy")
        if token.type == "link_close":
            is_in_link = False
        if token.type == "text":
            # A number stays on the line of its "%".
            token.content = re.sub(r"(?<=\d) %", "\u00a0%", token.content)
        is_bound = token.type in ("link_open", "link_close")
        if token.type == "code_inline" and not is_in_link:
            parts += _link_about(token, source, places, named)
        elif not (is_bound and is_dropped):
            parts.append(token)
    return parts


def _link_about(
    token: Token, source: str, places: Places, named: Mapping[str, str]
) -> list[Token]:
    """Return code, inside a link where it names an experiment or a file that has a page."""
    name = token.content
    folder = posixpath.dirname(source)
    beside = posixpath.normpath(posixpath.join(folder, name))
    if name in named:
        path = named[name]
    elif name in places.texts:
        path = name
    elif (places.site / beside).is_file():
        path = beside
    else:
        return [token]
    place = places.place(path)
    # A page does not link to itself.
    if place is None or place == page_of(source):
        return [token]
    link = relative(page_of(source), place)
    return [
        Token("link_open", "a", 1, attrs={"href": link}),
        token,
        Token("link_close", "a", -1),
    ]


def code_html(text: str) -> str:
    """Return lines of code as they are."""
    return f'<pre tabindex="0"><code>{html.escape(text)}</code></pre>'


@cache
def template() -> Template:
    """Return the frame of every page; what it puts in is escaped but for the body."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html")
