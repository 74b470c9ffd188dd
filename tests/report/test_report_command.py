"""The command: exit statuses, one-sentence messages, no traceback for a user's mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from report.__main__ import main
from report.frame import read_frames
from tests.report.made_up import DESIGN
from tests.report.synthetic import make_experiment


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A small experiment that a test may damage."""
    folder = tmp_path / "small"
    make_experiment(folder, replace(DESIGN, methods=DESIGN.methods[:1], evaluations=2))
    return folder


def _first_run(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if (path / "result.json").exists())


def _fails(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, *words: str) -> None:
    assert main(arguments) == status
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and "Traceback" not in message
    for word in words:
        assert word in message


def test_no_such_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _fails(capsys, [str(tmp_path / "nowhere")], 2, "nowhere", "give the folder")


def test_no_records(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _fails(capsys, [str(tmp_path)], 2, "no experiment.json")


def test_no_such_tuning(capsys: pytest.CaptureFixture[str], records: Path) -> None:
    _fails(capsys, [str(records), "--tuning", str(records / "absent")], 2, "absent")


def test_unknown_argument(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path), "--nonsense"])
    assert error.value.code == 2


@pytest.mark.parametrize("name", ["run.json", "result.json", "events.jsonl"])
def test_a_damaged_record_is_named(capsys: pytest.CaptureFixture[str], records: Path, name: str) -> None:
    path = _first_run(records) / name
    path.write_text("{torn\n" + path.read_text())
    _fails(capsys, [str(records)], 1, str(path), "damaged")


def test_a_record_of_another_version(capsys: pytest.CaptureFixture[str], records: Path) -> None:
    path = records / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    _fails(capsys, [str(records)], 1, str(path), "version 99")


def test_a_run_in_another_runs_folder(capsys: pytest.CaptureFixture[str], records: Path) -> None:
    path = _first_run(records) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run_id": "other"}))
    _fails(capsys, [str(records)], 1, "result.json", "belongs to run")


def test_done_without_a_score(capsys: pytest.CaptureFixture[str], records: Path) -> None:
    path = _first_run(records) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test_accuracy": None, "status": "done"}))
    _fails(capsys, [str(records)], 1, str(path), "no accuracy")


def test_output_is_a_file(capsys: pytest.CaptureFixture[str], records: Path) -> None:
    _fails(capsys, [str(records), "--output", str(records / "experiment.json")], 1, "experiment.json", "--output")


def test_a_torn_last_event_is_dropped(records: Path) -> None:
    path = _first_run(records) / "events.jsonl"
    path.write_text(path.read_text() + '{"step": 12')
    assert len(read_frames(records).scores)


def test_unplanned_folders_are_counted(records: Path) -> None:
    run = _first_run(records)
    stray = records / "stray"
    stray.mkdir()
    (stray / "run.json").write_text((run / "run.json").read_text())
    assert read_frames(records).unplanned == 1


def test_help_and_no_torch() -> None:
    """Building a report loads nothing of torch; --help names the exit statuses."""
    code = "import sys, report.accuracy_report, report.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = subprocess.run([sys.executable, "-m", "report", "--help"], capture_output=True, text=True, check=True)
    assert "exit status" in done.stdout and "--tuning" in done.stdout


def test_a_methods_name_is_its_label(records: Path) -> None:
    path = records / "experiment.json"
    plan = json.loads(path.read_text())
    plan["rows"][1] |= {"label": "CSER 64", "ratio": 64}
    path.write_text(json.dumps(plan))
    assert read_frames(records).rows["label"][1] == "CSER 64"
