"""From numbers to pages: jinja2 templates make Markdown, and the same Markdown makes the PDF."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cser_bench.harness.records.atomic import errors_naming, write_text_atomically
from cser_bench.report import wording
from cser_bench.report.plotting import save
from cser_bench.report.typesetting import write_pdf

TEMPLATES = Path(__file__).parent / "templates"

LEFT = ("text", "code", "span")
"""Formats of columns that are aligned to the left; numbers are aligned to the right."""

# An underscore inside a word, as in a name of a row, is plain text in CommonMark, and so is an
# ampersand that begins no entity.
# A "#" or ">" is markup at the beginning of a line alone.
_SPECIAL = re.compile(
    r"([\\`*<\[\]~|$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w+;)|^[#>])"
)
_LINE_BREAK = re.compile(r"\s*[\r\n]+\s*")


def escape(value: Any) -> Markup:
    """Return text that Markdown shows as it is, on one line; a `Markup` is Markdown already."""
    if isinstance(value, Markup):
        return value
    line = _LINE_BREAK.sub(" ", str(value))
    return Markup(_SPECIAL.sub(r"\\\1", line))


def _printed(value: Any) -> Any:
    """Escape a text that a template prints. What is undefined must stay so, to be an error."""
    if not isinstance(value, str):
        return value
    return escape(value)


def _joined(items: Iterable[Any], separator: str = "") -> Markup:
    """Join items that are escaped each by a separator that is Markdown."""
    return Markup(separator).join(map(escape, items))


def _listed(items: Sequence[Any]) -> Markup:
    return Markup(wording.listed([*map(escape, items)]))


def table(
    frame: pd.DataFrame,
    columns: Mapping[str, tuple[str, str]],
    strong: str | None = None,
) -> Markup:
    """Return a Markdown table of some of a frame's columns; a filter of the templates.

    Args:
        columns: by the frame's column: its head, and the name of a format of
            `report.wording.FORMATS`. Two columns with a comma between go into one cell.
        strong: a column of booleans; its true rows are set in bold.
    """
    heads: list[str] = []
    dashes = []
    for head, format_name in columns.values():
        heads.append(escape(head))
        # Dashes below a head say how its column is aligned.
        align = "---:"
        if format_name in LEFT:
            align = "---"
        dashes.append(align)
    lines = [heads, dashes]
    for record in frame.to_dict("records"):
        cells: list[str] = []
        for column, (_, format_name) in columns.items():
            cells.append(_table_cell(record, column, format_name))
        if strong is not None and record[strong]:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(cells)
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _table_cell(
    record: Mapping[Hashable, Any], column: str, format_name: str
) -> Markup:
    """Write one or two values of a record in a format, as Markdown."""
    value = record.get(column)
    # A column of the report of speed is a network, whose name has a comma too.
    if column not in record:
        value = tuple(record[part] for part in column.split(", "))
    return escape(wording.FORMATS[format_name](value))


@cache
def environment(is_markdown: bool = True) -> Environment:
    """Return the environment of the templates.

    Its filters are the formats of `report.wording`, `listed`, `counted` and `table`.

    Args:
        is_markdown: whether every text that a template prints is escaped, but for a `Markup`; a
            text for a terminal is not.
    """
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # A name that the context lacks is an error, not an empty text.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Jinja would escape HTML; what went through `escape` it takes for done. So macros, which
        # return a Markup here, are escaped once.
        autoescape=is_markdown,
    )
    templates.filters |= wording.FORMATS
    templates.filters |= {
        "listed": wording.listed,
        "counted": wording.counted,
        "number_word": wording.number_word,
        "capitalised": wording.capitalised,
        "gap": wording.gap,
        "table": table,
    }
    if is_markdown:
        templates.finalize = _printed
        # Jinja's own `join` would escape the separator, which is Markdown.
        templates.filters |= {"listed": _listed, "join": _joined}
    return templates


def markdown_of(template: str, context: Mapping[str, Any]) -> str:
    """Return a template of report/templates with the values of its names put in.

    There is never more than one empty line in a row.

    Raises:
        jinja2.UndefinedError: the template names what the context lacks.
    """
    text = environment().get_template(template).render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_tables(folder: Path, frames: Mapping[str, pd.DataFrame]) -> Path:
    """Write each frame as NAME.csv, whole and unrounded, and return the folder.

    The folder is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        path = folder / f"{name}.csv"
        with errors_naming(path):
            # pandas ends lines as the platform does, and the same records must give the same bytes.
            frame.to_csv(path, index=False, lineterminator="\n")
    return folder


def write_report(
    output: Path,
    name: str,
    template: str,
    context: Mapping[str, Any],
    frames: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
    with_pdf: bool = True,
) -> Path:
    """Write NAME.md, NAME.pdf, csv/ and figures/.

    The same numbers give the same bytes of Markdown and CSV.

    Args:
        output: a folder; made if it is not there.
        template: file in report/templates, which shows a figure as `![What it
            shows.](figures/KEY.png)`.
        context: what the template names.
        frames: by name of the CSV file; whole and unrounded.
        figures: by key, each made inside `report.plotting.style()`.
        with_pdf: whether to set the PDF too.

    Returns:
        The path of the Markdown.

    Raises:
        OSError: the folder cannot be written.
    """
    write_tables(output / "csv", frames)
    # Before the PDF, which takes its pictures from this folder.
    for key, figure in figures.items():
        save(figure, output / "figures" / f"{key}.png")
    text = markdown_of(template, context)
    if with_pdf:
        write_pdf(text, output / f"{name}.pdf")
    path = output / f"{name}.md"
    write_text_atomically(path, text, durable=False)
    return path
