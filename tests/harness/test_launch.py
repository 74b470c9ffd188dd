"""Launching: processes as good as stacked workers, and failures that are no other run's affair."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cser_bench.__main__ import main
from cser_bench.harness.plan.plan import Plan, make_plan
from cser_bench.harness.records.run_lock import owned
from cser_bench.harness.records.store import Failure, read_record, read_run
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.tasks import blobs
from cser_bench.harness.workers.launch import launch, places
from cser_bench.harness.workers.prepare import missing_runs
from tests.harness.support import (
    CSER,
    CommandLine,
    DoctoredBlobs,
    Quiet,
    Table,
    call,
    changed,
    command,
    comparable,
    done,
    job_for,
    kept_checkpoints,
    launch_options,
    only,
    small_config,
    small_spec,
    write_spec,
)


def planned(folder: Path, spec: Table) -> Plan:
    return make_plan(load_spec(write_spec(folder, spec)), folder)


def test_a_run_needs_no_system_that_binds_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As macOS, whose Python has neither function."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    plan = planned(tmp_path, only(small_spec(), "sgd"))
    places_of_runs = places(plan, launch_options(tmp_path))
    assert (
        len({core for place in places_of_runs for core in place.cores})
        == os.cpu_count()
    )
    run = done(plan.runs[0].config, tmp_path)
    assert run.folder.is_dir()


# Processes


def close_to(value: Any) -> Any:
    """What equals this up to the order in which 32-bit numbers are added."""
    return (
        pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value
    )


@pytest.mark.whole
def test_processes_equal_stacked_workers(tmp_path: Path) -> None:
    """Four: the backend adds in another order. Two are equal to the bit, as under torchrun
    below."""
    plan = planned(
        tmp_path, changed(only(small_spec(), "cser"), "training.num_workers", 4)
    )
    (run,) = plan.runs
    assert (
        launch(plan, launch_options(tmp_path / "processes", "processes"), Quiet()) == 0
    )
    folder = tmp_path / "processes" / "small" / run.run_id
    events, result = comparable(folder)
    stacked_events, stacked_result = comparable(
        done(run.config, tmp_path / "stacked").folder
    )
    del result["parameters_sha256"], stacked_result["parameters_sha256"]
    for one, other in zip(
        [*events, result], [*stacked_events, stacked_result], strict=True
    ):
        expected = {key: close_to(value) for key, value in other.items()}
        assert one == expected
    (attempt,) = read_run(folder).run.attempts
    assert attempt.launch == "processes"
    assert attempt.backend == "gloo"


@pytest.mark.whole
def test_torchrun_equals_stacked_workers(tmp_path: Path) -> None:
    spec = only(small_spec(), "ef_sgd") | {
        "statistics": small_spec()["statistics"] | {"baseline": "ef_sgd"}
    }
    path = write_spec(tmp_path, spec)
    launcher = ["--standalone", "--nproc-per-node=2", "-m", "harness"]
    words = command(
        *launcher,
        "run",
        path,
        "--results",
        tmp_path / "torchrun",
        module="torch.distributed.run",
    )
    said = call(words, tmp_path)
    assert said.returncode == 0, said.stderr
    assert [line for line in said.stdout.splitlines() if line.endswith("done")] == [
        "ef_sgd seed 1: done",
        "ef_sgd seed 2: done",
    ]
    for run in planned(tmp_path, spec).runs:
        folder = tmp_path / "torchrun" / "small" / run.run_id
        assert comparable(folder) == comparable(
            done(run.config, tmp_path / "stacked").folder
        )
        (attempt,) = read_run(folder).run.attempts
        assert attempt.launch == "torchrun"
        assert attempt.backend == "gloo"


@pytest.mark.parametrize("name", ["run", "time"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE is ''"),
        ({"LOCAL_RANK": "7"}, "LOCAL_RANK is 7, but LOCAL_WORLD_SIZE is 2"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
)
def test_what_no_launcher_says_is_refused(
    name: str,
    wrong: Table,
    words: str,
    tmp_path: Path,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for key, value in (
        said | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} | wrong
    ).items():
        monkeypatch.setenv(key, value)
    given = (
        [write_spec(tmp_path, small_spec()), "--results", tmp_path]
        if name == "run"
        else ["--output", tmp_path]
    )
    assert words in cli.refused(name, *given)


def test_torchrun_with_no_place_to_meet_or_another_number_of_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    path = write_spec(
        tmp_path, changed(only(small_spec(), "sgd"), "training.num_workers", 3)
    )
    for key, value in {
        "WORLD_SIZE": "1",
        "RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        monkeypatch.setenv(key, value)
    assert "MASTER_PORT not" in cli.refused(
        "run", path, "--results", tmp_path / "results"
    )
    monkeypatch.setenv("MASTER_PORT", "1")
    said = cli.refused("run", path, "--results", tmp_path / "results")
    assert said == "the launcher started 1 processes, the experiment has [3] workers"
    assert not (tmp_path / "results").exists()


# Failures


def test_siblings_go_on_after_one_fails_and_the_next_launch_tries_it_again(
    tmp_path: Path,
) -> None:
    """Its events should be written where there is a folder."""
    plan = planned(tmp_path, small_spec())
    runs = missing_runs(plan, tmp_path / "small")
    assert [(run.row, run.seed) for run in runs] == [
        (row, s) for s in (1, 2) for row in ("sgd", "cser", "ef_sgd")
    ]
    folder = tmp_path / "small" / runs[1].run_id
    (folder / "events.jsonl").mkdir(parents=True)
    display = Quiet()
    assert launch(plan, launch_options(tmp_path), display) == 1
    failed = [name for name, failure in display.ends.items() if failure]
    assert failed == ["cser 1"]
    assert len(display.ends) == len(plan.runs)
    failure = read_record(folder / "failure.json", Failure)
    assert failure.kind == "bug"
    assert f"bug: {failure.message}" in str(display.ends["cser 1"])
    assert "IsADirectoryError" in failure.traceback
    assert "IsADirectoryError" in (folder / "log.txt").read_text()
    (folder / "events.jsonl").rmdir()
    assert [run.run_id for run in missing_runs(plan, tmp_path / "small")] == [
        folder.name
    ]
    again = Quiet()
    assert launch(plan, launch_options(tmp_path), again) == 0
    assert again.ends == {"cser 1": None}
    assert not (folder / "failure.json").exists()
    assert len(read_run(folder).run.attempts) == 2


@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_damaged_folder_is_no_other_runs_affair_but_a_damaged_result_stops_the_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_row = small_spec()["rows"][:1]
    spec = small_spec() | {"rows": first_row}
    plan = planned(tmp_path, spec)
    folder = tmp_path / "small" / plan.runs[0].run_id
    folder.mkdir(parents=True)
    config = plan.runs[0].config
    job = job_for(config, tmp_path / "small")
    job.recorder().begin(0)
    (folder / name).write_text('{"version": 1, "run_\n{}\n')
    path = write_spec(tmp_path, spec)
    options = [str(path), "--results", str(tmp_path)]
    assert main(["run", *options, "--jobs", "1"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    if name == "result.json":
        assert str(folder / name) in said.err
        assert "run again" in said.err
        assert "done" not in said.out
        return
    assert said.err.startswith("error: 1 run failed; ")
    assert "sgd seed 2: done" in said.out
    assert "sgd seed 1: FAILED, data: " in said.out
    assert "run again" in said.out
    assert main(["status", *options]) == 0
    assert "failed: sgd seed 1: data: " in capsys.readouterr().out


def test_a_run_that_diverged_is_not_called_done(
    tmp_path: Path, cli: CommandLine
) -> None:
    spec = only(small_spec(), "sgd")
    spec["rows"][0]["learning_rate"] = 1e6
    experiment = write_spec(tmp_path, spec)
    said = cli.out("run", experiment, "--results", tmp_path)
    assert "sgd seed 1: diverged" in said
    assert "sgd seed 1: done" not in said
    assert re.search(r"all (\d) runs of small are done, \1 diverged\n", said)
    status = cli.out("status", experiment, "--results", tmp_path)
    assert re.search(r"\n(\d) done \(\1 diverged\); ", status)


def test_damaged_scores_of_a_run_that_is_done_stop_run_and_status(
    tmp_path: Path, cli: CommandLine
) -> None:
    spec = only(small_spec(), "sgd")
    path = write_spec(tmp_path, spec)
    (run,) = planned(tmp_path, spec).runs
    events = done(run.config, tmp_path / "small").folder / "events.jsonl"
    first, *rest = events.read_text().splitlines(keepends=True)
    events.write_text("".join([f"{first[:30]}\n", *rest]))
    for name in ("run", "status"):
        said = cli.refused(name, path, "--results", tmp_path, code=1)
        assert f"{events}, line 1, is damaged" in said
        assert "restore the file, or delete the run's folder and run again" in said
    shutil.rmtree(events.parent)
    assert "are done" in cli.out("run", path, "--results", tmp_path)


def test_checkpoints_that_a_killed_process_left_beside_its_result_go(
    tmp_path: Path, cli: CommandLine
) -> None:
    spec = only(small_spec(), "sgd")
    (run,) = planned(tmp_path, spec).runs
    with kept_checkpoints():
        folder = done(run.config, tmp_path / "small").folder
    assert (folder / "checkpoint" / "latest").exists()
    assert "are done" in cli.out(
        "run", write_spec(tmp_path, spec), "--results", tmp_path
    )
    assert not (folder / "checkpoint").exists()


@pytest.mark.whole
def test_runs_that_another_command_is_at_are_skipped_with_a_word_and_fail_nothing(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, only(small_spec(), "sgd"))
    (run,) = make_plan(load_spec(path), tmp_path).runs
    folder = tmp_path / "small" / run.run_id
    with owned(folder):
        said = cli.out("run", path, "--results", tmp_path)
    assert "sgd seed 1: skipped: another process is at this run" in said
    assert "1 run left out, as another command is at" in said
    names = {path.name for path in folder.iterdir()}
    assert names == {"owner.lock", "log.txt"}
    assert "sgd seed 1: done" in cli.out("run", path, "--results", tmp_path)


def test_all_workers_compute_on_one_thread_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    hook = DoctoredBlobs(
        hook=lambda rank, step: threads.append(torch.get_num_threads())
    )
    monkeypatch.setattr(blobs, "TASK", hook)
    torch.set_num_threads(2)
    try:
        done(small_config("cser", CSER), tmp_path)
    finally:
        torch.set_num_threads(1)
    assert threads == [1] * 80
