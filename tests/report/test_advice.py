"""Advice for one's own job: steps by hand and against the study, losses at lengths that the map did not see."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.records.timings import Message
from report.accuracy.findings import study_of
from report.accuracy.records import Records, read_records
from report.accuracy.regime import Regime, regime_of
from report.advice.__main__ import MAP, main
from report.advice.advise import Advice, advise
from report.advice.job import TrainingJob
from report.advice.loss import expected_loss
from report.advice.steps import Sending, Sent, ddp_seconds, method_seconds, sent_by
from report.speed.fitting import layout_of
from report.speed.records import read_speed_records
from report.speed.study import bits_inside
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
    every_fourth = Sent((Sending(1.0, 0.25, "all_reduce"),), at_end=0)
    assert method_seconds(job, every_fourth) == pytest.approx(30e-3 + in_ring / 4)
    assert method_seconds(job, Sent((Sending(0.5, 1.0, "all_gather"),), 0)) == pytest.approx(30e-3 + gathered)
    assert ddp_seconds(job, 4) == pytest.approx(30e-3 + in_ring)  # one bucket holds it all
    # Two messages of a model to neighbours on a ring, or one to a peer: one hop, and as many models on the link.
    on_a_ring, to_a_peer = Sending(2.0, 1.0, "exchange"), Sending(1.0, 1.0, "exchange", one_peer=True)
    assert method_seconds(job, Sent((on_a_ring,), 1)) == pytest.approx(30e-3 + 1e-3 + 2 * 4e6 * 8 / 1e9)
    assert method_seconds(job, Sent((to_a_peer,), 1)) == pytest.approx(30e-3 + 1e-3 + 4e6 * 8 / 1e9)


def test_models_sent_are_those_of_the_plan(records: Records) -> None:
    rows = [rows for rows in records.main_rows if rows.row.algorithm in ("csea", "local_sgd") and rows.row.ratio == 96]
    for each in rows:
        sent = sent_by(each)
        assert sent and sent.models(each.row.num_steps) == pytest.approx(each.row.models_sent, rel=1e-3)


def sending_of(message: Message, num_parameters: int) -> Sending:
    models = message.payload_bytes / (4 * num_parameters)
    return Sending(models, 1 / message.every, message.collective, len(message.rounds) > 1)


def test_steps_are_those_of_the_study_by_the_clock() -> None:
    """ResNet-50 on a V100: what follows the backward pass, and DDP's buckets, on every network that was timed."""
    benches = speed_study_of(read_speed_records(SPEEDUPS)).benches
    [bench] = [bench for bench in benches if bench.workload.name == "resnet50_v100"]
    size = bench.workload.num_parameters
    compute = bench.workload.forward_seconds + bench.workload.backward_seconds
    errors = {}
    for point in bench.points:
        fabric, method = point.timing.fabric, point.method
        bits, inside = fabric.stands_for_bits_per_second, bits_inside(fabric)
        if bits is None or (method.overlap and method.name not in ("ddp", "ddp_fp16")):
            continue
        latency = bench.hop_seconds(point.timing) or 0.0
        machines, each = layout_of(fabric)
        job = TrainingJob(size, 1, machines, each, compute, bits, inside or 0.0, latency)
        own = Sent(tuple(sending_of(message, size) for message in method.messages), 0)
        seconds = (
            ddp_seconds(job, 2 if method.name == "ddp_fp16" else 4) if method.overlap else method_seconds(job, own)
        )
        # On machines of several workers the study had a flat ring, and the advice goes by hierarchy. Whole models to
        # neighbours took twice as long as their bytes need, which is the lab's backend and no job's network.
        if each == 1 and method.algorithm != "dpsgd":
            errors[bench.name_of(point.timing), method.name] = abs(seconds / point.timed.seconds - 1)
    assert len(errors) >= 30 and sum(error <= 0.1 for error in errors.values()) >= 0.9 * len(errors)
    assert max(errors.values()) < 0.25, {key: error for key, error in errors.items() if error > 0.1}


@pytest.fixture(scope="module")
def shipped() -> Regime:
    return regime(read_records(MAP))


def test_shipped_rows_of_a_length_left_out_lie_in_the_interval(
    shipped: Regime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long experiment: a length in the middle predicted from the others, as for a job of such a length."""
    monkeypatch.setattr("report.advice.loss.NUM_DRAWS", 4)
    length = shipped.telling[1]
    points = tuple(point for point in shipped.points if point.length is not length)
    known = Regime(tuple(each for each in shipped.lengths if each is not length), points, shipped.margin)
    inside = []
    for point in shipped.points:
        if point.length is length and point.lost is not None and point.method in known.methods:
            loss = expected_loss(known, point.method, point.models, length.num_steps, "models sent")
            inside += [loss.low <= point.lost <= loss.high] if loss else []
    assert len(inside) >= 15 and sum(inside) >= 0.8 * len(inside), (sum(inside), len(inside))


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
        ("--parameters 1M --workers 2.5 --bandwidth 10Gb/s", "2.5 workers: that is no whole number"),
        ("--parameters 1M --workers 8", "--bandwidth is missing; give it, as --bandwidth 10Gb/s"),
        ("--workers 8 --bandwidth 10Gb/s", "--parameters is missing"),
        ("--parameters 1M --cluster nowhere", "there is no cluster profile"),
        ("--parameters 1M --cluster template --workers 3 --bandwidth 1Gb/s", "(8x1) disagree"),
        ("--parameters 1M --cluster template:3x9", "has no variant '3x9'; it has 2x4"),
        ("--parameters 1M --cluster template", "--bandwidth is missing"),
        ("--parameters 1M --layout 2by4 --bandwidth 10Gb/s", "is no layout"),
        ("--parameters 1M --workers 8 --bandwidth 0", "'0' is no number above 0"),
        ("--parameters 1M --workers 8 --bandwidth 10Gb/s --map nowhere", "there is no folder nowhere"),
    ],
)
def test_mistakes_are_one_sentence(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "--steps", "1000", "--compute-ms", "27"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
