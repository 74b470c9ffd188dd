"""Killed at any moment: no write is taken for more than it is, and every continuation is the uninterrupted run."""

from __future__ import annotations

import os
import random
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import Collectives
from algorithms.registry import algorithms
from harness.plan.plan import Plan, make_plan
from harness.records.state import is_done
from harness.records.store import Failure, read_record, read_run
from harness.spec_file import load_spec
from harness.train import checkpoint
from harness.workers import launch, run_process
from harness.workers.attempt import attempt_stacked
from tests.harness.support import (
    BLOCK,
    CSER,
    Quiet,
    changed,
    comparable,
    job_for,
    launch_options,
    only,
    settings_of,
    small_config,
    small_spec,
    write_spec,
)
from tests.threads import run_workers

# Worker processes

KILLS = int(os.environ.get("CSER_TEST_KILLS", "1"))
"""Of each method; 20 for the whole test, which takes twenty times as long."""
SEED = int(os.environ.get("CSER_TEST_KILL_SEED", "1"))


def plan_for(algorithm: str, folder: Path) -> Plan:
    """One run of 40 steps by two workers, with a score and a checkpoint after every fourth."""
    row = {"row": algorithm, "label": algorithm, "algorithm": algorithm, "learning_rate": 0.05}
    spec = only(small_spec() | {"rows": [row | {"settings": settings_of(algorithm, BLOCK)}]}, algorithm)
    return make_plan(load_spec(write_spec(folder, changed(spec, "evaluation.per_epoch", 10))), folder)


@dataclass
class Killer:
    """Kills one process of the next run that starts, when its time has come."""

    rank: int
    delay_seconds: float
    victims: list[Any] = field(default_factory=list)

    def start(self, *arguments: Any) -> Any:
        active = launch_start(*arguments)
        victim = active.workers.context.processes[self.rank]
        timer = threading.Timer(self.delay_seconds, victim.kill)
        timer.daemon = True
        timer.start()
        self.victims.append(victim)
        return active

    def struck(self) -> bool:
        """Whether the kill came before the process had ended by itself."""
        return bool(self.victims[0].exitcode == -9)


launch_start = launch.start


def launched(plan: Plan, results: Path, killer: Killer | None = None) -> tuple[int, str | None]:
    """Failed runs of one launch with worker processes, and what was said of the run."""
    display = Quiet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "POLL_SECONDS", 0.005)
        # A worker that is alone at the meeting point hears of no death.
        patch.setattr(run_process, "GRACE_SECONDS", 1.0)
        if killer is not None:
            patch.setattr(launch, "start", killer.start)
        failures = launch.launch(plan, launch_options(results, "processes", jobs=1, checkpoint_minutes=0.0), display)
    return failures, next(iter(display.ends.values()), None)


@pytest.fixture(scope="module")
def duration(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that a run takes, once the process that others are forked from has loaded torch: of each method alike."""
    folder = tmp_path_factory.mktemp("warm")
    for number in range(2):
        started = time.monotonic()
        assert launched(plan_for("mcser", folder), folder / str(number)) == (0, None)
    return time.monotonic() - started


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", algorithms())
def test_a_worker_process_killed_at_random_moments_changes_nothing(name: str, duration: float, tmp_path: Path) -> None:
    plan = plan_for(name, tmp_path)
    (run,) = plan.runs
    whole = job_for(run.config, tmp_path / "whole", checkpoint_minutes=60.0)
    assert attempt_stacked(whole)

    moments = random.Random(f"{SEED} {name}")
    kills, finished = 0, 0
    while True:
        folder = tmp_path / f"broken-{finished}" / "small" / run.run_id
        killer = None
        if kills < KILLS:
            killer = Killer(moments.randrange(2), moments.uniform(0, duration))
            print(f"seed {SEED}, {name}: kill {kills + 1}: worker {killer.rank} after {killer.delay_seconds:.3f} s")
        failures, said = launched(plan, folder.parents[1], killer)
        kills += killer is not None and killer.struck()
        if is_done(folder):
            assert (failures, said) == (0, None)
            assert comparable(folder) == comparable(whole.folder)
            resumed = [attempt.resumed_from_step for attempt in read_run(folder).run.attempts]
            assert resumed == sorted(resumed)
            print(f"done after attempts that began at steps {resumed}")
            finished += 1
            if kills == KILLS:
                break
        else:
            assert failures == 1 and killer is not None and killer.struck(), said
            failure = read_record(folder / "failure.json", Failure)
            assert failure.kind == "oom" and "was killed" in failure.message and "batch" in failure.message


# Whatever moment


class Killed(BaseException):
    """Stands for the end of the process: no handler of exceptions stops it."""


MOMENTS = ("mkdir", "open", "fsync", "chmod", "replace", "unlink", "rmdir")
"""What changes the disk; writes are torn where they should be flushed."""


@contextmanager
def killed_at(moment: int) -> Iterator[list[str]]:
    """Inside, nothing reaches the disk from change number `moment` on, counted from 0; yields the changes so far."""
    done: list[str] = []
    lock = threading.Lock()

    def watched(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            with lock:
                if len(done) >= moment:
                    if name == "fsync" and stat.S_ISREG(os.fstat(arguments[0]).st_mode):
                        os.ftruncate(arguments[0], max(0, os.fstat(arguments[0]).st_size - 10))
                    done.append("killed")
                    raise Killed(f"killed before change {moment}, {name}")
                done.append(name)
            return act(*arguments, **options)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in MOMENTS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield done


def save(folder: Path, steps: list[int]) -> None:
    def work(collectives: Collectives) -> None:
        for step in steps:
            state = {"value": torch.full((100,), float(step)), "rank": collectives.rank}
            checkpoint.save(folder, step, state, collectives, "attempt")

    run_workers(work, 2)


def load(folder: Path) -> int | None:
    """The step that both workers find, each with its own whole state."""

    def work(collectives: Collectives) -> int | None:
        found = checkpoint.load(folder, collectives)
        if found is None:
            return None
        step, state = found
        assert state["rank"] == collectives.rank and state["value"].tolist() == [float(step)] * 100
        return step

    (step,) = set(run_workers(work, 2))
    return step


@pytest.mark.parametrize("before", [[], [5], [5, 10], [5, 10, 20]])
def test_checkpoint_killed_at_any_moment_is_the_one_before_or_the_new_one(before: list[int], tmp_path: Path) -> None:
    """The last case is a run that goes on from step 10 because 20 is damaged, and gets to 15 first."""
    found: list[int | None] = []
    done = ["killed"]
    while "killed" in done:
        folder = tmp_path / str(len(found))
        save(folder, before)
        if 20 in before:
            (folder / "step-000000020" / "rank-1.pt").write_bytes(b"damaged")
        with killed_at(len(found)) as done:
            try:
                save(folder, [15])
            except Killed:
                assert "killed" in done
        old = {0: None, 1: 5}.get(len(before), 10)
        found.append(load(folder))
        assert found[-1] in (old, 15)
        # What is left of it is in nobody's way.
        save(folder, [15])
        assert load(folder) == 15
        (folder / "step-000000015" / "rank-0.pt").unlink()
        assert load(folder) == old
        assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]
    # Two workers write in an order of their own, so the same moment may be one worker's or the other's.
    assert len(found) > 10 and (found[0], found[-1]) == (old, 15)


def test_attempt_killed_at_any_moment_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    # Of 30 steps, scores and checkpoints after 10 and 20, and a checkpoint amid an evaluation's losses after 25.
    config = small_config("cser", CSER, batch_size=26, evaluation={"per_epoch": 3})
    whole = job_for(config, tmp_path / "whole")
    with killed_at(10**9) as changes:
        assert attempt_stacked(whole)
    # A heartbeat more or less makes the number differ a little from attempt to attempt.
    last = len(changes) - 1
    for moment in [*random.Random(SEED).sample(range(last), 16), last - 2, last - 1, last]:
        broken = job_for(config, tmp_path / str(moment))
        with killed_at(moment), suppress(Killed):
            attempt_stacked(broken)
        if not is_done(broken.folder):
            assert attempt_stacked(job_for(config, tmp_path / str(moment)))
        assert comparable(broken.folder) == comparable(whole.folder), (moment, changes[moment])
        assert not [path.name for path in broken.folder.rglob(".*")]
        shutil.rmtree(broken.folder)
