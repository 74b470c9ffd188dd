"""The task that docs/adding-a-task.md shows is found, loaded, and learnt."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from harness import tasks
from harness.records.store import Result, read_record
from harness.spec import TaskSpec
from harness.tasks.task import TensorSamples, find_task
from harness.workers.attempt import attempt_stacked
from tests.harness.support import job_for, small_config

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-task.md"


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's module, as one more file of the folder of tasks."""
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "letters.py").write_text(code)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "harness.tasks.letters", raising=False)
    return "letters"


def test_it_is_found_and_counts_what_it_says(letters: str) -> None:
    task = find_task(letters)
    samples = task.load(None, TaskSpec(name=letters), torch.device("cpu"))
    assert isinstance(samples, TensorSamples)
    assert len(samples.train_labels) == task.num_train
    held_out = task.load(None, TaskSpec(name=letters, held_out=64, num_train=520), torch.device("cpu"))
    assert len(held_out.train_labels) == 520


def test_it_is_learnt(letters: str, tmp_path: Path) -> None:
    config = small_config(task={"name": letters}, model={"name": "mlp", "options": {"hidden": 16}}, num_epochs=4)
    job = job_for(config, tmp_path / "results")
    attempt_stacked(job)
    accuracy = read_record(job.folder / "result.json", Result).test_accuracy
    assert accuracy is not None and accuracy > 5 / 26
