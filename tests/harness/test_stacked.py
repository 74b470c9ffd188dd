"""Workers stacked in one process do what workers that each have a process of their own do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from algorithms import Compressor, StackedCollectives
from algorithms.registry import algorithms, compressors, settings
from harness.spec import ModelSpec
from harness.tasks.task import find_task
from harness.train.build import build_model
from harness.train.local_workers import batched_backward, local_workers, random_batch
from harness.workers.attempt import attempt_stacked
from tests.harness.support import Table, attempt_in_threads, comparable, job_for, settings_of, small_config

NUM_WORKERS = 4
BATCHED = {"name": "mlp", "options": {"hidden": 9}}
TABLES: dict[str, dict[str, Any]] = {
    "block": {"kind": "block", "ratio": 4},
    "blocks": {"kind": "block", "ratio": 4, "num_blocks": 16},
    "random_k": {"kind": "random_k", "ratio": 5.0},
    "per_tensor_block": {"kind": "per_tensor_block", "row_ratio": 2.0, "column_ratio": 2.0, "tensor_ratio": 2.0},
    "top_k": {"kind": "top_k", "ratio": 7.0},
    "sign": {"kind": "sign"},
    "qsgd": {"kind": "qsgd", "bits": 4},
    "identity": {"kind": "identity"},
    "zero": {"kind": "zero"},
}


def takes(name: str, table: dict[str, Any]) -> bool:
    """Whether the method has compressors, and all of them may be this one."""
    kinds = [kind for kind, _ in settings(algorithms()[name]).values() if isinstance(kind, type)]
    wanted = [kind for kind in kinds if issubclass(kind, Compressor)]
    return bool(wanted) and all(issubclass(compressors()[table["kind"]], kind) for kind in wanted)


FIRST = {key: next(name for name in algorithms() if takes(name, TABLES[key])) for key in TABLES}
CASES = [(name, "block") for name in algorithms()] + [(name, key) for key, name in FIRST.items() if key != "block"]
"""Each method, and each compressor with one that takes it."""


def test_batched_passes_give_each_workers_gradients_up_to_rounding() -> None:
    task = find_task("blobs")
    model = build_model(ModelSpec.model_validate(BATCHED), task, 0, torch.device("cpu"))
    batches = [
        random_batch(task, 10, torch.Generator().manual_seed(rank), torch.empty(0)) for rank in range(NUM_WORKERS)
    ]
    models, optimizer = local_workers(small_config(), model, StackedCollectives(NUM_WORKERS), 40)
    backward = batched_backward(models[0], optimizer.flat.tensors)
    assert backward
    inputs, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    backward(inputs, labels)
    single = []
    for own_inputs, own_labels in batches:
        own = copy.deepcopy(model)
        nn.functional.cross_entropy(own(own_inputs), own_labels).backward()  # type: ignore[no-untyped-call]
        single.append(torch.cat([each.grad.flatten() for each in own.parameters() if each.grad is not None]))
    torch.testing.assert_close(optimizer.flat.gradients, torch.stack(single), rtol=1e-4, atol=1e-6)


def both(tmp_path: Path, name: str, **changes: Any) -> list[tuple[list[Table], Table]]:
    """Events and result of a run of stacked workers, and of threads that each have a worker."""
    config = small_config(
        name, settings_of(name, changes.pop("compressor")), num_workers=NUM_WORKERS, batch_size=10,
        partition={"kind": "contiguous"}, **changes,
    )  # fmt: skip
    stacked, threads = job_for(config, tmp_path / "stacked"), job_for(config, tmp_path / "threads")
    assert attempt_stacked(stacked), (stacked.folder / "failure.json").read_text()
    assert attempt_in_threads(threads)
    return [comparable(stacked.folder), comparable(threads.folder)]


def test_a_run_by_batched_passes_is_the_run_of_one_after_the_other_up_to_rounding(tmp_path: Path) -> None:
    (events, result), (others, other) = both(tmp_path, "mcser", compressor=TABLES["block"], model=BATCHED)
    assert [event["test_loss"] for event in events] == pytest.approx([each["test_loss"] for each in others], rel=1e-4)
    assert result["traffic"] == other["traffic"]


@pytest.mark.parametrize(("name", "key"), CASES)
def test_stacked_equals_threads(name: str, key: str, tmp_path: Path) -> None:
    stacked, threads = both(tmp_path, name, compressor=TABLES[key])
    assert stacked == threads
