"""The cost model against the records that ship with the project."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from report.speed.records import STUDY, read_speed_records
from report.speed.study import SpeedStudy, study_of
from report.speed.tables_agreement import AIM, agreement_sentence

SHIPPED = Path(__file__).parents[2] / "results/speedups"


@pytest.fixture(scope="module")
def study() -> SpeedStudy:
    if not (SHIPPED / STUDY).exists():
        pytest.skip(f"{SHIPPED} holds no study yet")
    return study_of(read_speed_records(SHIPPED))


def test_most_predictions_are_within_the_aim(study: SpeedStudy) -> None:
    errors = [abs(point.error) for point in study.points if point.error is not None]
    assert len(errors) > 20 and median(errors) <= AIM


def test_the_shipped_report_is_of_the_shipped_records(study: SpeedStudy) -> None:
    assert agreement_sentence(study.points) in (SHIPPED / "report.md").read_text()
