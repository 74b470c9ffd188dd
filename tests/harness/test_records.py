"""Records: torn, damaged and foreign files, and what kind of failure is written down."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import DistStoreError

from cser_bench.algorithms import CollectiveError
from cser_bench.harness.measures.metrics import metric_of, score_of
from cser_bench.harness.records import recorder, store
from cser_bench.harness.records.atomic import errors_naming
from cser_bench.harness.records.endings import write_failure
from cser_bench.harness.records.provenance import new_attempt
from cser_bench.harness.records.recorder import append_event, truncate_events
from cser_bench.harness.records.run_lock import LinkError, is_owned, owned
from cser_bench.harness.records.state import is_done
from cser_bench.harness.records.store import (
    Event,
    Failure,
    RecordError,
    read_events,
    read_record,
    read_run,
)
from cser_bench.harness.tasks import DataError
from cser_bench.harness.train.checkpoint import CheckpointError
from cser_bench.harness.workers.attempt import attempt_stacked, failure_kind
from tests.harness.support import (
    CSER,
    CommandLine,
    changed,
    comparable,
    job_for,
    shipped_run,
    small_config,
    small_spec,
    write_spec,
)


def event(step: int, loss: float = 1.5) -> Event:
    event = shipped_run()["events"][0]
    return Event(**event | {"step": step, "train_loss": loss})


def written(folder: Path, *steps: int) -> Path:
    path = folder / "events.jsonl"
    for step in steps:
        append_event(path, event(step))
    return path


def steps_of(path: Path) -> list[int]:
    return [each.step for each in read_events(path)]


@pytest.mark.parametrize(("before", "cut"), [(2, 1), (2, 2), (2, 40), (0, 40)])
def test_torn_last_line_is_dropped_and_repaired(
    before: int, cut: int, tmp_path: Path
) -> None:
    whole = list(range(1, before + 1))
    torn = before + 1
    path = written(tmp_path, *whole, torn)
    path.write_bytes(path.read_bytes()[:-cut])
    # A line that lacks nothing but its end is whole.
    expected = [*whole, torn] if cut == 1 else whole
    assert steps_of(path) == expected
    truncate_events(path, before)
    written(tmp_path, torn, torn + 1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [
        *whole,
        torn,
        torn + 1,
    ]


def test_damaged_middle_line_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, 1, 2, 3)
    lines = path.read_text().splitlines()
    torn = [lines[0], lines[1][:30], lines[2]]
    path.write_text("\n".join(torn) + "\n")
    with pytest.raises(
        RecordError,
        match=r"events.jsonl, line 2, is damaged .*; restore .* or delete the run's folder",
    ):
        read_events(path)


def test_repeated_steps_count_once_and_the_later_line_stands(tmp_path: Path) -> None:
    path = written(tmp_path, 1, 2)
    append_event(path, event(2, loss=7.0))
    append_event(path, event(3))
    assert steps_of(path) == [1, 2, 3]
    assert read_events(path)[1].train_loss == 7.0


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The folder of a run that is done, which may be damaged."""
    files = shipped_run()
    folder = tmp_path / files["run"]["run_id"]
    folder.mkdir()
    for name in ("run", "result"):
        text = store.record_text(files[name])
        (folder / f"{name}.json").write_text(text)
    lines = [store.event_line(event) for event in files["events"]]
    (folder / "events.jsonl").write_text("".join(lines))
    return folder


def changed_text(**changes: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | changes)


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "truncated": (
        lambda text: text[:200],
        "is damaged .* delete the file and run again",
    ),
    "no table": (lambda text: "[1]", "bad field .* delete the file and run again"),
    "missing field": (
        lambda text: text.replace('"num_steps"', '"steps"'),
        "bad field .*steps' .* delete the file",
    ),
    "newer version": (
        changed_text(version=2),
        "version 2, this program reads version 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_result_is_neither_done_nor_ignored(
    damage: str, run_folder: Path
) -> None:
    assert is_done(run_folder)
    act, message = DAMAGES[damage]
    path = run_folder / "result.json"
    path.write_text(act(path.read_text()))
    for read in (read_run, is_done):
        with pytest.raises(RecordError, match=message) as caught:
            read(run_folder)
        assert "result.json" in str(caught.value)


# Failures


FAILURES: list[tuple[BaseException, str]] = [
    (ZeroDivisionError("division by zero"), "bug"),
    (MemoryError(), "oom"),
    (
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
        "oom",
    ),
    (RuntimeError("CUDA error: out of memory"), "oom"),
    (
        RuntimeError(
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
        ),
        "oom",
    ),
    (CollectiveError("worker 0 waited 1 s in vain"), "communication"),
    (
        RuntimeError("[.../gloo/transport/tcp/pair.cc:5] Connection closed by peer"),
        "communication",
    ),
    (DistStoreError("wait timeout after 1000ms, keys: /device of 1"), "communication"),
    (DataError("train-images is damaged"), "data"),
    (CheckpointError("of another world size"), "data"),
    (RecordError("run.json is damaged"), "data"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk"),
    (PermissionError(errno.EACCES, "Permission denied"), "disk"),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "bug"),
]


@pytest.mark.parametrize(
    ("error", "kind"), FAILURES, ids=[repr(error)[:40] for error, _ in FAILURES]
)
def test_kinds_of_failure(error: BaseException, kind: str) -> None:
    assert failure_kind(error) == kind


def test_full_disk_is_recorded_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(path: Path, each: Event) -> None:
        if each.step == 40:
            with errors_naming(path), path.open("ab") as file:
                file.write(b'{"step": 40, "ep')
                raise OSError(errno.ENOSPC, "No space left on device")
        append_event(path, each)

    monkeypatch.setattr(recorder, "append_event", no_space)
    job = job_for(small_config("cser", CSER), tmp_path)
    assert not attempt_stacked(job)
    failure = read_record(job.folder / "failure.json", Failure)
    said = (
        f"No space left on device: {job.folder}/events.jsonl; make room or give permission, and "
        "call again"
    )
    assert failure.kind == "disk"
    assert failure.message == said
    monkeypatch.undo()
    undisturbed = job_for(small_config("cser", CSER), tmp_path / "undisturbed")
    for each in (job, undisturbed):
        assert attempt_stacked(each)
    assert comparable(job.folder) == comparable(undisturbed.folder)


@pytest.mark.parametrize(
    ("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)]
)
def test_a_record_is_as_readable_as_the_umask_says(
    mask: int, mode: int, run_folder: Path
) -> None:
    """As a file that is written in place is."""
    before = os.umask(mask)
    try:
        write_failure(run_folder, "x", "a", "oom", "message", "trace")
    finally:
        os.umask(before)
    assert stat.S_IMODE((run_folder / "failure.json").stat().st_mode) == mode


def test_the_first_cause_stands_but_for_who_looks_back(tmp_path: Path) -> None:
    for kind in ("communication", "oom", "bug"):
        write_failure(tmp_path, "x", "a", kind, f"the {kind}", "trace")  # type: ignore[arg-type]
    assert read_record(tmp_path / "failure.json", Failure).message == "the oom"
    write_failure(tmp_path, "x", "a", "node", "gave up", "", is_last_word=True)
    assert read_record(tmp_path / "failure.json", Failure).message == "gave up"
    write_failure(tmp_path, "x", "b", "bug", "another attempt's", "trace")
    assert read_record(tmp_path / "failure.json", Failure).attempt == "b"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_file_locks_everything_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with owned(tmp_path / "run"):
        assert is_owned(tmp_path / "run") is None
    write_failure(tmp_path / "run", "x", "a", "oom", "message", "trace")
    assert read_record(tmp_path / "run" / "failure.json", Failure).kind == "oom"


def test_a_lock_that_is_a_symbolic_link_is_refused_and_empties_nothing(
    tmp_path: Path,
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / "owner.lock"
    lock.symlink_to(precious)
    with (
        pytest.raises(LinkError, match=r"owner\.lock is a symbolic link"),
        owned(tmp_path / "run"),
    ):
        pass
    lock.unlink()
    lock.symlink_to(tmp_path / "new")
    with pytest.raises(LinkError), owned(tmp_path / "run"):
        pass
    assert precious.read_text() == "kept"
    assert not (tmp_path / "new").exists()
    # A file that is no link keeps what is in it too.
    lock.unlink()
    lock.write_text("kept")
    with owned(tmp_path / "run"):
        assert is_owned(tmp_path / "run")
    assert lock.read_text() == "kept"


def test_a_record_keeps_of_slurm_what_a_job_had_and_not_whose_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_job = {"SLURM_JOB_ID": "7", "SLURM_JOB_PARTITION": "v100", "SLURM_NTASKS": "2"}
    of_user = {
        f"SLURM_JOB_{name}": "x"
        for name in ("USER", "UID", "GID", "ACCOUNT", "NODELIST")
    }
    for name, value in (of_job | of_user).items():
        monkeypatch.setenv(name, value)
    attempt = new_attempt("slurm", "gloo", torch.device("cpu"))
    assert attempt.slurm == of_job


@pytest.mark.parametrize(
    ("name", "score"),
    [("accuracy", 0.9), ("loss", -1.5), ("phone_error_rate", 0.75), ("bleu", 0.3)],
)
def test_a_score_is_such_that_more_is_better(name: str, score: float) -> None:
    assert (
        score_of(0.9, 1.5, {"phone_error_rate": 0.25, "bleu": 0.3}, metric_of(name))
        == score
    )


# Bad data under the commands


def test_a_run_without_its_data_is_refused_in_one_sentence_before_it_starts(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    data = tmp_path / "data"
    data.mkdir()
    path = str(
        write_spec(tmp_path, changed(small_spec(), "task.name", "fashion_mnist"))
    )
    options = ["--data", data, "--results", tmp_path / "results"]
    said = cli.refused("run", path, *options, code=1)
    words = "train-images-idx3-ubyte.gz is missing"
    assert words in said
    assert "DATA=FOLDER" in said
    assert str(data) in said
    assert [each.name for each in (tmp_path / "results" / "small").iterdir()] == [
        "experiment.json"
    ]
    # A preflight says so too.
    said = cli.out("preflight", path, *options, code=1)
    lines = said.splitlines()
    assert any(line.startswith("FAIL") and words in line for line in lines)
