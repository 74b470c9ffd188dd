"""report.html: the report's own Markdown as one page, which needs no network."""

import base64
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markdown_it.token import Token
from markupsafe import Markup

from cser_bench.harness.records.atomic import write_text_atomically
from cser_bench.report.markdown import markdown_parser, without_comments
from cser_bench.report.render import TEMPLATES


def write_page(report: Path) -> None:
    """Write report.html beside report.md, with its pictures in it; a click on a head sorts a table.

    Raises OSError, which names the file: it cannot be read or written.
    """
    parser = markdown_parser()
    tokens = parser.parse(without_comments(report.read_text()))
    lines = [token for token in tokens if token.type == "inline"]
    for line in lines:
        for part in line.children or []:
            if part.type == "image":
                part.attrSet("src", _inlined(part, report.parent))
    page = _template().render(
        # A report begins with its title.
        title="".join(part.content for part in lines[0].children or []),
        body=Markup(parser.renderer.render(tokens, parser.options, {})),
    )
    write_text_atomically(report.with_suffix(".html"), page, durable=False)


def _inlined(image: Token, folder: Path) -> str:
    """Return a PNG picture as the address that holds its bytes."""
    path = folder / unquote(str(image.attrGet("src")))
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2")
