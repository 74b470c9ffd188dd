"""What README and the guide show of the records: tables, and README's picture."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.atomic import write_text_atomically
from cser_bench.report.first_figure import efficiency_figure
from cser_bench.report.first_table import Table, table_frame, tables
from cser_bench.report.plotting import save

FIGURE = Path("docs/figures/efficiency.png")
"""The picture, from README's folder."""


def write_first_screen(readme: Path) -> None:
    """Write the tables between their pages' marks, and the picture beside the documents.

    Raises:
        UsageError: a page lacks the marks of a table.
        OSError: a page or the picture cannot be written.
    """
    for table in tables():
        page = readme
        if table.page:
            page = readme.parent / table.page
        text = with_table(page.read_text(), table, str(page))
        write_text_atomically(page, text, durable=False)
    save(efficiency_figure(), readme.parent / FIGURE)


def with_table(text: str, table: Table, place: str) -> str:
    """Return a page with a table between its marks, `<!-- begin: NAME -->` and `<!-- end: NAME -->`.

    Raises UsageError: the page, which `place` names, has no such marks.
    """
    begin = f"<!-- begin: {table.name} -->\n"
    end = f"\n<!-- end: {table.name} -->"
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise UsageError(
            f"{place} has no lines {begin.strip()} and {end.strip()}; put them where the table belongs"
        )
    return f"{before}{begin}{table_text(table)}{end}{after}"


def table_text(table: Table) -> str:
    """Return a table of README in Markdown."""
    frame = table_frame(table)
    heads = {
        "drop": f"drop, {table.unit}",
        "predicted": "efficiency, predicted",
        **{name: f"efficiency, {name}" for name in table.networks},
    }
    frame = frame.rename(columns=heads)
    alignments = ["left", "left"] + ["right"] * (len(frame.columns) - 2)
    # Numbers are texts by now, which tabulate would read as numbers again.
    return tabulate(
        frame.to_dict("list"),
        headers="keys",
        tablefmt="pipe",
        disable_numparse=True,
        colalign=alignments,
    )
