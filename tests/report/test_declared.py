"""What reports say of when contrasts were declared: counts against raw records, verdicts and
words."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cser_bench.harness.measures.declared import begun_in_words
from cser_bench.harness.records.experiment import Contrast
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.report.accuracy_report import build_report
from cser_bench.report.declared import begun_when_declared
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.statistics import VERDICTS, contrasts_frame

RESULTS = Path(__file__).parents[2] / "results"
PLANS = {
    folder: json.loads((folder / "experiment.json").read_text())
    for folder in shipped_experiments()
}
DECLARED = {folder: plan for folder, plan in PLANS.items() if plan.get("contrasts")}
SMALL = RESULTS / "reference" / "cmudict"

LATE = "no verdict, declared after its runs"
PAIRS = [
    ("mcser-8", "sgd"),
    ("ef_topk-8", "sgd"),
    ("powersgd-8", "sgd"),
    ("local_sgd-8", "sgd"),
]


@pytest.fixture(scope="module")
def small() -> Frames:
    return read_frames(SMALL)


def first_start(frames: Frames, row: str, number: int = 0) -> str:
    """When the run of this number in the order of their begins began."""
    is_of_row = frames.runs["row"] == row
    runs = frames.runs.loc[is_of_row, "run_id"]
    starts = frames.attempts.groupby("run_id")["started_at"].min()
    in_order = starts[runs].sort_values()
    return str(in_order.iloc[number])


def declaring(frames: Frames, *contrasts: dict[str, Any]) -> Frames:
    """The frames with these contrasts instead; each asks whether less than a margin is lost."""
    common = {"kind": "non-inferiority", "question": "Is less lost?", "margin": 0.02}
    made = [Contrast(**(common | contrast)) for contrast in contrasts]
    experiment = frames.experiment.model_copy(update={"contrasts": made})
    return replace(frames, experiment=experiment)


def pair(number: int, **dates: Any) -> dict[str, Any]:
    """A contrast of the experiment, with these dates."""
    row, reference = PAIRS[number]
    return {"row": row, "reference": reference} | dates


BEFORE_ALL = "2020-01-01T00:00:00+00:00"
AFTER_ALL = "2027-01-01T00:00:00+00:00"
LATER_YET = "2028-01-01T00:00:00+00:00"


def test_words_say_how_many_runs_had_begun(small: Frames) -> None:
    """Three runs of each method, twelve of SGD. A run that begins in the same second was not
    seen."""
    last = first_start(small, "mcser-8", 2)
    first_of_both = [first_start(small, row) for row in ("mcser-8", "sgd")]
    before_all = min(first_of_both)
    starts = small.attempts.groupby("run_id")["started_at"].min()
    runs_of_sgd = small.runs.loc[small.runs["row"] == "sgd", "run_id"]
    of_sgd = starts[runs_of_sgd]
    frames = declaring(
        small,
        pair(0, declared_at=before_all),
        pair(0, declared_at=last),
        pair(0, declared_at=AFTER_ALL),
        pair(0),
    )
    words = contrasts_frame(frames)["declared"].tolist()
    seen = 2 + int((of_sgd < last).sum())
    assert 2 < seen < 14
    assert words == [
        "before its runs",
        f"after {seen} of 15 runs",
        "after 15 of 15 runs",
        "not known",
    ]


def test_what_one_row_alone_had_is_told_and_judged(small: Frames) -> None:
    runs_of_sgd = small.runs.loc[small.runs["row"] == "sgd", "run_id"]
    is_of_sgd = small.attempts["run_id"].isin(runs_of_sgd)
    later = small.attempts.copy()
    later.loc[is_of_sgd, "started_at"] = LATER_YET
    frames = replace(small, attempts=later)
    declared = declaring(frames, pair(0, declared_at=AFTER_ALL))
    (line,) = contrasts_frame(declared).to_dict("records")
    assert line["declared"] == "after 3 of 15 runs, one row's"
    assert line["verdict"] != LATE


def test_a_late_contrast_has_an_interval_no_verdict_and_no_part_in_the_correction(
    small: Frames,
) -> None:
    early = [pair(0, declared_at=BEFORE_ALL), pair(1, declared_at=BEFORE_ALL)]
    late = {
        "row": PAIRS[1][0],
        "reference": PAIRS[0][0],
        "kind": "superiority",
        "declared_at": AFTER_ALL,
    }
    with_late = contrasts_frame(declaring(small, *early, late))
    without = contrasts_frame(declaring(small, *early))
    verdicts = with_late["verdict"].tolist()
    assert verdicts == [*without["verdict"], LATE]
    assert LATE in VERDICTS
    pd.testing.assert_frame_equal(with_late.iloc[:2], without)
    line = with_late.iloc[2]
    assert math.isfinite(line["low"])
    assert math.isfinite(line["high"])
    assert math.isnan(line["p_holm"])
    alone = contrasts_frame(declaring(small, late))
    assert alone["verdict"].tolist() == [LATE]
    assert alone["estimate"].iloc[0] == line["estimate"]


def test_a_verdict_that_is_kept_or_of_unknown_date_is_as_if_it_were_early(
    small: Frames,
) -> None:
    every = [pair(number) for number in range(4)]
    plain = contrasts_frame(declaring(small, *every))
    kept_later = {
        "declared_at": AFTER_ALL,
        "declared_in": "0" * 40,
        "is_verdict_kept": True,
    }
    each_kept = [each | kept_later for each in every]
    kept = contrasts_frame(declaring(small, *each_kept))
    assert kept["verdict"].tolist() == plain["verdict"].tolist()
    assert LATE not in set(kept["verdict"])
    assert kept["p_holm"].tolist() == plain["p_holm"].tolist()
    assert set(kept["declared"]) == {"after 15 of 15 runs"}
    assert set(plain["declared"]) == {"not known"}


def test_a_report_says_it_beside_each_verdict(small: Frames, tmp_path: Path) -> None:
    three = [
        pair(0, declared_at=BEFORE_ALL),
        pair(1, declared_at=AFTER_ALL),
        pair(2, declared_at=AFTER_ALL, is_verdict_kept=True),
    ]
    num_unchanged = len(small.attempts) - 2
    differences = ["0" * 64, "0" * 64, *[None] * num_unchanged]
    changed = small.attempts.assign(git_diff_sha256=differences)
    frames = replace(declaring(small, *three), attempts=changed)
    page = build_report(frames, tmp_path, with_pdf=False).read_text()
    _, _, after_heading = page.partition("## Comparisons")
    compared, _, _ = after_heading.partition("\n## ")
    answers = [line for line in compared.splitlines() if line.startswith("| ")][2:]
    are_late = [line.startswith("| post hoc, not tested |") for line in answers]
    assert are_late == [False, True, False]
    _, _, after_heading = page.partition("### Tests")
    tests, _, _ = after_heading.partition("\n\n###")
    table = [line for line in tests.splitlines() if line.startswith("| ")]
    lines_of_rows = table[2:]
    last_cells = [line.split(" | ")[-1] for line in lines_of_rows]
    assert last_cells == [
        "pre-registered |",
        "post hoc, 15 of 15 runs begun |",
        "post hoc, 15 of 15 runs begun |",
    ]
    assert "they were published before this distinction was made" in tests
    counted = f"{len(changed)} attempts at these runs, 2 with uncommitted changes"
    assert f"{counted} to the code" in page


def seen_in(folder: Path, contrast: dict[str, Any]) -> tuple[int, int, int]:
    """Begun and planned runs of a shipped contrast, and rows with a begun one, from the text of its
    records."""
    _, *lines = (folder / "runs.jsonl").read_text().splitlines()
    starts = {}
    for line in lines:
        run = json.loads(line)
        attempts = run["run"]["attempts"]
        times = [each["started_at"] for each in attempts]
        starts[run["run_id"]] = min(times)
    rows = {}
    for row in PLANS[folder]["rows"]:
        rows[row["row"]] = set(row["runs"].values())
    declared_at = contrast["declared_at"]
    begun = 0
    planned = 0
    rows_begun = 0
    for name in (contrast["row"], contrast["reference"]):
        runs = rows[name]
        begun_of_row = sum(starts[run] < declared_at for run in runs)
        begun += begun_of_row
        planned += len(runs)
        rows_begun += begun_of_row > 0
    return begun, planned, rows_begun


@pytest.mark.whole
def test_the_contrasts_that_ship_by_how_many_rows_had_begun() -> None:
    """Those of which both had keep their verdicts, and no others need to."""
    num_rows = {0: 0, 1: 0, 2: 0}
    for folder, plan in DECLARED.items():
        all_seen = begun_when_declared(read_frames(folder))
        for contrast, seen in zip(plan["contrasts"], all_seen, strict=True):
            begun, planned, rows = seen_in(folder, contrast)
            expected = f"after {begun} of {planned} runs"
            if rows == 0:
                expected = "before its runs"
            if rows == 1:
                expected += ", one row's"
            assert begun_in_words(seen) == expected
            assert contrast.get("is_verdict_kept", False) == (rows == 2)
            num_rows[rows] += 1
    assert num_rows == {0: 101, 1: 73, 2: 28}
