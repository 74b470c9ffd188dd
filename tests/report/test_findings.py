"""Findings that are titles of reports: each claim holds in the records, and labels are those of one name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.report.accuracy_report import build_report
from cser_bench.report.findings import broken_claims, finding_of, findings
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.labels import short_label, with_short_labels
from cser_bench.report.statistics import accuracy_frame, contrasts_frame

REPORTED = [
    folder
    for folder in shipped_experiments()
    if (folder / "report.md").exists() and not folder.name.endswith("_tuning")
]
LOOK = next(folder for folder in REPORTED if folder.name == "first_look")


@pytest.mark.parametrize("folder", REPORTED, ids=lambda folder: folder.name)
def test_each_shipped_experiment_has_a_finding_that_holds(folder: Path) -> None:
    frames = read_frames(folder)
    written = findings()[folder.name]
    assert (
        broken_claims(written, frames, accuracy_frame(frames), contrasts_frame(frames))
        == []
    )
    claims = written.model_dump(exclude={"finding", "note", "except_at"})
    assert any(claims.values()), "a sentence without a claim cannot be wrong"
    if "does worse than" in written.finding:
        assert written.significant or written.inconclusive, "a comparison was declared"
    # Numbers of results would have to be kept up by hand; those of settings may stand.
    assert not re.search(r"\d (points|nats|%)", written.finding)


def test_there_is_no_finding_of_what_does_not_ship() -> None:
    reported = {folder.name for folder in REPORTED}
    assert findings().keys() == reported


@pytest.fixture(scope="module")
def look() -> Frames:
    return read_frames(LOOK)


@pytest.mark.parametrize(
    "claim",
    [
        {"order": [["local", "ef_4bit"]]},
        {"order": [["ef_4bit", "no such row"]]},
        {"smallest": "local"},
        {"largest": "alone"},
        {"everywhere": [["local", "ef_4bit"]]},
        {"significant": [("ef_4bit", "local")]},
        {"inconclusive": [("mcser_blocks", "local")]},
    ],
)
def test_a_claim_that_does_not_hold_is_found(
    look: Frames, claim: dict[str, object]
) -> None:
    written = findings()["first_look"].model_copy(update=claim)
    accuracy = accuracy_frame(look)
    contrasts = contrasts_frame(look)
    broken = broken_claims(written, look, accuracy, contrasts)
    assert len(broken) == 1
    assert next(iter(claim)) in broken[0]


def test_records_that_say_otherwise_keep_the_experiments_own_title(
    look: Frames, tmp_path: Path
) -> None:
    """As one's own runs of a shipped experiment may."""
    is_best = look.runs["row"] == "ef_4bit"
    scores = look.runs["score"].where(~is_best, 0.5)
    other = replace(look, runs=look.runs.assign(score=scores))
    accuracy = accuracy_frame(other)
    contrasts = contrasts_frame(other)
    assert finding_of(other, accuracy, contrasts) is None
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
