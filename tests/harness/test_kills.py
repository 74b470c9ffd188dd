"""Killed at any moment: no write is taken for more than it is, and every continuation is the uninterrupted run."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.plan.plan import Plan, make_plan
from harness.records.state import is_done
from harness.records.store import Failure, read_record, read_run
from harness.spec_file import load_spec
from harness.workers import launch, run_process
from harness.workers.attempt import attempt_stacked
from tests.harness.support import (
    BLOCK,
    CSER,
    Killed,
    Quiet,
    changed,
    comparable,
    job_for,
    killed_at,
    launch_options,
    only,
    settings_of,
    small_config,
    small_spec,
    write_spec,
)

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
@pytest.mark.parametrize("name", ["mcser", "powersgd"])
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
        failures, said = launched(plan, folder.parents[1], killer)
        kills += killer is not None and killer.struck()
        if is_done(folder):
            assert (failures, said) == (0, None)
            assert comparable(folder) == comparable(whole.folder)
            resumed = [attempt.resumed_from_step for attempt in read_run(folder).run.attempts]
            assert resumed == sorted(resumed)
            finished += 1
            if kills == KILLS:
                break
        else:
            assert failures == 1 and killer is not None and killer.struck(), said
            failure = read_record(folder / "failure.json", Failure)
            assert failure.kind == "oom" and "was killed" in failure.message and "batch" in failure.message


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
