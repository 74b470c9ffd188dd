"""What README and the guide show of the records: tables, and README's picture."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.atomic import write_text_atomically
from cser_bench.report.first_figure import efficiency_figure
from cser_bench.report.first_table import Table, predictions_frame, table_frame, tables
from cser_bench.report.plotting import save
from cser_bench.report.wording import probability

FIGURE = Path("docs/figures/efficiency.png")
"""The picture, from README's folder."""

PREDICTIONS_PAGE = Path("docs/efficiency.md")
"""The page that has the table of predictions, from README's folder."""


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
        text = with_table(page.read_text(), table.name, table_text(table), str(page))
        write_text_atomically(page, text, durable=False)
    page = readme.parent / PREDICTIONS_PAGE
    text = with_table(page.read_text(), "predictions", predictions_text(), str(page))
    write_text_atomically(page, text, durable=False)
    save(efficiency_figure(), readme.parent / FIGURE)


def with_table(text: str, name: str, table: str, place: str) -> str:
    """Return a page with a table between its marks, `<!-- begin: NAME -->` and `<!-- end: NAME -->`.

    Args:
        table: in Markdown.

    Raises UsageError: the page, which `place` names, has no such marks.
    """
    begin = f"<!-- begin: {name} -->\n"
    end = f"\n<!-- end: {name} -->"
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise UsageError(
            f"{place} has no lines {begin.strip()} and {end.strip()}; put them where the table belongs"
        )
    return f"{before}{begin}{table}{end}{after}"


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


def predictions_text() -> str:
    """Return the table of predictions in Markdown."""
    frame = predictions_frame()
    frame["log_ratio"] = frame["log_ratio"].map("{:.2f}".format)
    frame["p_holm"] = frame["p_holm"].map(probability)
    heads = {
        "log_ratio": "ln(found / predicted)",
        "p_holm": "adjusted p",
        "verdict": "prediction",
    }
    frame = frame.rename(columns=heads)
    return tabulate(
        frame.to_dict("list"),
        headers="keys",
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["left", "right", "right", "right", "right", "left"],
    )
