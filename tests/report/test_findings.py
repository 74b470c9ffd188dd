"""Findings that are titles of reports, what they rest on, and labels, which are those of one name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.report.accuracy_report import build_report
from cser_bench.report.findings import finding_of, findings
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.labels import short_label, with_short_labels
from cser_bench.report.statistics import accuracy_frame

REPORTED = [
    folder
    for folder in shipped_experiments()
    if (folder / "report.md").exists() and not folder.name.endswith("_tuning")
]
LOOK = next(folder for folder in REPORTED if folder.name == "first_look")


@pytest.mark.parametrize("folder", REPORTED, ids=lambda folder: folder.name)
def test_each_shipped_experiment_has_a_finding_that_rests_on_its_rows(
    folder: Path,
) -> None:
    written = findings()[folder.name]
    rows = {row.row for row in read_experiment(folder).rows}
    assert rows >= {*written.rows, *(row for pair in written.pairs for row in pair)}
    # Numbers of results would have to be kept up by hand; those of settings may stand.
    assert not re.search(r"\d (points|nats|%)", f"{written.finding} {written.use}")


def test_there_is_no_finding_of_what_does_not_ship() -> None:
    reported = {folder.name for folder in REPORTED}
    assert findings().keys() == reported


@pytest.fixture(scope="module")
def look() -> Frames:
    return read_frames(LOOK)


def test_a_report_has_the_gaps_that_its_finding_rests_on(
    look: Frames, tmp_path: Path
) -> None:
    page = build_report(look, tmp_path, with_pdf=False).read_text()
    _, _, after = page.partition("- **How sure.** ")
    line, _, rest = after.partition("\n")
    gaps = accuracy_frame(look).set_index("row")["difference"]
    assert f"EF 4-bit: {-100 * gaps['ef_4bit']:.2f} points (95 % CI " in line
    assert f"{len(look.experiment.seeds)} seeds, one network" in line
    assert f"- **What to do.** {findings()['first_look'].use}" in rest
    assert "(../../answers/which-method.md)" in rest


def test_ones_own_records_keep_the_experiments_own_title(
    look: Frames, tmp_path: Path
) -> None:
    """Their rows may stand in another order."""
    other = replace(look, folder=tmp_path / look.folder.name)
    assert finding_of(other) is None
    page = build_report(other, tmp_path, with_pdf=False).read_text()
    assert page.startswith(f"# {look.experiment.title}\n")


@pytest.mark.parametrize("folder", REPORTED, ids=lambda folder: folder.name)
def test_printed_names_hold_no_comma_and_keep_rows_apart(folder: Path) -> None:
    all_rows = read_experiment(folder).rows
    rows = [row for row in all_rows if row.repeats is None]
    names = [(short_label(row), row.ratio_group) for row in rows]
    for name, _ in names:
        assert "," not in name
    settings = {(row.label, row.ratio_group) for row in rows}
    assert len(set(names)) == len(settings)


def test_names_change_and_nothing_else(look: Frames) -> None:
    named = with_short_labels(look)
    before = look.rows.drop(columns="label")
    assert named.rows.drop(columns="label").equals(before)
    assert named.runs is look.runs
