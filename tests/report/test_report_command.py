"""The command: exit statuses, one-sentence messages, no traceback for a user's mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from report.__main__ import main
from report.frame import read_frames
from tests.report.holed import change, run_of, unpacked


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A small experiment that a test may damage."""
    return unpacked(tmp_path)


def _first_run(folder: Path) -> Path:
    return run_of(folder, "sgd", 1)


def _fails(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, *words: str) -> None:
    assert main(arguments) == status
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and "Traceback" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["nowhere", "give the folder"]),
        (["."], ["no experiment.json"]),
        (["cmudict", "--tuning", "absent"], ["absent"]),
        (["cmudict", "--accuracy", "cmudict"], ["--accuracy", "leave it out"]),
        (["study", "--frames"], ["--frames", "leave it out"]),
        (["study", "--tuning", "cmudict"], ["--tuning", "leave it out"]),
    ],
)
def test_a_mistake_is_a_sentence(
    capsys: pytest.CaptureFixture[str],
    records: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(records.parent)
    Path("study").mkdir()
    Path("study/study.json").touch()
    _fails(capsys, arguments, 2, *words)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        *((name, {}, [name, "damaged"]) for name in ("run.json", "result.json", "events.jsonl")),
        ("../experiment.json", {"version": 99}, ["experiment.json", "version 99"]),
        ("run.json", {"run_id": "other"}, ["result.json", "belongs to run"]),
        ("result.json", {"test_accuracy": None, "status": "done", "metrics": None}, ["result.json", "no accuracy"]),
    ],
)
def test_a_record_that_is_damaged_or_cannot_be_is_named(
    capsys: pytest.CaptureFixture[str], records: Path, name: str, fields: dict[str, object], words: list[str]
) -> None:
    path = _first_run(records) / name
    if fields:
        change(path, **fields)
    else:
        path.write_text("{torn\n" + path.read_text())
    _fails(capsys, [str(records)], 1, *words)


def test_output_is_a_file(capsys: pytest.CaptureFixture[str], records: Path) -> None:
    _fails(capsys, [str(records), "--output", str(records / "experiment.json")], 1, "experiment.json", "--output")


def test_a_torn_last_event_is_dropped_and_unplanned_folders_are_counted(records: Path) -> None:
    run = _first_run(records)
    (run / "events.jsonl").write_text((run / "events.jsonl").read_text() + '{"step": 12')
    (records / "stray").mkdir()
    (records / "stray" / "run.json").write_text((run / "run.json").read_text())
    frames = read_frames(records)
    assert len(frames.scores) and frames.unplanned == 1


def test_help_and_no_torch() -> None:
    """Building a report loads nothing of torch; --help names the exit statuses."""
    code = "import sys, report.accuracy_report, report.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = subprocess.run([sys.executable, "-m", "report", "--help"], capture_output=True, text=True, check=True)
    assert "exit status" in done.stdout and "--tuning" in done.stdout
