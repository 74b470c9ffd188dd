"""Rendering: cells of tables, text that is no markup, numbers, figures without small or overlapping
type."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import typst
from matplotlib import cbook
from matplotlib.text import Text

from cser_bench.report import wording
from cser_bench.report.accuracy_figures import link_figure, loss_figure
from cser_bench.report.frame import read_frames
from cser_bench.report.plotting import (
    end_labels,
    headline,
    new_figure,
    plain,
    save,
    style,
)
from cser_bench.report.render import table, write_tables
from cser_bench.report.statistics import accuracy_frame
from cser_bench.report.typesetting import typst_of, write_pdf
from tests.report.faults import faults_of
from tests.report.holed import RESULTS


def write_all(folder: Path) -> None:
    """A table, a picture in both forms, and a PDF."""
    write_tables(folder, {"rows": pd.DataFrame({"loss": range(10)})})
    with style():
        figure, _ = new_figure(3)
    save(figure, folder / "curve.png")
    write_pdf("Some words.\n", folder / "report.pdf")


@pytest.mark.parametrize("name", ["rows.csv", "curve.png", "curve.pdf", "report.pdf"])
def test_a_full_disk_is_said_with_the_file_that_found_no_room(
    name: str, tmp_path: Path
) -> None:
    # The PDF is written beside its place, and then moved there.
    opened = ".report.pdf.part" if name == "report.pdf" else name
    (tmp_path / opened).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_all(tmp_path)
    assert caught.value.filename == str(tmp_path / name)


def test_cells_are_escaped_rounded_and_the_best_is_strong() -> None:
    rows = pd.DataFrame(
        {
            "name": ["a|b*_c_", "SGD"],
            "run": ["ab~1", None],
            "loss": [-0.00123456789, float("nan")],
            "is_best": [True, False],
        }
    )
    columns = {
        "name": ("method", "text"),
        "run": ("run", "code"),
        "loss": ("loss", "percent"),
    }
    lines = table(rows, columns, strong="is_best").splitlines()
    assert lines[2:] == [
        "| **a\\|b\\*\\_c\\_** | **`ab~1`** | **−0.12** |",
        "| SGD | – | – |",
    ]
    empty = pd.DataFrame({"a": []})
    assert table(empty, {"a": ("A", "percent")}) == "| A |\n| ---: |"


def test_no_text_is_typst_markup(tmp_path: Path) -> None:
    source = typst_of('# T\n\nA #sum $x$ of "one"\\\\ and @two.\n', tmp_path)
    assert '#par[#"A #sum $x$ of \\"one\\"\\\\ and @two."]' in source


def test_code_keeps_its_indentation_in_a_pdf(tmp_path: Path) -> None:
    source = typst_of('# T\n\n```\nfor run in "runs":\n    go  (run)\n```\n', tmp_path)
    assert '("for run in \\"runs\\":", "    go  (run)",)' in source


def test_a_picture_of_a_pdf_has_its_caption_or_else_its_text(tmp_path: Path) -> None:
    captioned = typst_of("# T\n\n![a](a.png)\n\n*b*\n\nc\n", tmp_path)
    assert '#picture("/a.png")[#par[#emph[#"b"]]]\n#par[#"c"]' in captioned
    alone = typst_of("# T\n\n![a](a.png)\n\nc\n", tmp_path)
    assert '#picture("/a.png")[#"a"]\n#par[#"c"]' in alone


def test_links_of_a_pdf_lead_to_the_web_and_to_pdfs(tmp_path: Path) -> None:
    (tmp_path / "23.pdf").touch()
    source = typst_of(
        "# T\n\n[a](https://example.org) and [b](23.md#c), [d](../docs/d.md)\n",
        tmp_path,
    )
    assert '#link("https://example.org")[#"a"]' in source
    assert '#link("23.pdf")[#"b"]' in source
    assert source.count("#link(") == 2
    assert '#"d"' in source


@pytest.mark.parametrize(("num_sections", "has_contents"), [(4, False), (10, True)])
def test_a_long_text_has_a_table_of_contents(
    tmp_path: Path, num_sections: int, has_contents: bool
) -> None:
    sections = [f"## Section {number}\n\nWords.\n" for number in range(num_sections)]
    source = typst_of("# T\n\n" + "\n".join(sections), tmp_path)
    found = typst.query(source.encode(), "outline", root=str(tmp_path))
    assert (found != "[]") == has_contents


def test_faults_of_figures_are_found() -> None:
    with style():
        figure, (axes,) = new_figure(2.0)
        axes.plot([1, 2, 3], [1, 2, 3])
        ends = [(3, 3, "a name", "#000000"), (3, 3.01, "another", "#ff0000")]
        end_labels(axes, ends)
        assert faults_of(figure) == []
        figure, (axes,) = new_figure(2.0)
        axes.text(0.5, 0.5, "one name")
        axes.text(0.5, 0.52, "another name", fontsize=5)
        for line in range(7):
            axes.plot([0, 1, 2], [line, line, line])
    found = " ".join(faults_of(figure))
    assert "overlap: one name and another name" in found
    assert "small: another name" in found
    assert "7 lines" in found


def test_dollars_in_a_label_are_no_formula(tmp_path: Path) -> None:
    """Between two, matplotlib would read one, and end where it is none, as of `\\frac`."""
    names = ["costs $5, not $6", r"$\frac$", "$x$"]
    for text in names:
        with style():
            figure, (axes,) = new_figure(2)
            axes.plot([0, 1], [0, 1], label=plain(text))
            axes.set_yticks([0], [plain(text)])
            axes.legend()
            end_labels(axes, [(1, 1, text, "#000000")])
            headline(figure, text)
        save(figure, tmp_path / "figure.png")
        texts = {each.get_text() for each in figure.findobj(Text)}
        with_dollars = [each for each in texts if "$" in each]
        assert with_dollars
        for each in with_dollars:
            assert not cbook.is_math_text(each)


def test_a_report_draws_dollars(tmp_path: Path) -> None:
    """Through `loss_figure` and `link_figure`, whose labels are the rows' own."""
    frames = read_frames(RESULTS / "reference" / "fashion_mnist_long")
    accuracy = accuracy_frame(frames)
    accuracy["label"] = accuracy["label"].map(
        {label: rf"$\frac{label}$" for label in accuracy["label"]}
    )
    families = frames.experiment.families
    for draw in (loss_figure, link_figure):
        figure = draw(accuracy, 0.01, "$a$", families)
        save(figure, tmp_path / "figure.png")


def test_the_axis_of_drops_by_traffic_names_the_drop() -> None:
    """Not one of the families, each of which has a panel."""
    frames = read_frames(RESULTS / "reference" / "fashion_mnist_long")
    families = frames.experiment.families
    figure = link_figure(
        accuracy_frame(frames), 0.01, "a title", families, "nats", "loss gap"
    )
    assert figure.axes[0].get_ylabel() == "loss gap, nats"


def test_numbers_are_written_one_way() -> None:
    assert [wording.amount(x) for x in (28050, 292.3, 18.31, 3.999, 96.0, 0.2)] == [
        *("28,050", "292", "18.3", "4.00", "96", "0.200")
    ]
    assert wording.listed(["a", "b", "c"]) == "a, b and c"
    assert wording.counted(2, "run") == "2 runs"
