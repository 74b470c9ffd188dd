"""A report's methods in their order with efficiencies, drops with their sign, and predictions judged."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cser_bench.harness.records.experiment import Prediction
from cser_bench.report import efficiency
from cser_bench.report.accuracy_report import build_report
from cser_bench.report.build import summary
from cser_bench.report.efficiency import efficiency_frame
from cser_bench.report.efficiency_section import (
    EfficiencySection,
    beside,
    efficiency_cell,
    efficiency_section,
)
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.ranking import Ranking, ranking_of, terminal_text
from cser_bench.report.statistics import accuracy_frame
from tests.harness.support import ROOT

SHIPPED = ROOT / "results"
AGAIN = "python -m harness report results/reference/first_look"


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Frames:
    """An experiment whose baseline has four lengths, as if so few and far apart were enough."""
    for name, enough in (
        ("LEAST_LENGTHS", 4),
        ("MOST_APART", 2.1),
        ("MOST_FROM_TUNED", 3),
        ("WIDEST", 4),
    ):
        monkeypatch.setattr(efficiency, name, enough)
    frames = read_frames(SHIPPED / "reference" / "gap_text_longer")
    # Its own place is the longest run of the middle network.
    rows = [
        row.model_copy(
            update={"base": None if row.row.endswith("@w32-s3844") else "adamw"}
        )
        for row in frames.experiment.rows
    ]
    experiment = frames.experiment.model_copy(
        update={"rows": rows, "baseline": "adamw@w32-s3844", "floor": None}
    )
    base = frames.rows["base"].where(
        ~frames.rows["row"].str.endswith("@w32-s3844"), None
    )
    is_baseline = frames.rows["row"].str.startswith("adamw")
    base = base.mask(
        is_baseline & (frames.rows["row"] != "adamw@w32-s3844"), "adamw@w32-s3844"
    )
    is_like_adamw = frames.rows["row"].isin(["local-8", "cser-8", "alone"])
    own_base = base.mask(is_like_adamw, "adamw")
    rows = frames.rows.assign(base=own_base)
    return replace(frames, experiment=experiment, rows=rows)


def ranking(frames: Frames) -> Ranking:
    return ranking_of(frames, accuracy_frame(frames), efficiency_frame(frames))


def section_of(frames: Frames) -> EfficiencySection:
    section = efficiency_section(
        frames, accuracy_frame(frames), efficiency_frame(frames)
    )
    assert section is not None
    return section


def test_methods_stand_in_the_order_of_their_scores_with_what_they_send(
    frames: Frames,
) -> None:
    methods = ranking(frames).methods
    assert methods["label"].tolist()[:3] == [
        "AdamW",
        "local AdamW",
        "CSER with AdamW, blocks",
    ]
    settings = [words.partition(", lr")[0] for words in methods["setting"][:3]]
    assert settings[1:] == ["H 8", "R2 16, R1 2, H 8"]
    assert settings[0].startswith("lr ")
    traffic = methods["traffic"].tolist()[:3]
    assert traffic == pytest.approx([1, 1 / 8, 1 / 8], rel=0.02)
    assert methods["by_loss"].iloc[0] == "1", "the baseline's own, by definition"


def test_a_drop_is_positive_where_a_method_is_worse(frames: Frames) -> None:
    methods = ranking(frames).methods
    baseline = -frames.done("adamw@w32-s3844").mean()
    assert methods["drop"].iloc[0] == "–", "the baseline has none"
    for line in methods.iloc[1:3].to_dict("records"):
        drop, low, high = (
            float(word)
            for word in line["drop"].translate({ord(c): None for c in "()"}).split()
            if word != "to"
        )
        assert drop == pytest.approx(
            float(line["mean"].split()[0]) - baseline, abs=2e-4
        )
        assert drop > 0
        assert low < drop < high


def test_the_terminal_has_the_table_of_the_report(
    frames: Frames, tmp_path: Path
) -> None:
    printed = terminal_text(frames)
    assert printed is not None
    report = build_report(frames, tmp_path, with_pdf=False).read_text()
    first = report.partition("\n\n*Best mean first")[0]
    assert "efficiency by test loss" in first
    for line in printed.splitlines()[2:5]:
        cells = re.split(r"\s{2,}", line.strip())
        for cell in cells[1:]:
            assert cell in first, cells


def test_an_experiment_without_efficiencies_prints_no_table() -> None:
    assert terminal_text(read_frames(SHIPPED / "study_tail")) is None


@pytest.mark.parametrize(
    ("widths", "verdict"), [(0, "as predicted"), (1, "inconclusive"), (5, "fails")]
)
def test_a_report_judges_a_prediction(
    frames: Frames, widths: int, verdict: str
) -> None:
    """By a tolerance of the interval's wider side; the prediction is so many of it away."""
    line = efficiency_frame(frames).query("row == 'cser-8@w32-s3844'").iloc[0]
    assert line["kind"] == "estimate"
    widest = math.log(
        max(line["high"] / line["efficiency"], line["efficiency"] / line["low"])
    )
    predicted = Prediction(
        row="cser-8@w32-s3844",
        efficiency=line["efficiency"] * math.exp(widths * widest),
        tolerance=widest,
        source="made up",
    )
    with_prediction = {"predictions": [predicted]}
    experiment = frames.experiment.model_copy(update=with_prediction)
    table = section_of(replace(frames, experiment=experiment)).predictions
    assert table["verdict"].tolist() == [verdict]
    assert table["found"].tolist() == [efficiency_cell(line)]


def test_an_efficiency_is_written_with_its_interval_or_its_reason() -> None:
    estimate = {"kind": "estimate", "efficiency": 0.634, "low": 0.551, "high": 0.709}
    assert efficiency_cell(estimate) == "0.63 (0.55 to 0.71)"
    assert efficiency_cell({"kind": "at most", "efficiency": 0.2}) == "at most 0.20"
    assert (
        efficiency_cell({"kind": "none", "reason": "too few runs"})
        == "– (too few runs)"
    )


def test_a_curve_is_found_beside_an_experiment_or_where_records_ship(
    tmp_path: Path,
) -> None:
    regime = read_frames(SHIPPED / "reference" / "resnet_regime")
    assert beside(regime, "gap_images") == SHIPPED / "reference" / "gap_images"
    elsewhere = replace(regime, folder=tmp_path / "resnet_regime")
    assert beside(elsewhere, "gap_images") is None


def test_the_first_page_shows_what_make_reproduce_prints() -> None:
    """The lines that README has after the command are the summary of the records that ship."""
    printed = summary(SHIPPED / "reference" / "first_look")
    assert printed is not None
    lines = [f"    {line}".rstrip() for line in printed.splitlines()]
    indented = "\n".join(lines)
    assert indented in (ROOT / "README.md").read_text(), f"print it by: {AGAIN}"
