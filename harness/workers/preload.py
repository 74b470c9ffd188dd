"""Imported by the process that runs are forked from: reads the data once, and all runs share its memory."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import torch

from harness.spec import TaskSpec
from harness.tasks import DataError
from harness.tasks.task import Samples, find_task

VARIABLE = "CSER_BENCH_PRELOAD"
"""Environment variable by which the launcher says what to read."""


_preloaded: dict[tuple[TaskSpec, Path | None, str], Samples] = {}


def load_samples(task: TaskSpec, data: Path | None, device: str) -> Samples:
    """The task's samples: those that were read before this process was forked, or read now.

    Raises:
        DataError: as `Task.load`.
    """
    if (task, data, device) in _preloaded:
        return _preloaded[task, data, device]
    return find_task(task.name).load(data, task, torch.device(device))


def announce(task: TaskSpec, data: Path | None, device: str) -> None:
    """Have the data read before the first fork, where it is plain memory on the CPU: pools and GPUs survive no fork."""
    if device == "cpu" and getattr(find_task(task.name), "survives_fork", False):
        os.environ[VARIABLE] = json.dumps([task.model_dump(), None if data is None else str(data), device])
    else:
        os.environ.pop(VARIABLE, None)


def _read_what_was_announced() -> None:
    task, data, device = json.loads(os.environ[VARIABLE])
    torch.set_num_threads(1)
    key = (TaskSpec.model_validate(task), None if data is None else Path(data), device)
    with contextlib.suppress(DataError, OSError):
        _preloaded[key] = load_samples(*key)


if VARIABLE in os.environ:
    _read_what_was_announced()
