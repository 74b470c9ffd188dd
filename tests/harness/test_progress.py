"""How far a command is: the time left, a bar on a terminal that leaves nothing behind, lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import time
from datetime import datetime
from pathlib import Path

import pytest

from cser_bench.harness.cli import progress
from cser_bench.harness.cli.exits import INTERRUPTION
from cser_bench.harness.cli.paths import report_text, shortest
from cser_bench.harness.cli.progress import left_words, seconds_left, shown
from cser_bench.harness.plan.plan import make_plan
from cser_bench.harness.records.store import Heartbeat, write_record
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.workers.launch import launch, steps_of
from tests.harness.support import (
    CommandLine,
    Quiet,
    Table,
    changed,
    command,
    environment,
    launch_options,
    only,
    small_spec,
    write_spec,
)

pytestmark = pytest.mark.whole

NOON = datetime(2026, 5, 4, 12, 0)


# The time that is left


def test_the_rest_takes_as_long_at_the_pace_so_far() -> None:
    left = seconds_left(done=30, left=90, seconds=60.0)
    assert left == pytest.approx(180.0)
    without_pace = seconds_left(done=0, left=90, seconds=60.0)
    too_early = seconds_left(done=1, left=90, seconds=0.1)
    assert without_pace is None, "nothing shows a pace"
    assert too_early is None, "too short a time"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, ""),
        (40.0, "; about 40 s left, until 12:00"),
        (720.0, "; about 12 min left, until 12:12"),
        (4.5 * 3600, "; about 4.5 h left, until 16:30"),
        (13 * 3600, "; about 13.0 h left, until 05 May, 01:00"),
        (4 * 86400, "; about 4.0 days left, until 08 May, 12:00"),
    ],
)
def test_it_is_said_how_long_and_until_when(seconds: float | None, said: str) -> None:
    assert left_words(seconds, NOON) == said


def test_where_runs_may_be_added_the_time_is_a_lower_bound_without_an_end() -> None:
    assert left_words(720.0, NOON, can_grow=True) == "; at least 12 min left"


def test_steps_are_those_of_runs_that_are_done_and_of_heartbeats(
    tmp_path: Path,
) -> None:
    """Four runs of 40 steps: one is done, one has a heartbeat, and two have not begun."""
    spec = small_spec()
    spec["rows"] = spec["rows"][:2]
    plan = make_plan(load_spec(write_spec(tmp_path, spec)), tmp_path)
    runs = list(plan.by_id.values())
    beat = Heartbeat(
        attempt="made up",
        time=0.0,
        step=25,
        num_steps=40,
        images_per_second=1.0,
        seconds_left=1.0,
    )
    folder = tmp_path / "small" / runs[1].run_id
    folder.mkdir(parents=True)
    write_record(folder / "heartbeat.json", beat)
    counted = steps_of(plan, tmp_path, runs[1:])
    assert counted == (40 + 25, 160)
    assert steps_of(plan, tmp_path, []) == (160, 160)


def test_a_launch_says_how_many_of_its_runs_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cser_bench.harness.workers.launch.PROGRESS_SECONDS", 0.0)
    plan = make_plan(
        load_spec(write_spec(tmp_path, only(small_spec(), "sgd"))), tmp_path
    )
    calls: list[tuple[float, float, str]] = []
    num_runs = len(plan.by_id)
    assert (
        launch(
            plan,
            launch_options(tmp_path, jobs=1),
            Quiet(),
            lambda *call: calls.append(call),
        )
        == 0
    )
    total = 40 * num_runs
    assert calls[0] == (0, total, f"0 of {num_runs} runs done, 1 on")
    assert {call[1] for call in calls} == {total}
    assert all(call[0] <= total for call in calls)


# Where there is no terminal


def test_without_a_terminal_lines_come_thirty_seconds_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with shown() as said:
        for done in range(101):
            said(done, 100, f"{done} of 100")
            clock[0] += 1.0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" s left")[0] for line in lines] == [
        "30 %: 30 of 100; about 70",
        "60 %: 60 of 100; about 40",
        "90 %: 90 of 100; about 10",
    ]


def test_what_was_done_before_the_command_shows_no_pace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """90 of 100 steps were done; 5 more took 50 seconds, so the other 5 take 50."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with shown() as said:
        said(90, 100, "on")
        clock[0] = 50.0
        said(95, 100, "on")
    assert "95 %: on; about 50 s left" in capsys.readouterr().out


# On a terminal


def screen(output: str) -> list[str]:
    """The lines that a terminal shows after this output, without those that are empty.

    Colours and the cursor's look are left out.
    """
    lines = [""]
    row = 0
    column = 0
    for token in re.findall(r"\x1b\[[?\d;]*[a-zA-Z]|[^\x1b]", output):
        if token == "\x1b[2K":
            lines[row] = ""
        elif match := re.fullmatch(r"\x1b\[(\d+)A", token):
            row -= int(match[1])
        elif token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif not token.startswith("\x1b"):
            line = lines[row].ljust(column)
            lines[row] = line[:column] + token + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def on_terminal(
    words: list[str], folder: Path, ctrl_c_at: str | None = None
) -> tuple[int, str]:
    """The exit code of a command on a terminal of its own, and all that it wrote there.

    Ctrl-C is pressed when these words are there.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        wide = environment() | {"TERM": "xterm", "COLUMNS": "200"}
        os.execve(words[0], words, wide)
    output = b""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        try:
            output += os.read(terminal, 65536)
        except OSError:  # Linux says so at the end
            break
        if ctrl_c_at is not None and ctrl_c_at in output.decode(errors="replace"):
            ctrl_c_at = None
            os.write(terminal, b"\x03")
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), output.decode()


def long_spec(folder: Path) -> Path:
    """One run of 12,000 steps."""
    spec: Table = changed(only(small_spec(), "sgd"), "training.num_epochs", 300)
    return write_spec(folder, changed(spec, "statistics.seeds", [1]))


def test_a_terminal_shows_a_bar_and_in_the_end_the_lines_alone(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, only(small_spec(), "sgd"))
    words = command("run", path, "--jobs", "1")
    code, output = on_terminal(words, tmp_path)
    assert code == 0
    assert re.search(r"\d+ % \d of \d runs done, 1 on", output)
    results = tmp_path / "elsewhere"
    elsewhere = cli.out("run", path, "--jobs", "1", "--results", results)
    plainly = elsewhere.replace(f" --results {tmp_path / 'elsewhere'}", "")
    plainly = plainly.replace(shortest(tmp_path / "elsewhere"), "results")
    assert screen(output) == [
        line.rstrip() for line in plainly.splitlines() if line.strip()
    ]
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l"), (
        "the cursor is there"
    )


def test_ctrl_c_leaves_sentences_and_no_bar_and_the_next_call_goes_on(
    tmp_path: Path,
) -> None:
    words = command("run", long_spec(tmp_path), "--jobs", "1")
    for _ in range(2):
        code, output = on_terminal(words, tmp_path, ctrl_c_at="s left")
        assert code == 130
        planning, stopping, ended, last = screen(output)
        assert planning.endswith("planning")
        assert stopping.startswith("stopping: ")
        assert re.fullmatch(
            r"\[0/1\] sgd seed 1: stopped: asked to stop; saved at .*", ended
        )
        assert last == INTERRUPTION
        assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    [run_json] = tmp_path.glob("results/small/*/run.json")
    assert '"resumed_from_step": 0' in run_json.read_text()
    resumed = re.findall(r'"resumed_from_step": [1-9]', run_json.read_text())
    assert len(resumed) == 1


# Where the report lies


def test_a_path_is_relative_where_that_is_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "results" / "small" / "report.md"
    assert report_text(path).splitlines() == [
        "  report: results/small/report.md, results/small/report.pdf, results/small/report.html",
        "  pictures: results/small/figures/",
    ]
    assert shortest(Path("/r/report.md")) == "/r/report.md"


def test_run_and_report_end_with_where_the_report_lies(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_spec(tmp_path, small_spec())
    where = report_text(tmp_path / "results" / "small" / "report.md")
    run = cli.out("run", path)
    assert run.endswith(f"`python -m harness report {path}` writes:\n{where}\n")
    assert cli.out("report", path).endswith(f"{where}\n")
    for line in where.splitlines():
        _, _, names = line.partition(": ")
        for named in names.split(", "):
            assert Path(named).exists(), named
