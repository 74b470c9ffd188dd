"""Ctrl-C, SIGTERM, two commands at once, replaced attempts: what is on is saved, nothing is done
twice or mixed."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cser_bench.harness.plan.plan import Plan, make_plan
from cser_bench.harness.records.run_lock import owned
from cser_bench.harness.records.state import judge, look, saved_step
from cser_bench.harness.records.store import (
    Failure,
    Heartbeat,
    read_if_whole,
    read_record,
    read_run,
)
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.train import train
from cser_bench.harness.workers.attempt import attempt_stacked
from cser_bench.harness.workers.launch import launch
from cser_bench.harness.workers.processes import Interrupted
from tests.harness.support import (
    CSER,
    ROOT,
    Quiet,
    attempt_in_threads,
    changed,
    command,
    comparable,
    done,
    environment,
    job_for,
    launch_options,
    only,
    small_config,
    small_spec,
    write_spec,
)

# Processes that tests start ignore it if the tests run in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = 300
"""Epochs of a run that is surely on when it is stopped: 12,000 steps."""


def planned(folder: Path) -> tuple[Plan, Path]:
    """A plan of one long run, and the run's folder."""
    table = only(small_spec(), "cser")
    table = changed(table, "training.num_epochs", LONG)
    spec = load_spec(write_spec(folder, table))
    plan = make_plan(spec, folder / "results")
    return plan, folder / "results" / "small" / plan.runs[0].run_id


WATCHING = """
import signal, time
from cser_bench.harness.workers.processes import noticed, stop_with_launcher
with noticed() as flag:
    stop_with_launcher()
    print("ready", flush=True)
    while not flag.stop_requested():
        time.sleep(0.05)
print(flag.number, flush=True)
"""
LAUNCHING = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


def test_a_process_whose_launcher_is_killed_is_asked_to_stop() -> None:
    """As torchrun's workers are; before, they trained on."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHING, WATCHING],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "ready\n"
    launcher.kill()
    assert launcher.communicate(timeout=60)[0] == f"{signal.SIGTERM.value}\n"


def stop_as_it_trains(
    folder: Path, number: signal.Signals, freezes: bool = False
) -> None:
    """Send this process a signal as soon as the run of this folder has a new heartbeat.

    With `freezes` the run's processes cannot save, and the signal comes twice.
    """
    before = read_if_whole(folder / "heartbeat.json", Heartbeat)

    def strike() -> None:
        while read_if_whole(folder / "heartbeat.json", Heartbeat) in (None, before):
            time.sleep(0.01)
        for each in multiprocessing.active_children() if freezes else ():
            os.kill(each.pid or 0, signal.SIGSTOP)
        for _ in range(1 + freezes):
            os.kill(os.getpid(), number)
            time.sleep(1.0)

    threading.Thread(target=strike, daemon=True).start()


@pytest.mark.whole
@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", ["stacked", "processes"])
def test_stop_saves_within_a_step_and_the_next_command_goes_on_from_there(
    workers: str, tmp_path: Path
) -> None:
    plan, folder = planned(tmp_path)
    number = signal.SIGTERM if workers == "stacked" else signal.SIGINT
    display = Quiet()
    stop_as_it_trains(folder, number)
    options = launch_options(
        tmp_path / "results", workers, jobs=1, checkpoint_minutes=60.0
    )  # type: ignore[arg-type]
    with pytest.raises(Interrupted) as caught:
        launch(plan, options, display)
    assert caught.value.exit_code == 128 + number
    step = saved_step(folder)
    assert display.ends == {
        "cser 1": f"stopped: asked to stop; saved at step {step} of {40 * LONG}"
    }
    stopping = [said for said in display.said if said.startswith("stopping")]
    assert len(stopping) == 1
    assert judge(look(folder)) == (
        "stopped",
        f"asked to stop; saved at step {step} of {40 * LONG}",
    )

    stop_as_it_trains(folder, number)
    with pytest.raises(Interrupted):
        launch(plan, options, display)
    assert [each.resumed_from_step for each in read_run(folder).run.attempts] == [
        0,
        step,
    ]


@pytest.mark.whole
def test_stopped_and_called_again_gives_the_same_as_undisturbed(tmp_path: Path) -> None:
    """Pairs of sentences, by AdamW."""
    small = {"width": 16, "num_heads": 2, "num_layers": 1, "feedforward": 16}
    own = {
        "task": {"name": "cmudict", "num_train": 1_600, "held_out": 100},
        "model": {"name": "transformer", "options": small},
    }
    own |= {"local_step": "adamw", "momentum": 0.0, "learning_rate": 0.003}
    config = small_config("cser", CSER, num_epochs=3, **own)
    whole = done(config, tmp_path / "whole", checkpoint_minutes=60.0)
    # Stacked workers stop at the very step at which they are asked to.
    for steps in (1, 33, 60):
        asked = iter(range(steps - 1))
        job = job_for(config, tmp_path / "stopped", checkpoint_minutes=60.0)
        assert not attempt_stacked(job, lambda asked=asked: next(asked, None) is None)  # type: ignore[misc]
    folder = tmp_path / "stopped" / whole.folder.name
    record = done(config, tmp_path / "stopped")
    resumed = [each.resumed_from_step for each in record.run.attempts]
    assert resumed == [0, 1, 34, 94]
    assert comparable(folder) == comparable(whole.folder)


def test_the_second_signal_ends_at_once_a_run_that_cannot_save(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path)
    display = Quiet()
    stop_as_it_trains(folder, signal.SIGTERM, freezes=True)
    with pytest.raises(Interrupted) as caught:
        launch(
            plan,
            launch_options(tmp_path / "results", jobs=1, checkpoint_minutes=60.0),
            display,
        )
    assert caught.value.exit_code == 143
    assert len(display.said) == 1
    assert not display.ends
    assert not multiprocessing.active_children()
    assert not (folder / "checkpoint").exists()
    assert judge(look(folder))[0] == "stale"


# Ctrl-C before a run is on


STRIKE = """
import os, signal, sys

class Striker:
    def find_spec(self, name, path=None, target=None):
        here = "fork server" if sys.argv[:1] == ["-c"] else "command"
        if (here, name) == (WHERE, MODULE):
            sys.meta_path.remove(self)
            os.killpg(0, signal.SIGINT)

sys.meta_path.insert(0, Striker())
"""
"""Sends the signal to all processes of the command, as a terminal does, when one of them begins to
load a module."""

MOMENTS = [
    ("command", "cser_bench.harness.cli"),
    ("command", "numpy"),
    ("command", "torch.multiprocessing.spawn"),
    ("fork server", "torch"),
]
"""Before all, in the first module of an extension, after torch, and in another process."""


@pytest.mark.whole
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("where", "module"), MOMENTS, ids=[": ".join(moment) for moment in MOMENTS]
)
def test_ctrl_c_while_modules_are_loaded_is_one_sentence(
    where: str, module: str, tmp_path: Path
) -> None:
    planned(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(
        STRIKE.replace("WHERE", repr(where)).replace("MODULE", repr(module))
    )
    surroundings = environment()
    surroundings["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{surroundings['PYTHONPATH']}"
    words = command("run", tmp_path / "spec.toml", "--results", tmp_path / "results")
    ended = subprocess.run(
        words,
        cwd=tmp_path,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=280,
        start_new_session=True,
    )
    assert ended.returncode == 130
    assert (
        ended.stderr
        == "interrupted: what was recorded is kept; the same command goes on from here\n"
    )


# Two commands on one folder


def test_run_that_another_command_did_while_its_lock_was_waited_for_is_not_done_again(
    tmp_path: Path,
) -> None:
    first = job_for(small_config(), tmp_path)
    second = job_for(small_config(), tmp_path)
    assert attempt_stacked(first)
    result = (first.folder / "result.json").read_bytes()
    with ThreadPoolExecutor(1) as pool, owned(first.folder):
        waiting = pool.submit(attempt_stacked, second)
        time.sleep(0.3)
        assert not waiting.done()
    assert waiting.result()
    assert (first.folder / "result.json").read_bytes() == result
    assert len(read_run(first.folder).run.attempts) == 1


# Workers that stop together


CONFIG = small_config("cser", CSER)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    job = job_for(CONFIG, tmp_path_factory.mktemp("whole"))
    assert attempt_in_threads(job)
    return job.folder


@pytest.mark.parametrize(
    ("seconds", "rank", "call", "step"),
    [
        (60.0, 1, 1, 1),
        (60.0, 1, 20, 20),
        (60.0, 0, 21, 25),
        (60.0, 0, 22, None),
        (0.0, 1, 33, 33),
    ],
)
def test_all_workers_stop_at_one_step_and_quick_steps_are_not_interrupted_by_questions(
    seconds: float,
    rank: int,
    call: int,
    step: int | None,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until the first look, at step 20, workers talk at each step; then, where steps are quick, at
    looks: at 25, 40."""
    monkeypatch.setattr(train, "STOP_SECONDS", seconds)
    job = job_for(CONFIG, tmp_path, checkpoint_minutes=60.0)
    asked = itertools.count(1)
    has_result = attempt_in_threads(
        job, lambda own: lambda: own == rank and next(asked) >= call
    )
    assert has_result == (step is None)
    if step:
        failure = read_record(job.folder / "failure.json", Failure)
        assert (failure.kind, failure.message) == (
            "preempted",
            f"asked to stop; saved at step {step} of 40",
        )
        assert attempt_in_threads(job_for(CONFIG, tmp_path))
        last = read_run(job.folder).run.attempts[-1]
        assert last.resumed_from_step == step
    assert comparable(job.folder) == comparable(whole)


# Attempts that were replaced


def test_attempt_that_is_replaced_in_the_middle_stops_and_the_new_one_is_whole(
    whole: Path, tmp_path: Path
) -> None:
    old = job_for(CONFIG, tmp_path)
    new = job_for(CONFIG, tmp_path)
    run_json = old.folder / "run.json"
    asked = itertools.count(1)

    def replaced() -> bool:
        """What the successor does on another machine, while the old attempt is asked whether to
        stop."""
        if next(asked) == 10:
            run = json.loads(run_json.read_text())
            run["attempts"].append(
                run["attempts"][-1] | {"attempt": new.attempt.attempt}
            )
            run_json.write_text(json.dumps(run))
        return False

    assert not attempt_in_threads(
        old, lambda rank: replaced if rank == 0 else lambda: False
    )
    written = {path.name for path in old.folder.glob("*.json*")}
    assert not written & {"result.json", "events.jsonl", "failure.json"}
    assert attempt_in_threads(new)
    assert comparable(new.folder) == comparable(whole)
