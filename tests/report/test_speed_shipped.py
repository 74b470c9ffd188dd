"""The cost model against the records that ship with the project."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from statistics import median

import pytest

from harness.timing.methods import METHODS
from report.speed.records import read_speed_records
from report.speed.study import SpeedStudy, codec_bytes, study_of
from report.speed.tables_agreement import agreement_sentence
from report.speed.tables_codecs import codec_note
from report.speed.units import milliseconds

HEADER_BYTES = 14 + 20 + 20 + 12
"""Ethernet, IPv4, TCP and its timestamps."""
SHIPPED = Path(__file__).parents[2] / "results/speedups"


@pytest.fixture(scope="module")
def study() -> SpeedStudy:
    return study_of(read_speed_records(SHIPPED))


def _lines() -> list[dict[str, str]]:
    return list(csv.DictReader((SHIPPED / "csv/step_times.csv").open()))


def test_communication_is_predicted_as_well_as_the_report_says(study: SpeedStudy) -> None:
    """From the CSV and the workloads' passes alone; all steps are emulated, so their codec is left out."""
    passes = {
        each["name"]: each["forward_seconds"] + each["backward_seconds"]
        for path in SHIPPED.glob("timing-*.json")
        for each in [json.loads(path.read_text())["workload"]]
    }
    errors, large, without = [], [], 0
    for line in _lines():
        own = float(line["seconds"]) - float(line["compute_seconds"])
        predicted = float(line["predicted_seconds"]) - passes[line["workload"]]
        if own <= 1e-6 * float(line["seconds"]):  # The clock had no communication, so that the null model is right.
            without += 1
            errors.append(0.0 if predicted <= 1e-6 * float(line["seconds"]) else math.inf)
            continue
        error = predicted / own - 1
        errors.append(abs(error))
        if own > 0.1 * float(line["compute_seconds"]):
            large.append(abs(error))
    near, near_of_large = (sum(error <= 0.1 for error in each) for each in (errors, large))
    said = (
        f"in {near} of {len(errors)} timed steps, that of a null model that predicts none in {without}; where it takes "
        f"over 10 % of the compute, in {near_of_large} of {len(large)} against 0"
    )
    assert said in (SHIPPED / "report.md").read_text()
    assert median(large) < 0.1 and near_of_large > 0.5 * len(large)


def _is_first_at_10_gigabit(line: dict[str, str]) -> bool:
    dilation = float(line["dilation"])
    return dilation == 64 and float(line["bits_per_second"]) * dilation == 10e9


def test_what_is_said_of_large_ratios_is_what_was_timed() -> None:
    timing = json.loads((SHIPPED / "timing-resnet50_v100-8x1-10000mbps.json").read_text())
    large = [method["name"] for method in timing["methods"] if method["ratio"] >= 64]
    seconds = {
        line["method"]: float(line["seconds"])
        for line in _lines()
        if line["workload"] == "resnet50_v100" and line["machines"] == "8" and _is_first_at_10_gigabit(line)
    }
    times = [seconds[name] for name in large]
    gains = [seconds["ddp"] / time for time in (max(times), min(times))]
    said = (
        f"resnet50_v100 at 10 Gb/s: all {len(large)} methods of ratio 64 and more are {gains[0]:.2f}x to "
        f"{gains[1]:.2f}x as fast as DDP in fp32, and the fastest of them is {max(times) / min(times):.2f}x as fast as "
        "the slowest"
    )
    assert said in (SHIPPED / "report.md").read_text()


def test_the_verdict_is_of_short_sentences_of_one_ratio_each() -> None:
    verdict = (SHIPPED / "report.md").read_text().split("## Verdict")[1].split("\n## ")[0]
    bullets = [line.removeprefix("> - ") for line in verdict.splitlines() if line.startswith("> - ")]
    assert 8 <= len(bullets) <= 16 and "|" not in verdict
    for said in bullets:
        assert len(re.findall(r"[.] [A-Z]", said)) == 0 and len(set(re.findall(r"ratio (\d+)", said))) <= 1, said
        assert len(said) < 330, said


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
            bits = point.timing.fabric.stands_for_bits_per_second
            if any(point.timing is timing for timing in bench.curve):
                assert bits
                on_curve = bench.clock_seconds(point.method, bits)
                assert on_curve == pytest.approx(point.predicted, rel=1e-6)


def test_the_shipped_report_is_of_the_shipped_records(study: SpeedStudy) -> None:
    assert agreement_sentence(study.points) in (SHIPPED / "report.md").read_text()


def test_what_every_method_moves_is_stated(study: SpeedStudy) -> None:
    assert codec_bytes().keys() == METHODS.keys()
    bench = next(bench for bench in study.benches if bench.emulated_device)
    with pytest.raises(ValueError, match="no codec_bytes of ddp_of_tomorrow"):
        bench.codec_seconds(bench.methods[0].model_copy(update={"name": "ddp_of_tomorrow"}))


def test_the_codecs_three_times_are_those_of_the_records(study: SpeedStudy) -> None:
    bench = study.benches[0]
    alone = [each.codec_alone_seconds or 0.0 for t in bench.timings for each in t.methods if each.name == "mcser"]
    [in_steps] = [p.timed.codec for p in bench.points if p.timing is bench.main and p.method.name == "mcser"]
    modelled = 20 * bench.workload.num_parameters / 900e9
    note = codec_note(bench)
    for seconds in (in_steps, median(alone), modelled):
        assert f"{milliseconds(seconds)} ms" in note
    assert "8 workers share 2 cores" in note and note in (SHIPPED / "report.md").read_text()
