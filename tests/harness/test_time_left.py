"""The time left of a launch: there from the first seconds, corrected by what is seen, explained where it rises."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from harness.cli.progress import PlainDisplay
from harness.plan.plan import make_plan
from harness.plan.rows import PlannedRun
from harness.records.store import Heartbeat
from harness.spec_file import load_spec
from harness.workers import time_left
from harness.workers.launch import Progress
from harness.workers.time_left import TimeLeft, expected_step_seconds
from tests.harness.support import command, environment, small_config, small_spec, write_spec

STEPS = 40
IMAGES = 40
"""Of a step, all workers together."""


class Clock:
    """Stands in for the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time_left.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run(row: str = "a") -> PlannedRun:
    return PlannedRun(row, row, 1, small_config())


def beat(step: int, step_seconds: float) -> Heartbeat:
    given: dict[str, Any] = {"attempt": "a", "time": 0.0, "num_steps": STEPS, "epoch": 0.0, "loss": None}
    rate = IMAGES / step_seconds
    return Heartbeat(**given, step=step, accuracy=None, images_per_second=rate, megabytes_sent=0.0, seconds_left=None)


def launch_of(expected: dict[str, float], places: int = 2) -> TimeLeft:
    left = TimeLeft(places)
    left.expected = expected
    return left


def test_before_anything_is_seen_it_is_what_dry_steps_say(clock: Clock) -> None:
    left = launch_of({"a": 1.0, "b": 2.0})
    assert left.update([run("b"), run("b")], [(run("a"), None)]) is None
    assert left.seconds == (STEPS + 2 * 2 * STEPS) / 2
    clock.now += 30.0
    assert left.seconds == (STEPS + 2 * 2 * STEPS) / 2 - 30.0


def test_a_run_cannot_be_divided(clock: Clock) -> None:
    left = launch_of({"a": 1.0}, places=8)
    left.update([], [(run(), None)])
    assert left.seconds == STEPS


def test_what_is_seen_of_one_row_corrects_all_and_a_rise_is_explained(clock: Clock) -> None:
    left = launch_of({"a": 1.0, "b": 1.0}, places=1)
    left.update([run("b")], [(run("a"), None)])
    assert left.seconds == 2 * STEPS
    clock.now += 20.0
    said = left.update([run("b")], [(run("a"), beat(10, 2.0))])
    # Both take twice as long as was expected: 30 steps of one and 40 of the other.
    assert left.seconds == 70 * 2.0
    assert said == "about 2 min 40 s in all, not 1 min 20 s: a step of b takes 2 s where 1 s was expected"
    clock.now += 20.0
    assert left.update([run("b")], [(run("a"), beat(20, 2.0))]) is None
    assert left.seconds == 60 * 2.0


def test_a_fall_and_small_rises_go_without_a_word_but_not_their_sum(clock: Clock) -> None:
    left = launch_of({"a": 2.0}, places=1)
    said = []
    for step, seconds in ((0, 2.0), (5, 1.0), (10, 1.08), (15, 1.16), (20, 1.24)):
        clock.now += 5 * seconds if step else 0.0
        said.append(left.update([], [(run("a"), beat(step, seconds) if step else None)]))
    assert [bool(each) for each in said] == [False, False, False, True, False]


def test_where_nothing_is_expected_the_first_steps_say(clock: Clock) -> None:
    left = launch_of({})
    left.update([run("b")], [(run("a"), None)])
    assert left.seconds is None
    left.update([run("b"), run("b")], [(run("a"), beat(10, 0.5))])
    assert left.seconds == pytest.approx((30 + 40 + 40) * 0.5 / 2)


def test_runs_that_ended_count_with_all_that_they_took(clock: Clock) -> None:
    left = launch_of({"a": 1.0}, places=1)
    left.update([run(), run()], [])
    left.ended(run(), 3.0 * STEPS)
    clock.now += 3.0 * STEPS
    assert left.update([run()], []) is not None
    assert left.seconds == 3.0 * STEPS


def test_dry_steps_give_what_is_expected_of_rows(tmp_path: Path) -> None:
    runs = make_plan(load_spec(write_spec(tmp_path, small_spec())), tmp_path).runs
    expected = expected_step_seconds(runs, "cpu", "stacked", 1)
    assert set(expected) == {"sgd", "cser", "ef_sgd"} and all(0 < each < 1 for each in expected.values())
    assert expected_step_seconds(runs, "cuda", "processes", 1) == {}


def test_lines_say_what_is_left_and_which_runs_start(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainDisplay()
    display.update(Progress(0, 6, {"a seed 1": None}, 75.0))
    display.say("about 2 min in all")
    assert capsys.readouterr().out == "0 of 6 runs done, 1 min 15 s left; a seed 1: starting\nabout 2 min in all\n"


def test_something_is_said_before_torch_is_loaded(tmp_path: Path) -> None:
    """Time enough on a machine that does much else; alone it is a fifth of a second."""
    path = write_spec(tmp_path, small_spec())
    process = subprocess.Popen(
        command("run", path), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        began = time.monotonic()
        assert process.stdout.readline() == f"{path}: planning\n"
        said = time.monotonic() - began
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    finally:
        process.kill()
        process.wait()
    assert said < 10.0
    assert "libtorch" not in maps or said < 2.0
