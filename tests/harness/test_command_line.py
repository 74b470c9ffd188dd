"""The whole way: a small experiment through the command line to a report, its numbers recomputed from raw records."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest

from harness.__main__ import main
from harness.plan.plan import plan_experiment
from harness.workers.launch import write_experiment
from tests.harness.support import (
    ROOT,
    Table,
    call,
    changed,
    command,
    environment,
    only,
    small_spec,
    to_toml,
    write_spec,
)

ROWS = {"sgd": "SGD", "cser": "CSER", "ef_sgd": "EF-SGD"}


@dataclass(frozen=True)
class Experiment:
    """A small experiment that has been run and reported by the command line."""

    spec: Path
    results: Path
    printed: dict[str, str]

    @property
    def folder(self) -> Path:
        return self.results / "small"

    def raw(self) -> list[Table]:
        """run.json and result.json of every run, read as plain JSON."""
        found = []
        for path in sorted(self.folder.glob("*/result.json")):
            run, result = json.loads(path.with_name("run.json").read_text()), json.loads(path.read_text())
            found.append(result | {"row": run["row"], "seed": run["seed"]})
        return found


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("whole")
    path, printed = write_spec(folder, changed(small_spec(), "tuning")), {}
    for ours in ("algorithms", "report", "slurm"):  # modules of the user's own, which must not be taken for ours
        (folder / f"{ours}.py").write_text("raise SystemExit('SHADOWED')\n")
    for name, more in ("run", ["--jobs", "2"]), ("report", []):
        done = call(command(name, path, *more), folder)
        assert done.returncode == 0, done.stderr
        printed[name] = done.stdout
    return Experiment(path, folder / "results", printed)


def test_run_says_what_it_did(experiment: Experiment) -> None:
    ended = [line for line in experiment.printed["run"].splitlines() if line.startswith("[")]
    assert sorted(line.split("] ")[1] for line in ended) == sorted(
        f"{row} seed {seed}: done" for row in ROWS for seed in (1, 2)
    )
    assert [line.split("]")[0] for line in ended] == [f"[{number}/6" for number in range(1, 7)]
    assert {(run["row"], run["seed"]) for run in experiment.raw()} == {(row, seed) for row in ROWS for seed in (1, 2)}
    assert {run["status"] for run in experiment.raw()} == {"done"}


def test_report_and_bits_agree_with_the_raw_records(experiment: Experiment) -> None:
    assert (experiment.folder / "report.pdf").read_bytes().startswith(b"%PDF")
    page = (experiment.folder / "report.md").read_text()
    with (experiment.folder / "csv" / "runs.csv").open() as file:
        written = {line["run_id"]: int(line["bits"]) for line in csv.DictReader(file)}
    for run in experiment.raw():
        training = {key: run["traffic"][key] for key in ("gradient", "error", "model")}
        assert training == run["expected_traffic"]
        assert written[run["run_id"]] == sum(entry["bits"] for entry in training.values())
    for row, label in ROWS.items():
        scores = [100 * run["test_correct"] / run["test_count"] for run in experiment.raw() if run["row"] == row]
        assert label in page and len(scores) == 2 and f"{fmean(scores):.2f}" in page


def test_plan_prints_rows_bits_and_counts(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(experiment.spec)]) == 0
    output = capsys.readouterr().out
    lines = {
        line.split()[0]: line.split() for line in output.splitlines() if line.split()[:1] and line.split()[0] in ROWS
    }
    # 742 parameters, 40 steps; CSER's 40 eighths and 13 quarters.
    numbers = {"sgd": 40 * 742, "cser": 40 * 93 + 13 * 186, "ef_sgd": 40 * 186}
    for row, count in numbers.items():
        # CSER's workers must average their models once more; of two workers a link carries what one sends.
        models = f"{count / 742 + (row == 'cser'):.1f}"
        assert lines[row][1:2] + lines[row][3:9] == [row, models, models, "0.05", "2", "40", f"{4 * count / 1e6:.3f}"]
    assert [lines[row][2] for row in ROWS] == ["1", "4.8", "4"]
    assert "6 runs" in output
    assert "gradient compressor: block (ratio 8); error compressor: block (ratio 4); reset interval: 3" in output


def test_plan_touches_no_data_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_spec(tmp_path, changed(small_spec(), "task.name", "fashion_mnist"))
    assert main(["plan", str(path), "--results", str(tmp_path / "results")]) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["spec.toml"]
    assert "6 runs" in capsys.readouterr().out


def counts(output: str) -> dict[str, list[int]]:
    """Per row: done, running, stopped, stale, failed, missing."""
    lines = [line.split() for line in output.splitlines()]
    assert lines[0] == ["row", "done", "running", "stopped", "stale", "failed", "missing"]
    return {line[0]: [int(number) for number in line[1:]] for line in lines if line and line[0] in ROWS}


def status(spec: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["status", str(spec), "--results", str(results)]) == 0
    return capsys.readouterr().out


def test_status_of_what_is_done_and_of_nothing(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = status(experiment.spec, experiment.results, capsys)
    assert counts(done) == {row: [2, 0, 0, 0, 0, 0] for row in ROWS}
    nothing = status(experiment.spec, tmp_path, capsys)
    assert counts(nothing) == {row: [0, 0, 0, 0, 0, 2] for row in ROWS}
    assert not list(tmp_path.iterdir())


def heartbeat(time: float, attempt: str = "a") -> Table:
    numbers = {"step": 10, "num_steps": 40, "epoch": 0.25, "loss": 1.0, "accuracy": None}
    rates = {"images_per_second": 1000.0, "megabytes_sent": 0.1, "seconds_left": 3.0}
    return {"attempt": attempt, "time": time} | numbers | rates


def failure(attempt: str = "a") -> Table:
    words = {"kind": "oom", "message": "MemoryError", "traceback": "", "step": None}
    return {"version": 1, "run_id": "x", "attempt": attempt} | words


def put(folder: Path, **records: Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))


def test_status_tells_running_stale_and_failed_runs(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {(run["row"], run["seed"]): run["run_id"] for run in experiment.raw()}
    monkeypatch.setattr("harness.records.state.time.time", lambda: 1_000_000.0)
    folder = tmp_path / "small"
    put(folder / runs["sgd", 1], heartbeat=heartbeat(999_990.0))
    put(folder / runs["sgd", 2], heartbeat=heartbeat(999_000.0))
    put(folder / runs["cser", 1], failure=failure())
    put(folder / runs["cser", 2], failure=failure(), heartbeat=heartbeat(999_990.0))
    # An attempt after the one that failed is on.
    put(folder / runs["ef_sgd", 1], failure=failure("a"), heartbeat=heartbeat(999_990.0, "b"))
    output = status(experiment.spec, tmp_path, capsys)
    assert counts(output) == {"sgd": [0, 1, 0, 1, 0, 0], "cser": [0, 0, 0, 0, 2, 0], "ef_sgd": [0, 1, 0, 0, 0, 1]}
    assert "running: sgd seed 1: step 10 of 40" in output
    assert "stale: sgd seed 2: step 10 of 40; silent for 1000 s" in output
    assert "failed: cser seed 1: oom: MemoryError" in output


def test_status_tells_a_damaged_plan(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "small", experiment={"version": 1, "name": "small"})
    assert main(["status", str(experiment.spec), "--results", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {tmp_path / 'small' / 'experiment.json'} has a bad field")
    assert said.err.count("\n") == 1 and not said.out


def test_collect_writes_one_line_per_run(experiment: Experiment, tmp_path: Path) -> None:
    done = call(command("collect", experiment.spec, "--results", str(experiment.results)), tmp_path)
    assert done.returncode == 0 and "frames" in done.stdout, done.stderr
    with (experiment.folder / "frames" / "runs.csv").open(newline="") as file:
        lines = {line["run_id"]: line for line in csv.DictReader(file)}
    assert set(lines) == {run["run_id"] for run in experiment.raw()} and len(lines) == 6
    for run in experiment.raw():
        line = lines[run["run_id"]]
        assert (line["row"], int(line["seed"]), line["status"]) == (run["row"], run["seed"], "done")
        assert float(line["score"]) == pytest.approx(run["test_accuracy"], rel=1e-12)


@pytest.mark.parametrize("name", ["collect", "report"])
def test_commands_that_need_records_say_where_there_are_none(name: str, tmp_path: Path) -> None:
    path = write_spec(tmp_path, small_spec())
    done = call(command(name, path), tmp_path)
    assert done.returncode in (1, 2)
    assert "results/small" in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required"),
        (["sing"], "invalid choice"),
        (["run"], "required"),
        (["run", "x", "--jobs", "0"], "whole number of at least 1, not '0'"),
        (["run", "x", "--jobs", "x"], "whole number of at least 1, not 'x'"),
        (["run", "x", "--workers", "bees"], "invalid choice"),
        (["plan", "x", "--lr", "1"], "unrecognized"),
        (["run", "x", "--job", "2"], "unrecognized arguments: --job 2"),
        *((["run", "x", "--timeout-seconds", bad], "number above 0") for bad in ("0", "-5", "nan", "inf", "x")),
        *((["run", "x", "--checkpoint-minutes", bad], "at least 0") for bad in ("-1", "nan", "inf", "x")),
        *((["speedups", "--minutes", bad], "number above 0") for bad in ("-1", "0", "nan", "x")),
        *((["netlab", "--rates", bad], "number above 0") for bad in ("-1", "10,nan", "0", "x", "10,,20")),
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: python -m harness") and said in error


def test_two_specs_of_one_name_in_one_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, results = tmp_path / "first.toml", tmp_path / "second.toml", tmp_path / "results"

    def begin(path: Path, spec: Table) -> None:
        path.write_text(to_toml(spec))
        write_experiment(plan_experiment(str(path), results), results)

    spec = only(small_spec(), "sgd")
    begin(first, spec)
    written = (results / "small" / "experiment.json").read_bytes()
    second.write_text(to_toml(only(small_spec(), "ef_sgd")))
    assert main(["run", str(second), "--results", str(results)]) == 2
    error = capsys.readouterr().err
    assert str(first) in error and "another name" in error and error.count("\n") == 1
    assert (results / "small" / "experiment.json").read_bytes() == written
    # The same experiment by another path is the same, and a file may change.
    begin(second, spec)
    begin(second, changed(spec, "statistics.seeds", [1, 2]))
    assert (results / "small" / "experiment.json").read_bytes() != written


def test_output_that_nobody_reads_to_its_end_ends_a_command_quietly(tmp_path: Path) -> None:
    """As in `plan | head`."""
    code = """
import sys
from harness.cli import exits
sys.exit(exits.end_of(lambda: print("row " * 50_000) or 0, "", ""))
"""
    unread = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert unread.stdout is not None and unread.stderr is not None
    unread.stdout.close()
    assert unread.wait(100) == 141
    assert unread.stderr.read() == b""


@pytest.mark.parametrize("module", ["shtab", "pydantic"])
@pytest.mark.parametrize("command_line", ["harness", "slurm"])
def test_ctrl_c_while_a_command_still_loads_is_one_line(command_line: str, module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt\n")
    own = environment()
    own["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{own['PYTHONPATH']}"
    words = [sys.executable, "-m", command_line, "status", "fashion_mnist", "--results", str(tmp_path)]
    ended = subprocess.run(words, env=own, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 130 and ended.stdout == ""
    assert ended.stderr.startswith("interrupted: ") and ended.stderr.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("cser-bench ")


@pytest.mark.parametrize("command_line", ["harness", "slurm"])
def test_a_shell_can_complete_the_commands(command_line: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"{command_line}.__main__").main
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    assert ended.value.code == 0
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "status" in script and "--results" in script
