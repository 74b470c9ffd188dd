"""What is left of a run of processes when one of them fails: its own words first, and its peers' for what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from harness.records.store import Failure, read_record
from harness.tasks import blobs
from harness.workers.attempt import Job, attempt_as_rank
from tests.harness.support import DoctoredBlobs, job_for, small_config

# Who fails says so before its group ends


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How often the process group was destroyed: with NCCL a worker that does so while others wait for it hangs."""
    destroy, calls = dist.destroy_process_group, list[str]()

    def counted() -> None:
        calls.append("destroyed")
        destroy()

    monkeypatch.setattr(dist, "destroy_process_group", counted)
    yield calls
    if dist.is_initialized():
        destroy()


def alone(folder: Path, hook: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch) -> tuple[Job, bool]:
    """A run of one process that calls `hook` before each batch, and whether it has a result."""
    monkeypatch.setattr(blobs, "TASK", DoctoredBlobs(hook=hook))
    job = job_for(small_config(num_workers=1), folder)
    return job, attempt_as_rank(job, 0, f"file://{folder}/rendezvous")


def test_group_ends_after_success(ended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert alone(tmp_path, lambda rank, step: None, monkeypatch)[1]
    assert ended == ["destroyed"]


def test_failure_is_recorded_and_the_group_left_as_it_is(
    ended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(rank: int, step: int) -> None:
        raise MemoryError("no room")

    job, done = alone(tmp_path, out_of_memory, monkeypatch)
    assert not done and ended == []
    assert read_record(job.folder / "failure.json", Failure).kind == "oom"
