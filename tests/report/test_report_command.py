"""The command: exit statuses, one-sentence messages, no traceback for a user's mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from cser_bench.__main__ import main
from cser_bench.report.frame import read_frames
from tests.report.holed import change, run_of, unpacked


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A small experiment that a test may damage."""
    return unpacked(tmp_path)


def _fails(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, *words: str
) -> None:
    assert main(["report", *arguments]) == status
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["nowhere", "give the path"]),
        (
            ["fashion_mnist", "--results", "nowhere"],
            ["nowhere/fashion_mnist", "begin them by"],
        ),
        (["fashion_mnist", "--results", "empty"], ["no experiment.json"]),
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
    Path("empty/fashion_mnist").mkdir(parents=True)
    _fails(capsys, arguments, 2, *words)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("events.jsonl", {}, ["events.jsonl", "damaged"]),
        ("../experiment.json", {"version": 99}, ["experiment.json", "version 99"]),
        ("run.json", {"run_id": "other"}, ["result.json", "belongs to run"]),
        (
            "result.json",
            {"test_accuracy": None, "status": "done", "metrics": None},
            ["result.json", "damaged"],
        ),
    ],
)
def test_a_record_that_is_damaged_or_cannot_be_is_named(
    capsys: pytest.CaptureFixture[str],
    records: Path,
    name: str,
    fields: dict[str, object],
    words: list[str],
) -> None:
    path = run_of(records, "sgd", 1) / name
    if fields:
        change(path, **fields)
    else:
        path.write_text("{torn\n" + path.read_text())
    _fails(capsys, [str(records)], 1, *words)


def test_output_is_a_file(capsys: pytest.CaptureFixture[str], records: Path) -> None:
    assert (
        main(["report", str(records), "--output", str(records / "experiment.json")])
        == 2
    )
    assert "experiment.json" in capsys.readouterr().err


def test_a_torn_last_event_is_dropped_and_unplanned_folders_are_counted(
    records: Path,
) -> None:
    run = run_of(records, "sgd", 1)
    (run / "events.jsonl").write_text(
        (run / "events.jsonl").read_text() + '{"step": 12'
    )
    (records / "stray").mkdir()
    text = (run / "run.json").read_text()
    (records / "stray" / "run.json").write_text(text)
    frames = read_frames(records)
    assert len(frames.scores)
    assert frames.unplanned == 1
