"""Rendering: tables, one source for Markdown and PDF, figures without small or overlapping type."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from report import render, wording
from report.plotting import end_labels, new_figure, style
from report.render import table, write_report
from report.typesetting import typst_of
from tests.report.faults import faults_of

TEMPLATE = """# {{ title | escape }}

> **Answer.** M-CSER loses {{ loss | points }} points, with 95 % sure.

## A section

{{ rows | table({"name": ("method", "text"), "run": ("run", "code"), "loss": ("loss", "points")}, strong="is_best") }}

- one *item*, [a link](https://example.org)
- two, a "quote" and a \\# sign

![What it shows.](figures/one.png)

```
python -m harness run x
```
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "page.md.j2").write_text(TEMPLATE)
    (tmp_path / "templates" / "macros.md.j2").write_text("")
    monkeypatch.setattr(render, "TEMPLATES", tmp_path / "templates")
    render.environment.cache_clear()
    yield tmp_path  # type: ignore[misc]
    render.environment.cache_clear()


def _figure() -> Figure:
    with style():
        figure, (axes,) = new_figure(2.0)
        axes.plot([1, 2, 3], [1, 2, 3])
        end_labels(axes, [(3, 3, "a name", "#000000"), (3, 3.01, "another", "#ff0000")])
        return figure


def _write(made: Path, name: str) -> Path:
    rows = pd.DataFrame(
        {
            "name": ["a|b*_c_", "SGD"],
            "run": ["ab~1", None],
            "loss": [-0.00123456789, float("nan")],
            "is_best": [True, False],
        }
    )
    context = {"title": "Loss * of #all", "loss": -0.0031, "rows": rows}
    return write_report(made / name, "page", "page.md.j2", context, {"rows": rows}, {"one": _figure()})


def test_the_same_numbers_give_the_same_bytes(made: Path) -> None:
    first, second = _write(made, "first").parent, _write(made, "second").parent
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*.*"))
    assert names == ["csv/rows.csv", "figures/one.pdf", "figures/one.png", "page.md", "page.pdf"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert (first / "page.pdf").read_bytes().startswith(b"%PDF")


def test_what_a_reader_sees(made: Path) -> None:
    text = _write(made, "first").read_text()
    assert "# Loss \\* of #all" in text and "loses −0.31 points" in text
    assert "| **a\\|b\\*\\_c\\_** | **`ab~1`** | **−0.12** |" in text and "| SGD | – | – |" in text
    assert "-0.00123456789" in (made / "first" / "csv" / "rows.csv").read_text()


def test_no_text_is_typst_markup(tmp_path: Path) -> None:
    source = typst_of('# T\n\nA #sum $x$ of "one"\\\\ and @two.\n', tmp_path)
    assert '#par[#"A #sum $x$ of \\"one\\"\\\\ and @two."]' in source


def test_an_empty_table_has_its_head() -> None:
    assert table(pd.DataFrame({"a": []}), {"a": ("A", "points")}) == "| A |\n| ---: |"


def test_faults_of_figures_are_found() -> None:
    assert faults_of(_figure()) == []
    with style():
        figure, (axes,) = new_figure(2.0)
        axes.text(0.5, 0.5, "one name")
        axes.text(0.5, 0.52, "another name", fontsize=5)
        for line in range(7):
            axes.plot([0, 1, 2], [line, line, line])
    found = " ".join(faults_of(figure))
    assert "overlap: one name and another name" in found and "small: another name" in found and "7 lines" in found


def test_numbers_are_written_one_way() -> None:
    assert [wording.points(x) for x in (0.0012, -0.0012, 0.00001, None)] == ["+0.12", "−0.12", "0.00", "–"]
    assert [wording.amount(x) for x in (28050, 292.3, 18.31, 3.999, 96.0, 0.2)] == [
        *("28,050", "292", "18.3", "4.00", "96", "0.200")
    ]
    assert wording.listed(["a", "b", "c"]) == "a, b and c" and wording.counted(2, "run") == "2 runs"
