"""One document, two renderings; the same records, the same bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from report.__main__ import main
from report.accuracy.build import build_report, document_of
from report.accuracy.findings import study_of
from report.accuracy.records import read_records
from report.accuracy.tables import accuracy_table
from report.accuracy.tuning import tuned_rows
from report.kit.document import Cell, Column, Document, Figure, Paragraph, Section, Table
from report.kit.markdown import escape, render_markdown
from report.kit.pdf import quote, render_pdf, render_typst
from tests.report.made_up import Built
from tests.report.reading import blocks_of, texts_of


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_rebuild_gives_the_same_bytes(small: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small.records), "--output", str(tmp_path)]) == 0
    assert "report.md" in capsys.readouterr().out
    again = _files(tmp_path)
    assert {"report.md", "report.pdf", "figures/tuning.png", "csv/curves.csv"} <= again.keys()
    assert again == _files(small.output)


def test_a_resumed_run_changes_its_own_part_alone(small: Built, resumed: Built) -> None:
    part = re.compile(r"<!-- begin: Attempts and times -->.*<!-- end: Attempts and times -->", re.S)
    assert part.search(small.markdown) and small.markdown != resumed.markdown
    assert part.sub("", small.markdown) == part.sub("", resumed.markdown)
    ours, theirs = _files(small.output), _files(resumed.output)
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if ours[n] != theirs[n]] == ["csv/attempts.csv", "report.md", "report.pdf"]


def test_both_renderings_hold_every_text(small: Built, tmp_path: Path) -> None:
    records = read_records(small.records)
    tuning = read_records(small.records.parent / "small_tuning")
    document = document_of(study_of(records), tuning, tuned_rows(records, tuning), tmp_path)
    markdown, source = render_markdown(document), render_typst(document)
    assert markdown == small.markdown
    for text in texts_of(document):
        for line in text.split("\n"):
            assert escape(line) in markdown or line in markdown
            assert _squeezed(quote(line)[1:-1]) in _squeezed(source)
    figures = [block for block in blocks_of(document) if isinstance(block, Figure)]
    assert figures and all(f"({figure.path})" in markdown and f'"/{figure.vector}"' in source for figure in figures)
    assert render_pdf(document, tmp_path) == (small.output / "report.pdf").read_bytes()


def _squeezed(source: str) -> str:
    """Without spaces and line breaks, which a head of a table may have between its words."""
    return re.sub(r"\s|\\n", "", source)


def test_every_number_of_the_accuracy_table_knows_its_runs(small: Built) -> None:
    table = accuracy_table(study_of(read_records(small.records)))
    ids = {path.name for path in small.records.iterdir()}
    for row in table.rows:
        for cell in row[4:]:
            assert cell.text == "–" or (cell.runs and set(cell.runs) <= ids)


def test_text_is_never_markup() -> None:
    nasty = 'a_b *c* #set page() "q" \\ $x$ [l](u) <b> | `code` _d_ // ~s~'
    table = Table(nasty, nasty, (Column(nasty, "left"),), ((Cell(nasty),),), number=1)
    document = Document(nasty, nasty, (Section(nasty, (Paragraph(nasty), table)),))
    assert render_pdf(document, Path(".")).startswith(b"%PDF")
    assert "\\*c\\*" in render_markdown(document) and "a_b" in render_markdown(document)


def test_a_report_of_no_runs_says_so(empty: Built) -> None:
    assert "No run is done yet: 0 of 50 runs." in empty.markdown
    assert "No figure of accuracy against bits sent yet" in empty.markdown
    assert "no runs yet: small" in empty.markdown
    assert (empty.output / "report.pdf").read_bytes().startswith(b"%PDF")
    assert not list((empty.output / "figures").glob("*.png")) if (empty.output / "figures").exists() else True


def test_what_was_published_says_what_is_not_at_hand(small: Built) -> None:
    assert "nearly 10x" in small.markdown and "4.5x" in small.markdown and "not at hand" in small.markdown


def test_no_wall_clock_outside_its_part(small: Built) -> None:
    outside = small.markdown.split("<!-- begin: Attempts and times -->")[0]
    assert "2030-01-01" in small.markdown and "2030-01-01" not in outside


def test_a_tuning_experiment_has_a_report_of_its_own(small: Built, tmp_path: Path) -> None:
    markdown = build_report(small.records.parent / "small_tuning", output=tmp_path).read_text()
    assert "Held-out accuracy over the learning rate" in markdown and "## Accuracy" not in markdown
    assert "diverged" in markdown and (tmp_path / "report.pdf").exists()


def test_bookkeeping_is_told_with_the_attempts_alone(resumed: Built) -> None:
    assert "control" not in resumed.markdown
    assert "control" not in (resumed.output / "csv" / "bits.csv").read_text()
    assert "bookkeeping_bits" in (resumed.output / "csv" / "attempts.csv").read_text()
