"""Runs under torchrun: killed or stopped they go on from their checkpoints; a second command is
told of the first."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cser_bench.harness.plan.plan import Plan, make_plan
from cser_bench.harness.records.run_lock import owned
from cser_bench.harness.records.state import saved_step
from cser_bench.harness.records.store import read_run
from cser_bench.harness.spec.spec_file import load_spec
from tests.harness.support import (
    changed,
    command,
    comparable,
    done,
    environment,
    only,
    small_spec,
    write_spec,
)

PATIENCE_SECONDS = 120.0


def planned(folder: Path, num_epochs: int) -> Plan:
    """A plan of one run of two workers."""
    spec = changed(only(small_spec(), "cser"), "training.num_epochs", num_epochs)
    return make_plan(load_spec(write_spec(folder, spec)), folder)


def started(folder: Path, *options: str | Path) -> subprocess.Popen[str]:
    """The run of the spec in this folder, by two processes of torchrun; every look at the loss
    saves."""
    launcher = ["--standalone", "--nproc-per-node=2", *options, "-m", "harness"]
    run = [
        "run",
        folder / "spec.toml",
        "--results",
        folder,
        "--checkpoint-minutes",
        "0",
    ]
    words = command(*launcher, *run, module="torch.distributed.run")
    output = subprocess.PIPE
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment(),
        stdout=output,
        stderr=output,
        text=True,
        start_new_session=True,
    )


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The process ids of the workers, which are the launcher's only children."""
    return [
        int(word)
        for word in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        .read_text()
        .split()
    ]


def struck(
    folder: Path, run_folder: Path, strike: Callable[[subprocess.Popen[str]], None]
) -> tuple[int, str]:
    """Strike as soon as the run has a newer checkpoint; the step of the last one, and what was
    printed."""
    before = saved_step(run_folder) or 0
    launcher = started(folder)
    patience_ends = time.monotonic() + PATIENCE_SECONDS
    while (saved_step(run_folder) or 0) <= before:
        assert launcher.poll() is None
        assert time.monotonic() < patience_ends
        time.sleep(0.005)
    strike(launcher)
    out, err = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode
    return saved_step(run_folder) or 0, out + err


def kill_one(launcher: subprocess.Popen[str]) -> None:
    os.kill(ranks_of(launcher)[-1], signal.SIGKILL)


def kill_launcher(launcher: subprocess.Popen[str]) -> None:
    launcher.kill()


def terminate(launcher: subprocess.Popen[str]) -> None:
    launcher.send_signal(signal.SIGTERM)


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_run_that_was_killed_and_stopped_goes_on_to_the_same_bits(
    tmp_path: Path,
) -> None:
    [run] = planned(tmp_path, num_epochs=10).runs
    folder = tmp_path / "small" / run.run_id
    steps = [0]
    for strike in (kill_one, kill_launcher, terminate):
        step, words = struck(tmp_path, folder, strike)
        steps.append(step)
        if strike != kill_one:
            assert f"asked to stop; saved at step {step} of 400" in words
    last = started(tmp_path)
    _, err = last.communicate(timeout=PATIENCE_SECONDS)
    assert last.returncode == 0, err
    attempts = read_run(folder).run.attempts
    assert [attempt.resumed_from_step for attempt in attempts] == steps
    assert len({attempt.attempt for attempt in attempts}) == len(attempts)
    assert comparable(folder) == comparable(
        done(run.config, tmp_path / "whole", checkpoint_minutes=60.0).folder
    )


@pytest.mark.whole
def test_run_that_another_command_is_at_is_one_sentence_of_each_rank(
    tmp_path: Path,
) -> None:
    [run] = planned(tmp_path, num_epochs=1).runs
    with owned(tmp_path / "small" / run.run_id):
        second = started(tmp_path, "--redirects", "3", "--log-dir", tmp_path / "logs")
        second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 1
    # torchrun ends the other rank as soon as one has ended, at times before that could speak.
    words = [log.read_text() for log in tmp_path.glob("logs/*/attempt_0/*/stderr.log")]
    assert len(words) == 2
    assert set(words) - {""} == {f"error: another process is at run {run.run_id}\n"}


def ended_with(
    folder: Path, port: int, *own_words: tuple[str | Path, ...]
) -> list[tuple[int, str]]:
    """Exit code and errors of ranks that are started by hand, each by words of its own."""
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = []
    for rank, words in enumerate(own_words):
        numbers = {"RANK": str(rank), "WORLD_SIZE": str(len(own_words))}
        ranks.append(
            subprocess.Popen(
                command("run", *words, "--results", folder),
                cwd=folder,
                env=environment() | place | numbers,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ends = []
    for each in ranks:
        _, err = each.communicate(timeout=PATIENCE_SECONDS)
        ends.append((each.returncode, err))
    return ends


def test_ranks_with_another_spec_and_other_rows_are_told_what_differs(
    tmp_path: Path,
) -> None:
    spec = small_spec()
    path = write_spec(tmp_path, spec)
    folder = tmp_path / "other"
    folder.mkdir()
    other = write_spec(folder, changed(spec, "rows.1.learning_rate", 0.5))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    seeds = ("--seeds", "1")
    ends = ended_with(tmp_path, port, (path, *seeds), (other, "--rows", "cser", *seeds))
    said = (
        "error: the ranks were not given the same: rank 1 lacks run sgd seed 1, has run cser seed 1 "
        "learning_rate 0.5, rank 0 0.05, lacks run ef_sgd seed 1; start all ranks by the same "
        "command, with the same files\n"
    )
    assert ends == [(2, said), (2, said)]
    assert not (tmp_path / "small").exists()
