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
    claims = written.model_dump(exclude={"finding", "use", "note", "except_at"})
    assert any(claims.values()), "a sentence without a claim cannot be wrong"
    if "does worse than" in written.finding:
        assert written.significant or written.inconclusive, "a comparison was declared"
    # Numbers of results would have to be kept up by hand; those of settings may stand.
    assert not re.search(r"\d (points|nats|%)", f"{written.finding} {written.use}")


def _rows_of(claims: object) -> set[str]:
    """Return the rows that claims name, however deep."""
    if isinstance(claims, str):
        return {claims}
    if isinstance(claims, dict):
        claims = list(claims.values())
    if isinstance(claims, (list, tuple)):
        return set().union(*map(_rows_of, claims))
    return set()


@pytest.mark.parametrize("folder", REPORTED, ids=lambda folder: folder.name)
def test_what_to_do_names_methods_that_the_claims_are_of(folder: Path) -> None:
    written = findings()[folder.name]
    experiment = read_experiment(folder)
    # All methods are compared with the baseline.
    claimed = _rows_of(written.model_dump(exclude={"finding", "use", "note"}))
    claimed |= {str(experiment.baseline)}
    names = {short_label(row) for row in experiment.rows}
    claimed_names = {short_label(r) for r in experiment.rows if r.row in claimed}
    said = written.use
    # The longest first, as a name may begin with another one.
    for name in sorted(names, key=len, reverse=True):
        said, is_named = re.subn(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "", said)
        assert not is_named or name in claimed_names


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
        {"smallest": ["local"]},
        {"smallest": ["ef_4bit", "local"]},
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
