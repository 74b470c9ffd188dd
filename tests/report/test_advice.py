"""Advice for one's own job: steps by hand and against the study, losses at lengths that the map did not see."""

from __future__ import annotations

from pathlib import Path

import pytest

from report.accuracy.findings import study_of
from report.accuracy.records import Records
from report.accuracy.regime import Regime, regime_of
from report.advice.__main__ import main
from report.advice.advise import Advice, advise
from report.advice.job import TrainingJob
from report.advice.loss import expected_loss
from report.advice.steps import Sending, Sent, ddp_seconds, method_seconds, sent_by
from report.speed.records import read_speed_records
from report.speed.study import study_of as speed_study_of
from tests.report.made_up_regime import PARAMETERS, Map, records_of, write_records

SPEEDUPS = Path(__file__).parents[2] / "results/speedups"
RESNET50 = TrainingJob(25_600_000, 450_000, 8, 1, 27e-3, 10e9)
GOOD = "CSEA"


def lost(method: str, models: float, steps: int, ratio: float) -> float:
    """One method that loses little, and others that lose much."""
    return 1 / (1 + (models / (3 if method == GOOD else 3_000)) ** 1.3)


@pytest.fixture(scope="module")
def records() -> Records:
    return records_of(Map(lost))


def regime(records: Records) -> Regime:
    found = regime_of(study_of(records))
    assert found
    return found


def advice(records: Records, job: TrainingJob) -> Advice:
    return advise(job, regime(records), records.main_rows, PARAMETERS)


def test_a_step_is_the_passes_and_the_messages_by_hand() -> None:
    job = TrainingJob(1_000_000, 100, 4, 1, 30e-3, 1e9, latency_seconds=1e-3)
    in_ring = 2 * 3 * (1e-3 + 4e6 / 4 * 8 / 1e9)
    gathered = 3 * (1e-3 + 0.5 * 4e6 * 8 / 1e9)
    every_fourth = Sent((Sending(1.0, 0.25, gathered=False),), at_end=0)
    assert method_seconds(job, every_fourth) == pytest.approx(30e-3 + in_ring / 4)
    assert method_seconds(job, Sent((Sending(0.5, 1.0, gathered=True),), 0)) == pytest.approx(30e-3 + gathered)
    assert ddp_seconds(job, 4) == pytest.approx(30e-3 + in_ring)  # one bucket holds it all


def test_models_sent_are_those_of_the_plan(records: Records) -> None:
    rows = [rows for rows in records.main_rows if rows.row.algorithm in ("csea", "local_sgd") and rows.row.ratio == 96]
    for each in rows:
        sent = sent_by(each)
        assert sent and sent.models(each.row.num_steps) == pytest.approx(each.row.models_sent, rel=1e-3)


def test_steps_are_those_of_the_study_where_it_has_them() -> None:
    """ResNet-50 on a V100 at 10 Gb/s: DDP within 15 % of the study's own fitted model."""
    (bench,) = (
        bench
        for bench in speed_study_of(read_speed_records(SPEEDUPS)).benches
        if bench.workload.name == "resnet50_v100"
    )
    compute = bench.workload.forward_seconds + bench.workload.backward_seconds
    job = TrainingJob(bench.workload.num_parameters, 1, 8, 1, compute, 10e9)
    for name, size in (("ddp", 4), ("ddp_fp16", 2)):
        method = bench.method(name)
        assert method and ddp_seconds(job, size) == pytest.approx(bench.seconds_at(method, 10e9), rel=0.15)


@pytest.mark.parametrize(
    ("unseen", "predictor"), [(75, "models sent"), (25, "models sent"), (7, "models sent"), (25, "steps and ratio")]
)
def test_rows_of_a_length_that_the_map_did_not_see_lie_in_the_interval(unseen: int, predictor: str) -> None:
    seeds = {150: (1, 2, 3, 4, 5), 75: (1, 2), 25: (1, 2), 7: (1, 2)}
    points = [p for p in regime(records_of(Map(lost, seeds))).points if p.length.num_steps == unseen * 187]
    known = regime(records_of(Map(lost, {epochs: each for epochs, each in seeds.items() if epochs != unseen})))
    found = [
        (expected_loss(known, p.method, p.models, p.length.num_steps, predictor), p.lost)
        for p in points
        if p.method in known.methods
    ]
    inside = [loss.low <= share <= loss.high for loss, share in found if loss and share is not None]
    assert len(inside) >= 20 and sum(inside) >= 0.9 * len(inside)


def test_a_slow_link_asks_for_the_method_that_loses_little(records: Records) -> None:
    said = advice(records, RESNET50)
    assert said.sentence.startswith(f"Use {GOOD} at ratio ")
    best = min(line.step_seconds for line in said.lines)
    assert best < min(line.step_seconds for line in said.lines if line.method.startswith("DDP")) / 2


def test_a_fast_link_asks_for_ddp(records: Records) -> None:
    said = advice(records, TrainingJob(25_600_000, 450_000, 8, 1, 27e-3, 400e9, latency_seconds=5e-6))
    assert said.sentence.startswith("Use plain DDP")


def test_a_job_far_beyond_the_runs_is_marked(records: Records) -> None:
    said = advice(records, TrainingJob(25_600_000, 100_000_000, 8, 1, 27e-3, 10e9))
    assert all(line.loss is None or line.loss.beyond > 3 for line in said.lines if line.method == GOOD)
    assert "times beyond what was run" in said.sentence


def test_the_command_prints_a_sentence_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(Map(lost), tmp_path / "map")
    words = "--parameters 25.6M --steps 450000 --layout 2x4 --compute-ms 27 --bandwidth 10Gb/s --map"
    assert main([*words.split(), str(tmp_path / "map")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Use ") and "DDP, fp32" in printed and "was not" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--parameters many --workers 8 --bandwidth 10Gb/s", "'many' is no number above 0"),
        ("--parameters 1M --bandwidth 10Gb/s", "how many workers?"),
        ("--parameters 1M --workers 8 --layout 2x3 --bandwidth 10Gb/s", "disagree"),
        ("--parameters 1M --workers 1 --bandwidth 10Gb/s", "one worker sends nothing"),
        ("--parameters 1M --layout 2by4 --bandwidth 10Gb/s", "is no layout"),
        ("--parameters 1M --workers 8 --bandwidth 0", "'0' is no number above 0"),
        ("--parameters 1M --workers 8 --bandwidth 10Gb/s --map nowhere", "there is no folder nowhere"),
    ],
)
def test_mistakes_are_one_sentence(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "--steps", "1000", "--compute-ms", "27"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
