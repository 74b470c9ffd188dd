"""The report of a study of made-up timings: files, joins, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness.records.timings import Timing
from report.__main__ import main
from report.accuracy.records import read_records
from report.kit.document import Table
from report.speed.build import speed_document
from report.speed.records import read_speed_records
from report.speed.study import study_of
from report.speed.tables_neighbours import relatives_table
from report.speed.to_target import benches_for, rows_for
from report.speed.units import milliseconds
from report.synthetic import METHODS as ROWS
from report.synthetic import Design, make_experiment
from tests.report.made_up_timings import (
    BACKWARD,
    CODEC,
    DEVICES,
    FORWARD,
    RATES,
    attempt,
    sweep,
    timing,
    write_full,
    write_study,
)
from tests.report.reading import blocks_of

DESIGN = Design(
    methods=(ROWS[0], ROWS[2]),
    ratios=(256,),
    missing=frozenset({("csea_256", 5)}),
    diverged=frozenset({("ef_sgd_256", 1), ("ef_sgd_256", 2), ("ef_sgd_256", 3)}),
)


@dataclass(frozen=True)
class Made:
    """A study, an accuracy experiment, and the folder of the report of both."""

    study: Path
    accuracy: Path
    output: Path

    @property
    def markdown(self) -> str:
        return (self.output / "report.md").read_text()

    def csv(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.output / "csv" / f"{name}.csv").open()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("speed")
    found = Made(write_full(folder / "study"), folder / "accuracy", folder / "report")
    make_experiment(found.accuracy, DESIGN)
    assert main([str(found.study), "--accuracy", str(found.accuracy), "--output", str(found.output)]) == 0
    return found


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_rebuild_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    assert main([str(made.study), "--accuracy", str(made.accuracy), "--output", str(tmp_path)]) == 0
    again = _files(tmp_path)
    assert {
        "report.md",
        "report.pdf",
        "figures/step_time_against_bandwidth.png",
        "csv/break_even.csv",
    } <= again.keys()
    assert again == _files(made.output)


def test_steps_made_by_the_model_are_predicted(made: Made) -> None:
    rows = made.csv("step_times")
    assert len(rows) == len(DEVICES) * len(RATES) * 10
    assert all(abs(float(row["relative_error"])) < 1e-6 for row in rows)
    assert "communication time is within 10 % of the clock's in 90 of 90 timed steps" in made.markdown


def test_errors_of_the_model_are_told(tmp_path: Path) -> None:
    record = timing("fashion_mnist", RATES[0], factor=1.25)
    write_study(tmp_path, [sweep(RATES[0])], [record])
    assert main([str(tmp_path)]) == 0
    # The clock had a quarter more than the model of the whole step, and so all the more of communication.
    text = (tmp_path / "report.md").read_text()
    assert "clock's in 0 of 10 timed steps, that of a null model that predicts none in 0;" in text
    rows = list(csv.DictReader((tmp_path / "csv/step_times.csv").open()))
    assert {round(float(row["relative_error"]), 6) for row in rows} == {-0.2}, "1 / 1.25 less one"
    [step] = [float(row["seconds"]) for row in rows if row["method"] == "ddp"]
    [own, modelled] = [
        float(row[key])
        for row in rows
        if row["method"] == "ddp"
        for key in ("communication_seconds", "predicted_communication_seconds")
    ]
    passes_and_codec = FORWARD + BACKWARD + CODEC
    assert own == pytest.approx(step - passes_and_codec)
    assert modelled == pytest.approx(step / 1.25 - passes_and_codec)


def test_every_table_of_times_says_where_they_are_from(made: Made, tmp_path: Path) -> None:
    document = speed_document(study_of(read_speed_records(made.study)), [read_records(made.accuracy)], tmp_path)
    tables = [block for block in blocks_of(document) if isinstance(block, Table)]
    assert len(tables) > 20
    for table in tables:
        words = " ".join((table.title, table.found, *table.notes, *(column.head for column in table.columns))).lower()
        plain = table.title in ("Baseline card", "Machine and code")
        assert plain or any(word in words for word in ("measured", "emulated", "modelled")), table.title


def test_what_the_wire_carried_beside_the_payload_is_told(made: Made) -> None:
    # 66 bytes to each 1448 are 4.56 %, and 0.2 % are made up: too much as it is, and explained.
    assert "0 of 12 messages of a megabyte and more are within 3 %" in made.markdown
    assert "(at most +4.8 %), and 12 once the headers are taken off (at most +0.2 %)" in made.markdown


def test_a_codec_timed_alone_is_the_one_that_is_shown(tmp_path: Path) -> None:
    record = timing("fashion_mnist", RATES[0])
    for method in record["methods"]:
        method["codec_alone_seconds"] = 0.0005
    write_study(tmp_path, [sweep(RATES[0])], [record])
    assert main([str(tmp_path)]) == 0
    table = (tmp_path / "report.md").read_text().split("Encoding, decoding and update.")[1]
    assert [cell.strip() for cell in next(x for x in table.splitlines() if x.startswith("| ddp ")).split("|")][
        2
    ] == "0.5"


def _first_step(folder: Path, target: float) -> float:
    """By the run's files alone: the first evaluation that reaches the target, infinity for a miss or a divergence."""
    if json.loads((folder / "result.json").read_text())["status"] != "done":
        return math.inf
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return min((event["step"] for event in events if event["test_accuracy"] >= target), default=math.inf)


def _recomputed(folder: Path, row_name: str) -> tuple[float, dict[str, float]]:
    """The target one margin below the baseline's mean, and the steps to it by seed."""
    experiment = json.loads((folder / "experiment.json").read_text())
    rows = {row["row"]: row["runs"] for row in experiment["rows"]}
    finals = [json.loads((folder / run / "result.json").read_text())["test_accuracy"] for run in rows["sgd"].values()]
    target = statistics.fmean(finals) - experiment["margin"]
    runs = {seed: folder / run for seed, run in rows[row_name].items() if (folder / run).exists()}
    return target, {seed: _first_step(path, target) for seed, path in runs.items()}


@pytest.mark.parametrize(
    ("method", "row"),
    [("ddp", "sgd"), ("ddp_no_overlap", "sgd"), ("ef_sgd", "ef_sgd_256"), ("csea_overlap", "csea_256")],
)
def test_steps_to_the_target_are_those_of_the_runs(made: Made, method: str, row: str) -> None:
    target, expected = _recomputed(made.accuracy, row)
    lines = [line for line in made.csv("steps_to_target") if line["method"] == method]
    near = [line for line in lines if float(line["target"]) == pytest.approx(target, abs=1e-12)]
    found = {line["seed"]: math.inf if line["steps"] == "infinite" else float(line["steps"]) for line in near}
    assert found == expected and {line["row"] for line in near} == {row}


def _time_row(made: Made, label: str) -> list[str]:
    """Cells of a method in the first table of times to a target."""
    table = made.markdown.split("fashion_mnist: time to")[1]
    line = next(line for line in table.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_time_to_the_target_is_steps_times_the_timed_step(made: Made) -> None:
    _, steps = _recomputed(made.accuracy, "sgd")
    record: dict[str, Any] = json.loads((made.study / "timing-0.json").read_text())
    step = statistics.median(s["seconds"] for s in record["steps"] if s["method"] == "ddp")
    cells = _time_row(made, "ddp")
    assert cells[1] == f"{int(statistics.median(steps.values())):,}"
    assert float(cells[2]) == pytest.approx(statistics.median(steps.values()) * step, rel=5e-3)


def test_a_miss_is_infinite_and_missing_runs_are_said(made: Made) -> None:
    assert _time_row(made, "ef sgd")[1:] == ["infinite"] * 4
    assert _time_row(made, "csea")[1:] == ["4 of 5 runs", "–", "–", "–"]
    table = made.markdown.split("fashion_mnist: time to")[1]
    assert "| powersgd 4 " not in table.split("no accuracy runs at the ratio of")[0]
    assert "no accuracy runs at the ratio of ddp fp16 (2), powersgd 4 (15)" in table
    assert "resnet50_v100: no accuracy runs of resnet50 are at hand" in made.markdown


@pytest.mark.parametrize(
    "change",
    [
        {"settings": "random-k, R1 = 256; fp32"},
        {"ratio": 240.0},
        {"algorithm": "cser_pl"},
    ],
)
def test_nothing_is_joined_with_runs_of_another_method_compressor_or_ratio(change: dict[str, Any], made: Made) -> None:
    records, study = read_records(made.accuracy), study_of(read_speed_records(made.study))
    method = study.benches[0].method("csea")
    assert method is not None
    joined = rows_for(records, method)
    assert joined is not None and joined.row.row == "csea_256"
    assert rows_for(records, method.model_copy(update=change)) is None


def test_nothing_is_joined_with_runs_of_a_model_of_another_size(made: Made) -> None:
    records, study = read_records(made.accuracy), study_of(read_speed_records(made.study))
    [bench] = benches_for(study, records)
    smaller = bench.timings[0].workload.model_copy(update={"num_parameters": 99_999})
    other = replace(bench, timings=(bench.timings[0].model_copy(update={"workload": smaller}),))
    assert benches_for(replace(study, benches=(other,)), records) == []


def test_relatives_that_were_not_timed_say_so_and_those_that_were_show_it(tmp_path: Path) -> None:
    record = timing("resnet50_v100", 10e9)
    record["methods"].append(record["methods"][5] | {"name": "diloco", "label": "DiLoCo"})
    record["steps"] += [step | {"method": "diloco"} for step in record["steps"] if step["method"] == "ef_sgd"]
    bench = study_of(read_speed_records(write_study(tmp_path, [sweep(500e6)], [record]))).benches[0]
    table = relatives_table(bench)
    clock = {row[0].text: row[4].text for row in table.rows}
    point = next(point for point in bench.points if point.method.name == "diloco")
    assert clock["DiLoCo"] == f"{milliseconds(point.timed.seconds)} ({milliseconds(point.predicted)})"
    assert table.found.startswith("1 of 7 were timed; the modelled step is within 10 % of the clock's in 1 of 1 steps")
    # What was not timed has the modelled step alone, in brackets.
    assert all(clock[label].startswith("(") for label in ("D-PSGD, ring", "CHOCO-SGD", "EF21-SGDM", "SPARTA"))


def test_cost_is_hours_times_the_price(made: Made) -> None:
    # 8 x p3.2xlarge at 10 Gb/s is the curves' own layout, so the modelled step is what the clock had, and the V100's
    # time for the update: 20 bytes of each parameter at 900 GB/s. 8 x 3.06 dollars an hour.
    [row] = [
        row for row in made.csv("step_times")
        if row["workload"] == "resnet50_v100" and row["method"] == "ddp" and float(row["bits_per_second"]) == 500e6
    ]  # fmt: skip
    seconds = float(row["seconds"]) + 20 * DEVICES["resnet50_v100"]["num_parameters"] / 900e9
    table = made.markdown.split("resnet50_v100: dollars per thousand steps")[1]
    line = next(line for line in table.splitlines() if line.startswith("| ddp "))
    assert float(line.split("|")[2]) == pytest.approx(1000 * seconds / 3600 * 8 * 3.06, rel=2e-3)


@pytest.mark.parametrize(
    "other", [{"host": "elsewhere"}, {"cpu": "another CPU"}, {"packages": {"torch": "9.9", "numpy": "0.0"}}]
)
def test_records_of_two_machines_are_refused(
    other: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = timing("fashion_mnist", RATES[0]) | {"attempt": attempt(**other)}
    write_study(tmp_path, [sweep(RATES[0])], [mixed])
    assert main([str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert "timing-0.json" in message and "another machine than sweep-0.json" in message
    assert not (tmp_path / "report.md").exists()


def test_a_record_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, [sweep(RATES[0])], [])
    (tmp_path / "sweep-0.json").unlink()
    assert main([str(tmp_path)]) == 1
    assert "sweep-0.json is missing" in capsys.readouterr().err


def test_options_of_the_other_kind_of_report_are_refused(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(made.study), "--tuning", str(made.accuracy)]) == 2
    assert main([str(made.accuracy), "--accuracy", str(made.accuracy)]) == 2
    assert main([str(made.study), "--accuracy", str(made.accuracy), "--accuracy", str(made.accuracy)]) == 2
    assert "give each once" in capsys.readouterr().err


@pytest.mark.parametrize("parts", ["nothing", "sweeps", "timings"])
def test_a_study_with_parts_missing_says_what_fills_them(parts: str, tmp_path: Path) -> None:
    sweeps = [sweep(RATES[0])] if parts == "sweeps" else []
    timings = [timing("resnet50_v100", 1e9)] if parts == "timings" else []
    write_study(tmp_path, sweeps, timings)
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "make speedups" in text and "100 Gb/s: above the ceiling" in text
    if parts == "timings":
        assert "(no sweep)" in text and "nothing was predicted" in text


def test_a_sweep_of_another_kind_of_network_predicts_nothing(tmp_path: Path) -> None:
    record = timing("resnet50_v100", 10e9)
    record["fabric"] |= {"kind": "host", "bits_per_second": None}
    write_study(tmp_path, [sweep(RATES[0])], [record])
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "nothing was predicted" in text and "so nothing is modelled: make speedups sweeps it" in text


def test_the_report_needs_no_torch(tmp_path: Path) -> None:
    write_study(tmp_path, [sweep(RATES[0])], [timing("fashion_mnist", RATES[0])])
    program = (
        "import sys; from report.__main__ import main; "
        f"status = main([{str(tmp_path)!r}]); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).returncode == 0


def test_made_up_records_are_in_the_format(made: Made) -> None:
    for path in made.study.glob("timing-*.json"):
        Timing.model_validate_json(path.read_text())
