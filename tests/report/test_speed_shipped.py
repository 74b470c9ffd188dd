"""The cost model against the records that ship with the project."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from harness.speed.methods import METHODS
from report.speed.records import read_speed_records
from report.speed.study import SpeedStudy, codec_bytes, study_of
from report.speed.tables_agreement import AIM, agreement_sentence

HEADER_BYTES = 14 + 20 + 20 + 12
"""Ethernet, IPv4, TCP and its timestamps."""
SHIPPED = Path(__file__).parents[2] / "results/speedups"


@pytest.fixture(scope="module")
def study() -> SpeedStudy:
    return study_of(read_speed_records(SHIPPED))


def test_nearly_all_predictions_are_within_the_aim(study: SpeedStudy) -> None:
    errors = sorted(abs(point.error) for point in study.points if point.error is not None)
    assert len(errors) > 80
    assert sum(error <= AIM for error in errors) > 0.9 * len(errors) and median(errors) < 0.03


def test_counters_agree_with_the_formula_but_for_headers(study: SpeedStudy) -> None:
    shares = [
        (point.wire_bytes - HEADER_BYTES * point.wire_frames) / point.formula_bytes
        for sweep in study.records.sweeps
        for point in sweep.points
        if point.wire_bytes and point.wire_frames and point.payload_bytes >= 1_000_000
    ]
    assert len(shares) > 10
    assert max(abs(share - 1) for share in shares) < 0.03


def test_curves_go_through_what_is_predicted_of_their_points(study: SpeedStudy) -> None:
    for bench in study.benches:
        for point in bench.points:
            fabric = point.timing.fabric
            if fabric.num_machines == bench.main.fabric.num_machines:
                assert fabric.stands_for_bits_per_second
                on_curve = bench.clock_seconds(point.method, fabric.stands_for_bits_per_second)
                assert on_curve == pytest.approx(point.predicted, rel=1e-6)


def test_the_shipped_report_is_of_the_shipped_records(study: SpeedStudy) -> None:
    assert agreement_sentence(study.points) in (SHIPPED / "report.md").read_text()


def test_what_every_method_moves_is_stated(study: SpeedStudy) -> None:
    assert codec_bytes().keys() == METHODS.keys()
    bench = next(bench for bench in study.benches if bench.emulated_device)
    with pytest.raises(ValueError, match="no codec_bytes of ddp_of_tomorrow"):
        bench.codec_seconds(bench.methods[0].model_copy(update={"name": "ddp_of_tomorrow"}))
