"""Checkpoints and kills: no write is taken for more than it is, and what goes on is the
uninterrupted run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from cser_bench.algorithms import Collectives
from cser_bench.algorithms.check.threads import run_workers
from cser_bench.algorithms.core import worker_files
from cser_bench.harness.plan.plan import Plan, make_plan
from cser_bench.harness.records.recorder import SupersededError
from cser_bench.harness.records.state import is_done, saved_step
from cser_bench.harness.records.store import Failure, read_record, read_run
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.train import checkpoint
from cser_bench.harness.train.checkpoint import CheckpointError
from cser_bench.harness.workers import attempt, launch
from cser_bench.harness.workers.attempt import attempt_stacked
from tests.harness.support import (
    CSER,
    Killed,
    Quiet,
    attempt_in_threads,
    changed,
    comparable,
    done,
    job_for,
    killed_at,
    launch_options,
    only,
    small_config,
    small_spec,
    write_spec,
)

pytestmark = pytest.mark.whole


def save(
    folder: Path,
    *steps: int,
    attempt: str = "attempt",
    value: float | None = None,
    allowed: bool = True,
) -> None:
    """As two workers do; each saves its rank beside the value, which is the step if none is
    given."""

    def check() -> None:
        if not allowed:
            raise SupersededError("replaced")

    def work(collectives: Collectives) -> None:
        for step in steps:
            state = {
                "value": torch.tensor(
                    [float(step) if value is None else value, float(collectives.rank)]
                )
            }
            checkpoint.save(folder, step, state, collectives, attempt, check)

    run_workers(work, 2)


def load(folder: Path, world_size: int = 2) -> tuple[int, float] | None:
    """The step and the value that all workers find, each with its own rank."""

    def work(collectives: Collectives) -> tuple[int, float] | None:
        found = checkpoint.load(folder, collectives)
        if found is None:
            return None
        assert found[1]["value"][1] == collectives.rank
        step, state, *_ = found
        return step, float(state["value"][0])

    (found,) = set(run_workers(work, world_size))
    return found


def generations(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def test_a_folder_that_is_a_link_is_refused_and_what_it_names_stays(
    tmp_path: Path,
) -> None:
    save(tmp_path / "another", 5, 10)
    (tmp_path / "linked").symlink_to(tmp_path / "another")
    for act in (
        lambda: save(tmp_path / "linked", 15),
        lambda: load(tmp_path / "linked"),
    ):
        with pytest.raises(CheckpointError, match="linked is a symbolic link"):
            act()
    checkpoint.discard(tmp_path / "linked")
    assert load(tmp_path / "another") == (10, 10.0)
    assert generations(tmp_path / "another") == ["step-000000005", "step-000000010"]


def test_two_generations_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    assert load(tmp_path / "none") is None
    save(tmp_path, 5, 10, 15, 1000)
    assert generations(tmp_path) == ["step-000000015", "step-000001000"]
    assert (tmp_path / "latest").read_text() == "step-000001000\n"
    assert load(tmp_path) == (1000, 1000.0)
    torn = tmp_path / "step-000001005.another.tmp"
    torn.mkdir()
    (torn / "rank-0.pt").write_bytes(b"torn")
    assert load(tmp_path) == (1000, 1000.0)
    save(tmp_path, 1010)  # The torn one is none of the two that are kept, and goes.
    assert generations(tmp_path) == ["step-000001000", "step-000001010"]


@pytest.mark.parametrize("apart", ["folder", "attempt"])
def test_checkpoint_that_lacks_a_ranks_file_is_refused_and_the_one_before_stays(
    apart: str, tmp_path: Path
) -> None:
    """As where two machines have file systems of their own, or ranks call the attempt by names of
    their own."""
    save(tmp_path, 5)

    def work(collectives: Collectives) -> None:
        rank = collectives.rank
        folder = (
            tmp_path / f"machine-{rank}" if rank and apart == "folder" else tmp_path
        )
        name = f"attempt-{rank}" if apart == "attempt" else "attempt"
        checkpoint.save(
            folder, 10, {"value": torch.tensor([10.0, rank])}, collectives, name
        )

    with pytest.raises(
        CheckpointError,
        match=r"step 10 is not whole: rank 0 sees no file of rank 1 in .*--results",
    ):
        run_workers(work, 2)
    assert load(tmp_path) == (5, 5.0)


def test_run_whose_checkpoint_is_refused_fails_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_for(small_config("cser", CSER), tmp_path)
    write = worker_files.write_durably

    def lost(path: Path, content: object) -> None:
        if path.name != "rank-1.pt":
            write(path, content)

    monkeypatch.setattr(worker_files, "write_durably", lost)
    assert not attempt_in_threads(job)
    failure = read_record(job.folder / "failure.json", Failure)
    assert failure.kind == "data"
    assert "is not whole" in failure.message
    assert not failure.traceback
    assert capsys.readouterr().out == f"cser seed 1: {failure.message}\n"
    assert saved_step(job.folder) is None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def rewrite(path: Path, **changes: object) -> None:
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | changes))


SPOILS: dict[str, Callable[[Path], None]] = {
    "flipped bit": lambda folder: flip(folder / "rank-1.pt"),
    "truncated": lambda folder: os.truncate(folder / "rank-0.pt", 50),
    "a rank's file missing": lambda folder: (folder / "rank-1.pt").unlink(),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest empty": lambda folder: os.truncate(folder / "manifest.json", 0),
    "manifest too short": lambda folder: rewrite(folder / "manifest.json", sha256=[]),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_damaged_generation_gives_way_to_the_one_before(
    spoil: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 5, 10)
    SPOILS[spoil](tmp_path / "step-000000010")
    assert load(tmp_path) == (5, 5.0)
    SPOILS[spoil](tmp_path / "step-000000005")
    assert not capsys.readouterr().out
    assert load(tmp_path) is None
    assert (
        capsys.readouterr().out
        == f"no checkpoint in {tmp_path} is whole on every rank: the run begins anew\n"
    )


def test_what_cannot_be_continued_is_refused_with_the_reason(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for world_size in (1, 3):
        words = rf"written by 2 workers and cannot be continued by {world_size}: error"
        with pytest.raises(CheckpointError, match=words):
            load(tmp_path, world_size)
    rewrite(tmp_path / "step-000000005" / "manifest.json", version=7)
    with pytest.raises(
        CheckpointError, match="version 7, this program writes 1; delete it"
    ):
        load(tmp_path)


@pytest.mark.parametrize("content", ["an object", "no file of torch's"])
def test_a_file_that_could_run_code_is_refused_in_a_sentence_with_its_name(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_for(small_config("cser", CSER), tmp_path)
    folder = job.checkpoints / "step-000000005"
    folder.mkdir(parents=True)
    file = folder / "rank-0.pt"
    file.write_bytes(b"words")
    if content == "an object":
        torch.save({"models": tmp_path}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    worker_files.write_manifest(folder, [digest], version=1, step=5, world_size=1)
    assert not attempt_stacked(job)
    failure = read_record(job.folder / "failure.json", Failure)
    assert failure.kind == "data"
    assert failure.message == (
        f"{file} holds something else than tensors and plain data, and could run code; restore it, "
        f"or delete {folder} to go on from the checkpoint before it"
    )
    assert capsys.readouterr().out == f"cser seed 1: {failure.message}\n"


def test_checkpoint_of_a_gpu_that_is_not_here_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("torch.serialization.location_tag", lambda storage: "cuda:6")
        save(tmp_path, 5)
    assert b"cuda:6" in (tmp_path / "step-000000005" / "rank-0.pt").read_bytes()
    assert load(tmp_path) == (5, 5.0)


def test_checkpoints_of_two_attempts_at_once_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(SupersededError):
        save(tmp_path, 10, attempt="old", value=100.0, allowed=False)
    # Both have written their files for step 10 when the new one publishes its own.
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["step-000000010.old.tmp"]
    save(tmp_path, 10, attempt="new", value=200.0)
    assert load(tmp_path) == (10, 200.0)
    with pytest.raises(SupersededError):
        save(tmp_path, 10, attempt="old", value=100.0, allowed=False)
    assert load(tmp_path) == (10, 200.0)


def test_checkpoint_that_does_not_fit_leaves_room_for_the_record_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cser_bench.algorithms.core.worker_files.os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 5)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not files


@pytest.mark.parametrize("before", [[], [5, 10], [5, 10, 20]])
def test_checkpoint_killed_at_any_moment_is_the_one_before_or_the_new_one(
    before: list[int], tmp_path: Path
) -> None:
    """The last case is a run that goes on from step 10 because 20 is damaged, and gets to 15
    first."""
    found: list[tuple[int, float] | None] = []
    changes = ["killed"]
    while "killed" in changes:
        folder = tmp_path / str(len(found))
        save(folder, *before)
        if 20 in before:
            (folder / "step-000000020" / "rank-1.pt").write_bytes(b"damaged")
        with killed_at(len(found)) as changes, suppress(Killed):
            save(folder, 15)
        old = (10, 10.0) if before else None
        found.append(load(folder))
        assert found[-1] in (old, (15, 15.0))
        # What is left of it is in nobody's way.
        save(folder, 15)
        assert load(folder) == (15, 15.0)
        (folder / "step-000000015" / "rank-0.pt").unlink()
        assert load(folder) == old
        unfinished = [path for path in folder.iterdir() if path.suffix == ".tmp"]
        assert not unfinished
    # Two workers write in an order of their own, so the same moment may be one worker's or the
    # other's.
    assert len(found) > 10
    assert found[0] == old
    assert found[-1] == (15, 15.0)


# Killed at any moment


SEED = int(os.environ.get("CSER_TEST_KILL_SEED", "1"))


def launched(
    plan: Plan, results: Path, kill: tuple[int, int] | None = None
) -> tuple[int, dict[str, str | None]]:
    """Failed runs of one launch with worker processes, and what was said of them.

    `kill`: the rank of a process that is killed as soon as there is a checkpoint of this step, or
        of a later one.
    """
    display = Quiet()
    start = launch.start

    def doomed(*arguments: Any) -> Any:
        active = start(*arguments)

        def strike() -> None:
            while (saved_step(active.job.folder) or 0) < step:
                time.sleep(0.005)
            active.workers.context.processes[rank].kill()

        rank, step = kill
        threading.Thread(target=strike, daemon=True).start()
        return active

    with pytest.MonkeyPatch.context() as patch:
        # A worker that is alone at the meeting point hears of no death.
        patch.setattr(attempt, "AFTER_FAILURE_SECONDS", 1.0)
        if kill:
            patch.setattr(launch, "start", doomed)
        options = launch_options(results, "processes", jobs=1, checkpoint_minutes=0.0)
        return launch.launch(plan, options, display), display.ends


@pytest.mark.timeout(600)
def test_worker_processes_killed_as_they_start_and_as_they_train_change_nothing(
    tmp_path: Path,
) -> None:
    spec = only(small_spec(), "cser")
    spec = changed(spec, "evaluation.per_epoch", 10)
    plan = make_plan(
        load_spec(write_spec(tmp_path, changed(spec, "training.num_epochs", 4))),
        tmp_path,
    )
    (run,) = plan.runs
    folder = tmp_path / "small" / run.run_id
    for kill in ((1, 0), (0, 1), (1, 60)):
        failures, said = launched(plan, tmp_path, kill)
        assert failures == 1, said
        failure = read_record(folder / "failure.json", Failure)
        assert failure.kind == "oom"
        assert "was killed" in failure.message
        assert "batch" in failure.message
    assert launched(plan, tmp_path) == (0, {"cser 1": None})
    attempts = read_run(folder).run.attempts
    resumed = [attempt.resumed_from_step for attempt in attempts]
    assert resumed == sorted(resumed)
    assert resumed[-1] >= 60
    whole = done(run.config, tmp_path / "whole", checkpoint_minutes=60.0)
    assert comparable(folder) == comparable(whole.folder)


def test_attempt_killed_at_any_moment_goes_on_as_if_nothing_had_been(
    tmp_path: Path,
) -> None:
    # 30 steps, with scores and checkpoints after 10 and 20, and a checkpoint amid an evaluation's
    # losses after 25.
    config = small_config("cser", CSER, batch_size=26, evaluation={"per_epoch": 3})
    whole = job_for(config, tmp_path / "whole")
    with killed_at(10**9) as changes:
        assert attempt_stacked(whole)
    # A heartbeat more or less makes the number differ a little from attempt to attempt.
    last = len(changes) - 1
    for moment in [
        *random.Random(SEED).sample(range(last), 16),
        last - 2,
        last - 1,
        last,
    ]:
        broken = job_for(config, tmp_path / str(moment))
        with killed_at(moment), suppress(Killed):
            attempt_stacked(broken)
        if not is_done(broken.folder):
            done(config, tmp_path / str(moment))
        assert comparable(broken.folder) == comparable(whole.folder), (
            moment,
            changes[moment],
        )
        hidden = [path.name for path in broken.folder.rglob(".*")]
        assert not hidden
        shutil.rmtree(broken.folder)
