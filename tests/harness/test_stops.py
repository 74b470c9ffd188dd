"""Stopping on request, and attempts that outlive their successor's start: nothing is lost, and nothing is mixed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from algorithms import Collectives
from harness.records.recorder import SupersededError, write_failure
from harness.records.store import Event, Failure, Heartbeat, read_record, read_run
from harness.train import train
from harness.train.training import Preempted
from harness.workers.attempt import Job, attempt_in_group, failure_kind, prepare_thread
from tests.harness.support import CSER, attempt_in_threads, comparable, job_for, small_config
from tests.threads import run_workers

CONFIG = small_config("cser", CSER)


def attempt_until(job: Job, rank: int, call: int) -> list[str]:
    """What each worker raises if one of them is asked to stop from its `call`-th question on."""

    def work(collectives: Collectives) -> str:
        prepare_thread()
        asked = 0

        def stop_requested() -> bool:
            nonlocal asked
            asked += 1
            return collectives.rank == rank and asked >= call

        try:
            attempt_in_group(job, collectives, stop_requested)
        except Preempted as error:
            assert failure_kind(error) == "preempted"
            return str(error)
        return "done"

    return run_workers(work, job.run.config.num_workers, 60.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    job = job_for(CONFIG, tmp_path_factory.mktemp("whole"))
    assert attempt_in_threads(job)
    return job.folder


@pytest.mark.parametrize("step", [1, 13, 20])
def test_all_workers_stop_at_the_step_at_which_one_is_asked_to(step: int, whole: Path, tmp_path: Path) -> None:
    """Until the first look, at step 20, workers talk at each step."""
    job = job_for(CONFIG, tmp_path, checkpoint_minutes=60.0)
    assert attempt_until(job, 1, step) == [f"asked to stop; saved at step {step} of 40"] * 2
    assert not (job.folder / "result.json").exists()
    assert attempt_in_threads(job_for(CONFIG, tmp_path))
    assert read_run(job.folder).run.attempts[-1].resumed_from_step == step
    assert comparable(job.folder) == comparable(whole)


@pytest.mark.parametrize(
    ("seconds", "rank", "call", "ends"),
    [
        (60.0, 0, 21, "asked to stop; saved at step 25 of 40"),
        (60.0, 0, 22, "done"),
        (0.0, 1, 33, "asked to stop; saved at step 33 of 40"),
    ],
)
def test_quick_steps_are_not_interrupted_by_questions_but_slow_ones_are(
    seconds: float, rank: int, call: int, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the look at step 20 the next is at 25, and the one after at the end, 40, where there is nothing to stop."""
    monkeypatch.setattr(train, "STOP_SECONDS", seconds)
    assert attempt_until(job_for(CONFIG, tmp_path, checkpoint_minutes=60.0), rank, call) == [ends] * 2


# Attempts that were replaced


def replaced(results: Path) -> tuple[Job, Job]:
    """Two attempts at one run that have both begun, the second later."""
    jobs = job_for(CONFIG, results), job_for(CONFIG, results)
    for job in jobs:
        job.recorder().begin(0)
    return jobs


def test_replaced_attempt_writes_nothing(whole: Path, tmp_path: Path) -> None:
    old, new = replaced(tmp_path)
    record = read_run(whole)
    assert record.result is not None
    heartbeat = Heartbeat(
        attempt="x", time=1.0, step=1, num_steps=40, epoch=0.1, loss=None, accuracy=None, images_per_second=1.0,
        megabytes_sent=1.0, seconds_left=None,
    )  # fmt: skip
    before = {path.name: path.read_bytes() for path in old.folder.iterdir()}
    event: Event = record.events[0]
    recorder = old.recorder()
    for write in (
        lambda: recorder.event(event),
        lambda: recorder.heartbeat(heartbeat),
        lambda: recorder.finish(record.result),  # type: ignore[arg-type]
    ):
        with pytest.raises(SupersededError, match=f"attempt {new.attempt.attempt} has taken run .* over from attempt"):
            write()
    write_failure(old.folder, old.run.run_id, old.attempt.attempt, "communication", "lost the others", "")
    assert {path.name: path.read_bytes() for path in old.folder.iterdir()} == before
    write_failure(new.folder, new.run.run_id, new.attempt.attempt, "communication", "lost the others", "")
    assert read_record(new.folder / "failure.json", Failure).attempt == new.attempt.attempt


def test_attempt_that_is_replaced_in_the_middle_stops_and_the_new_one_is_whole(whole: Path, tmp_path: Path) -> None:
    old, new = job_for(CONFIG, tmp_path), job_for(CONFIG, tmp_path)
    run_json = old.folder / "run.json"

    def replace_at(call: int) -> None:
        """What the successor does on another machine, while the old attempt is asked whether to stop."""
        asked = 0

        def stop_requested() -> bool:
            nonlocal asked
            asked += 1
            if asked == call:
                run = json.loads(run_json.read_text())
                run["attempts"].append(copy.deepcopy(run["attempts"][-1]) | {"attempt": new.attempt.attempt})
                run_json.write_text(json.dumps(run))
            return False

        def work(collectives: Collectives) -> None:
            attempt_in_group(old, collectives, stop_requested if collectives.rank == 0 else lambda: False)

        run_workers(work, 2, 60.0)

    with pytest.raises(SupersededError):
        replace_at(10)
    assert not (old.folder / "result.json").exists() and not (old.folder / "events.jsonl").exists()
    assert attempt_in_threads(new)
    assert comparable(new.folder) == comparable(whole)
