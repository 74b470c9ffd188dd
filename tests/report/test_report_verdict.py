"""Assay sensitivity, the answers of the verdict for outcomes of every kind, tuning and both rules of selection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report.accuracy.answers import answers_of
from report.accuracy.build import build_report
from report.accuracy.findings import Study, study_of
from report.accuracy.pairs import pairs_of
from report.accuracy.records import read_records
from report.accuracy.row_cells import AT_END
from report.accuracy.tables_tuning import rules_table
from report.accuracy.tuning import tuned_alone, tuned_rows
from report.accuracy.verdict import verdict_of
from report.kit.document import Table
from report.synthetic import Design, make_experiment, make_tuning
from tests.report.made_up import REGIME, Built

SHORT = replace(REGIME, lengths=(), by_loss=(), evaluations=2, ratios=(12, 96))


def _study(folder: Path, design: Design) -> Study:
    make_experiment(folder / design.name, design)
    return study_of(read_records(folder / design.name))


def _answers(study: Study) -> tuple[str, ...]:
    answers = answers_of(study, pairs_of(study), {})
    assert len(answers) <= 5
    return answers


def test_an_experiment_that_can_tell(regime: Built) -> None:
    study = study_of(read_records(regime.records))
    assert [assay.num_steps for assay in study.assays] == [300, 600, 1_200, 2_400]
    assert study.assay and study.assay.reason is None
    assert {f.word for f in study.compared} == {"non-inferior", "inferior", "inconclusive", "diverged"}
    assert "It can, at all 4 lengths." in regime.markdown
    assert (
        "One margin costs epochs: the baseline reaches" in regime.markdown and "Why: it is made up." in regime.markdown
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gap": 0.008}, "margins where 3 are needed"),
        ({"margin": 0.0001, "gap": 0.01}, "standard deviations between seeds where 10 are needed"),
        ({"regime": False}, "it has no floor"),
        ({"missing": frozenset(("alone", seed) for seed in range(1, 6))}, "5 and 0 finished runs"),
        ({"diverged": frozenset({("alone", 1)})}, "its ceiling or its floor diverged"),
    ],
)
def test_what_cannot_tell_is_nowhere_called_without_loss(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    design = replace(SHORT, name="blunt", **changes)
    study = _study(tmp_path, design)
    assert study.assay and study.assay.reason and reason in study.assay.reason
    would = [f for f in study.compared if f.comparison and (f.comparison.lower or -1) > -(design.margin or 0)]
    assert all(f.word in ("cannot tell", "diverged") for f in would) and not any(f.holm for f in study.compared)
    build_report(tmp_path / "blunt", output=tmp_path / "report")
    table = (tmp_path / "report" / "csv" / "accuracy.csv").read_text()
    assert ",non-inferior," not in table
    verdict = (tmp_path / "report" / "report.md").read_text().split("## The baseline")[0]
    assert "non-inferior" not in verdict and "no loss" not in verdict and "lose less:" not in verdict
    if any(f.word == "cannot tell" for f in would):
        assert "cannot tell" in table and f"this experiment cannot tell, since {study.assay.reason}" in verdict


def test_the_answers_name_numbers_and_exhibits(regime: Built) -> None:
    study = study_of(read_records(regime.records))
    verdict = regime.markdown.split("## The baseline")[0]
    bullets = [line for line in verdict.splitlines() if line.startswith("> - ")]
    assert len(bullets) == 5 and sum(line.count("(Table ") for line in bullets) >= 4
    assert "1,200 steps, 8 workers, 3,000 samples each" in verdict and "12 (100 to 101 models sent)" in verdict
    floor = study.floor
    assert floor and floor.summary and f"{100 * floor.summary.mean:.2f} % (mean of 5 runs)" in bullets[4]
    assert "CSER-PL \\[3 of 5\\]" in bullets[0] and "QSparse-local-SGD†" in bullets[0]
    assert "M-CSER" in bullets[1] and "models needed" in bullets[1]
    assert verdict.count("> |:---") == 1, "one table"


def test_which_scheme_is_better_follows_the_numbers(tmp_path: Path) -> None:
    by_name = {method.name: method for method in SHORT.methods}
    good, bad = replace(by_name["cser"], loss=0.0001), replace(by_name["cser"], loss=0.05)
    plain = by_name["local_sgd"]
    better = _answers(_study(tmp_path, replace(SHORT, name="better", main_ratio=96, methods=(good, plain))))
    worse = _answers(_study(tmp_path, replace(SHORT, name="worse", main_ratio=96, methods=(bad, plain))))
    assert "seeds: better)" in better[2] and "seeds: worse)" in worse[2]
    none = _answers(_study(tmp_path, replace(SHORT, name="none", methods=(plain,))))
    gathered = replace(SHORT, name="gathered", main_ratio=12, methods=(replace(good, compressor="top_k"), plain))
    assert "with 3.97 times as much on a link" in _answers(_study(tmp_path, gathered))[2]
    assert "on a link" not in better[2]
    assert "has no rows of both" in none[2] and "no row of it" in none[3]


def test_answers_of_runs_that_are_missing_or_diverged(tmp_path: Path) -> None:
    seeds = range(1, 6)
    lost = frozenset({("cser_12", 1)})
    gone = frozenset({("local_sgd_12", seed) for seed in seeds} | {("ef_sgd_top_k_12", seed) for seed in seeds[1:]})
    answers = _answers(_study(tmp_path, replace(SHORT, name="odd", diverged=lost, missing=gone)))
    assert "1 has a diverged run: CSER" in answers[0] and "1 has no runs yet: Local SGD" in answers[0]
    assert "CSER [4 of 5] cannot be told, as 1 run of the two diverged" in answers[2]
    assert "M-CSER has no pairs of runs yet" in answers[2]
    assert "EF-SGD top-k [1 of 5] reaches" in answers[3]
    gone = frozenset(("sgd", seed) for seed in seeds)
    none = _answers(_study(tmp_path, replace(SHORT, name="no_baseline", missing=gone)))
    assert "no finished baseline yet" in none[0] and "Floor or baseline have no finished runs yet" in none[4]


def test_where_no_row_is_good_enough_the_answer_says_so(tmp_path: Path) -> None:
    bad = tuple(replace(method, loss=0.2) for method in SHORT.methods)
    answers = _answers(_study(tmp_path, replace(SHORT, name="bad", ratios=(96,), main_ratio=96, methods=bad)))
    assert "None of those tried is shown to lose less than the margin, with up to 13.5 models sent" in answers[1]


def test_a_rate_at_an_end_is_marked_in_every_table(regime: Built) -> None:
    study = study_of(read_records(regime.records))
    tables = [line for line in regime.markdown.splitlines() if line.startswith(("|", "> |"))]
    marked = [line for line in tables if "QSparse-local-SGD†" in line]
    assert len(marked) >= 8 and regime.markdown.count(AT_END) >= 8
    box = verdict_of(study, pairs_of(study), {})
    matrix = next(block for block in box.blocks if isinstance(block, Table))
    assert AT_END in matrix.notes and any("†" in cell.text for row in matrix.rows for cell in row)


def test_every_bound_is_in_every_table_of_rows(regime: Built) -> None:
    for title in ("Accuracy.", "Accuracy by seed and by worker.", "Equal bits.", "Bits.", "What tuning took."):
        table = regime.markdown.split(f": {title}**")[1].split("\n\n")[1]
        for name in ("SGD (ceiling)", "SGD accumulate (bound)", "Final average (bound)", "alone (floor)"):
            assert f"**{name}**" in table, (title, name)
        assert "models sent" in table and "true ratio" in table and "link models" in table


def test_tuning_points_know_their_candidate(regime: Built) -> None:
    main, tuning = read_records(regime.records), read_records(regime.records.parent / "regime_tuning")
    tuned = tuned_rows(main, tuning)
    assert {entry.num_candidates for entry in tuned} == {3} and {entry.num_trials for entry in tuned} == {12}
    for entry in tuned:
        assert entry.selected_point and entry.selected_point.candidate == 0
        assert entry.selected_point.planned == 2 and sum(point.planned == 1 for point in entry.points) == 9
    by_name = {entry.row: entry for entry in tuned}
    csea = by_name["csea_12"]
    assert csea.by_loss and csea.selected == 0.1 and csea.by_loss.learning_rate == 0.05
    trials = regime.markdown.split(": Every trial.**")[1].split("\n\n")[1].splitlines()[2:]
    assert len(trials) == 12 * len(tuned) and sum("chosen" in line for line in trials) == len(tuned)
    assert "|    12 |" in regime.markdown.split(": Best of k trials.**")[1].split("\n\n")[1].splitlines()[0]
    alone = {entry.row: entry for entry in tuned_alone(tuning)}
    assert alone["csea_12"].selected_point in [p for p in alone["csea_12"].points if p.planned == 2]


def test_both_rules_side_by_side(regime: Built, small: Built) -> None:
    study = study_of(read_records(regime.records))
    table = rules_table(study)
    assert table is not None and "The rules choose the same for 37 of 39 rows" in table.found
    rows = {(row[0].text, row[1].text): [cell.text for cell in row] for row in table.rows}
    accuracy = {f.records.row.row: f.records.accuracy for f in study.findings}
    other = next(r for r in study.records.rows if r.row.row == "csea_12~loss")
    mean = sum(other.accuracy[s] - accuracy["csea_12"][s] for s in other.accuracy) / len(other.accuracy)
    assert rows["CSEA", "12"][-2] == f"{100 * mean:+.2f}".replace("-", "−")
    assert rows["CSEA", "96"][-5] == "the same choice"
    assert rules_table(study_of(read_records(small.records))) is None


def test_questions_point_at_rows_that_are_there(regime: Built, small: Built) -> None:
    def answered(markdown: str, number: int) -> str:
        lines = markdown.split(": Questions and exhibits.**")[1].splitlines()
        return next(line for line in lines if line.startswith(f"| {number:>5} |")).split("|")[3].strip()

    assert "Table" in answered(regime.markdown, 11) and "Table" in answered(regime.markdown, 21)
    assert "Table" in answered(regime.markdown, 12) and "Table" in answered(regime.markdown, 17)
    assert answered(small.markdown, 21) == "not in this experiment"


def test_a_report_without_tuning_records_still_marks_rates_at_an_end(tmp_path: Path) -> None:
    make_experiment(tmp_path / "lone", replace(SHORT, name="lone"))
    text = build_report(tmp_path / "lone", output=tmp_path / "report").read_text()
    assert "No tuning records are at hand" in text and "QSparse-local-SGD†" in text
    make_tuning(tmp_path / "lone_tuning", replace(SHORT, name="lone"))
    assert "Every trial" in build_report(tmp_path / "lone", output=tmp_path / "report").read_text()
