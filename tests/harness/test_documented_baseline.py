"""The baseline that docs/adding-a-baseline.md shows is found, trained as one process, counted, and timed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from algorithms import baselines as package
from algorithms import registry
from algorithms.core.process_group import ProcessGroupCollectives
from harness.plan.foresee import foresee
from harness.records.store import read_run
from harness.tasks.task import find_task
from harness.train.build import build_model
from harness.train.trainee import Trainee
from harness.workers.attempt import attempt_as_rank
from harness.workers.process_group import joined
from tests.harness.support import job_for, small_config

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-baseline.md"
NUMEL = 742


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's module, as one more file of the folder of baselines."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "ddp_bf16.py").write_text(code)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "algorithms.baselines.ddp_bf16", raising=False)
    registry.baselines.cache_clear()
    yield "ddp_bf16"
    registry.baselines.cache_clear()


def test_it_is_trained_and_sends_half(name: str, tmp_path: Path) -> None:
    config = small_config(name, num_workers=1)
    job = job_for(config, tmp_path / "results")
    assert attempt_as_rank(job, 0, f"file://{tmp_path}/rendezvous")
    result = read_run(job.folder).result
    assert result is not None and result.test_accuracy is not None and result.test_accuracy > 0.3
    assert result.traffic["gradient"].bits == 16 * NUMEL * 80 == foresee(config).bits
    assert result.overall_ratio == 2


def test_its_gradients_are_rounded(name: str, tmp_path: Path) -> None:
    """All of a mean gradient's numbers have 8 bits of significand."""
    with joined("cpu", 60.0, f"file://{tmp_path}/rendezvous", 0, 1):
        config = small_config(name, num_workers=1)
        model = build_model(config.model, find_task("blobs"), 1, torch.device("cpu"))
        trainee = Trainee(config, model, ProcessGroupCollectives())
        trainee.step()
        gradients = trainee.optimizer.flat.gradients
    assert gradients.any() and torch.equal(gradients.bfloat16().float(), gradients)


def test_it_has_a_ratio_and_a_row_among_the_methods(name: str) -> None:
    assert registry.methods()[name].at_ratio(2) == {}
    assert name not in registry.algorithms()
