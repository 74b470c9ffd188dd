"""Half precision, stacked workers, memory formats: what a run of these does, and resumes, to the bit."""

from __future__ import annotations

import copy
import math
import threading
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from algorithms import DistributedOptimizer, SoloCollectives, StackedCollectives
from algorithms.core.checks import FirstStep
from algorithms.registry import algorithms
from harness.records.store import Failure, RunRecord, read_record, read_run
from harness.spec import ModelSpec
from harness.tasks import blobs
from harness.tasks.task import find_task
from harness.train import build
from harness.train.build import build_model, build_optimizer, format_of, lay_out
from harness.train.local_workers import MixedPrecision, batched_backward, local_workers, random_batch
from harness.workers.attempt import attempt_stacked
from tests.harness.support import (
    BLOCK,
    CSER,
    DoctoredBlobs,
    Table,
    attempt_in_threads,
    comparable,
    job_for,
    kept_checkpoints,
    settings_of,
    small_config,
    stop_before,
)

Place = tuple[int, int]
"""A worker and one of its steps, counted from 0."""
INFINITY = float("inf")
# Worker 1 alone before the first of several resets; worker 0 alone after it; both.
FORCED: set[Place] = {(1, 5), (0, 21), (0, 30), (1, 30)}


class Overflows:
    """Makes gradients, or the loss itself, infinite at these places, and writes down what each step changed."""

    def __init__(
        self, patch: pytest.MonkeyPatch, forced: set[Place], of_loss: bool = False, stop_before: int | None = None
    ) -> None:
        self.changed: dict[Place, set[str]] = {}
        self.losses: dict[Place, float] = {}
        here, loss, step = threading.local(), MixedPrecision.loss, MixedPrecision.step

        def watched_loss(precision: MixedPrecision, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
            value = loss(precision, model, inputs, labels)
            if here.place in forced:
                if of_loss:
                    value = value * INFINITY
                else:
                    value.register_hook(lambda gradient: gradient * INFINITY)
            self.losses[here.place] = value.item()
            return value

        def watched_step(precision: MixedPrecision, optimizer: DistributedOptimizer) -> None:
            before = state_of(optimizer)
            step(precision, optimizer)
            after = state_of(optimizer)
            self.changed[here.place] = {key for key in before if not torch.equal(before[key], after[key])}

        def arrive(rank: int, step: int) -> None:
            here.place = rank, step
            if step == stop_before:
                raise KeyError(f"stopped before step {step}")

        patch.setattr(MixedPrecision, "loss", watched_loss)
        patch.setattr(MixedPrecision, "step", watched_step)
        patch.setattr(blobs, "TASK", DoctoredBlobs(hook=arrive))

    def skipped(self) -> set[int]:
        """Steps that changed nothing; each worker must say the same of each step."""
        by_step: dict[int, set[bool]] = {}
        for (_, step), changed in self.changed.items():
            by_step.setdefault(step, set()).add(not changed)
        assert all(len(words) == 1 for words in by_step.values())
        return {step for step, words in by_step.items() if words == {True}}


def state_of(optimizer: DistributedOptimizer) -> dict[str, Tensor]:
    """Copies of all that a skipped step must leave as it is; "error" and "anchor" where the method has them."""
    copies = {key: value.clone() for key, value in optimizer._buffers.items()}
    steps = torch.tensor(optimizer.num_steps)
    return copies | {"parameters": optimizer.flat.parameters.detach().clone(), "steps": steps}


def precision_states(folder: Path) -> list[dict[str, Any]]:
    """What the ranks' last checkpoints say of loss scaling."""
    files = sorted((folder / "checkpoint" / "step-000000025").glob("rank-*.pt"))
    return [torch.load(file, weights_only=True)["precision"] for file in files]


def trained(folder: Path, algorithm: str = "cser", **changes: Any) -> RunRecord:
    """What a run of two threads leaves."""
    job = job_for(small_config(algorithm, settings_of(algorithm, BLOCK), **changes), folder)
    assert attempt_in_threads(job)
    return read_run(job.folder)


@pytest.mark.parametrize("name", algorithms())
def test_all_workers_skip_a_step_that_overflowed_on_one_and_nothing_of_it_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflows = Overflows(monkeypatch, FORCED)
    record = trained(tmp_path, name, precision="fp16")
    skipped = overflows.skipped()
    assert {5, 21, 30} <= skipped and len(skipped) < 10
    for (_, step), changed in overflows.changed.items():
        # The parameters of some methods stand still until workers talk; the count of steps and some state do not.
        assert "steps" in changed and len(changed) > 1 if step not in skipped else changed == set()
    result = record.result
    assert result is not None and (result.status, result.num_steps) == ("done", 40)
    if name == "sgd":
        assert result.traffic["gradient"].collectives == 40 - len(skipped)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("cser", "fp16"), ("qsparse_local_sgd", "fp16"), ("powersgd", "fp16"), ("ef_sgd", "fp16"), ("mcser", "bf16")],
)
def test_interrupted_equals_uninterrupted_in_half_precision(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(name, settings_of(name, BLOCK), precision=precision)
    forced = FORCED if precision == "fp16" else set()
    folders = []
    for place, stops in (("whole", [None]), ("broken", [12, 22, 30, None])):
        for stop in stops:
            with monkeypatch.context() as patch, kept_checkpoints():
                Overflows(patch, forced, stop_before=stop)
                job = job_for(config, tmp_path / place)
                assert attempt_in_threads(job) == (stop is None)
        folders.append(job.folder)
    whole, broken = folders
    assert [attempt.resumed_from_step for attempt in read_run(broken).run.attempts] == [0, 0, 20, 25]
    assert comparable(broken) == comparable(whole)
    states = precision_states(broken)
    assert states == precision_states(whole)
    if precision == "fp16":  # each worker has lowered its own scale
        assert all(state["scale"] < 2.0**16 and state["_growth_tracker"] > 0 for state in states)


def test_an_infinite_loss_is_skipped_and_no_part_of_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflows = Overflows(monkeypatch, {(1, 5)}, of_loss=True)
    record = trained(tmp_path, precision="fp16")
    assert 5 in overflows.skipped() and overflows.losses[1, 5] == INFINITY
    first = [loss for (_, step), loss in overflows.losses.items() if step < 20 and math.isfinite(loss)]
    assert len(first) == 39
    assert record.result is not None and record.result.status == "done"
    assert record.events[0].train_loss == pytest.approx(math.fsum(first) / 39, rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_loss_scaling_an_infinite_gradient_is_divergence(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflows = Overflows(monkeypatch, {(1, 5)})
    result = trained(tmp_path, precision=precision).result
    assert overflows.skipped() == set()
    assert result is not None and (result.status, result.diverged_at_step) == ("diverged", 20)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_learns_as_well(precision: str, tmp_path: Path) -> None:
    half, full = (trained(tmp_path, precision=each, num_epochs=3).result for each in (precision, "fp32"))
    assert half is not None and full is not None and half.parameters_sha256 != full.parameters_sha256
    assert half.test_accuracy is not None and full.test_accuracy is not None
    assert full.test_accuracy > 0.5 and abs(half.test_accuracy - full.test_accuracy) < 0.05


# Workers in one process


NUM_WORKERS = 4
BATCHED = {"name": "mlp", "options": {"hidden": 9}}


def test_batched_passes_give_each_workers_gradients_up_to_rounding() -> None:
    task = find_task("blobs")
    model = build_model(ModelSpec.model_validate(BATCHED), task, 0, torch.device("cpu"))
    draws = (torch.Generator().manual_seed(rank) for rank in range(NUM_WORKERS))
    batches = [random_batch(task, 10, draw, torch.empty(0)) for draw in draws]
    models, optimizer = local_workers(small_config(), model, StackedCollectives(NUM_WORKERS), 40)
    backward = batched_backward(models[0], optimizer.flat.tensors)
    assert backward
    backward(*(torch.cat(each) for each in zip(*batches, strict=True)))
    single = []
    for inputs, labels in batches:
        own = copy.deepcopy(model)
        nn.functional.cross_entropy(own(inputs), labels).backward()  # type: ignore[no-untyped-call]
        single.append(torch.cat([each.grad.flatten() for each in own.parameters() if each.grad is not None]))
    torch.testing.assert_close(optimizer.flat.gradients, torch.stack(single), rtol=1e-4, atol=1e-6)


def both(tmp_path: Path, name: str, compressor: Table, **changes: Any) -> list[tuple[list[Table], Table]]:
    """Events and result of a run of stacked workers, and of threads that each have a worker."""
    own = {"num_workers": NUM_WORKERS, "batch_size": 10, "partition": {"kind": "contiguous"}}
    config = small_config(name, settings_of(name, compressor), **own, **changes)
    stacked, threads = job_for(config, tmp_path / "stacked"), job_for(config, tmp_path / "threads")
    assert attempt_stacked(stacked) and attempt_in_threads(threads)
    return [comparable(stacked.folder), comparable(threads.folder)]


def test_a_run_by_batched_passes_is_the_run_of_one_after_the_other_up_to_rounding(tmp_path: Path) -> None:
    (events, result), (others, other) = both(tmp_path, "mcser", BLOCK, model=BATCHED)
    assert [event["test_loss"] for event in events] == pytest.approx([each["test_loss"] for each in others], rel=1e-4)
    assert result["traffic"] == other["traffic"]


@pytest.mark.parametrize(
    ("name", "compressor"),
    [("mcser", BLOCK), ("ef_sgd", {"kind": "top_k", "ratio": 7.0}), ("dpsgd", BLOCK), ("powersgd", BLOCK)],
)
def test_stacked_equals_threads(name: str, compressor: Table, tmp_path: Path) -> None:
    stacked, threads = both(tmp_path, name, compressor)
    assert stacked == threads


# Memory


def test_channels_last_is_for_convolutions_on_gpus() -> None:
    model = build_model(small_config().model, blobs.TASK, 1, torch.device("cpu"))
    lay_out(model)
    assert format_of(model) == "contiguous"
    with patch.object(torch.Tensor, "is_cuda", True):
        lay_out(model, keep_contiguous=True)
        assert format_of(model) == "contiguous"
        lay_out(model)
        lay_out(nn.Linear(3, 3))
    assert format_of(model) == "channels_last"


def test_a_run_says_its_format_and_goes_on_in_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_on_a_gpu(model: nn.Module, keep_contiguous: bool) -> None:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    job = job_for(small_config("cser", CSER), tmp_path)
    with monkeypatch.context() as here:
        here.setattr(build, "lay_out", as_on_a_gpu)
        here.setattr(blobs, "TASK", DoctoredBlobs(hook=partial(stop_before, 30)))
        assert not attempt_stacked(job)
    assert not attempt_stacked(job_for(job.run.config, tmp_path))
    failure = read_record(job.folder / "failure.json", Failure)
    assert failure.kind == "data" and "in the memory format channels_last, and here" in failure.message
    monkeypatch.setattr(build, "lay_out", as_on_a_gpu)
    assert attempt_stacked(job_for(job.run.config, tmp_path))
    found = [(each.memory_format, each.resumed_from_step) for each in read_run(job.folder).run.attempts]
    assert found == [("channels_last", 0), ("channels_last", 25)]


@pytest.mark.parametrize("kind", ["block", "top_k"])
@pytest.mark.parametrize("name", algorithms())
def test_a_step_reads_no_number_of_a_tensor_and_mixes_no_devices(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For which a host would wait, or a GPU refuse; on the device meta, where there are no numbers, it is an error.

    The first step's checks do read: they are left out, and would refuse such a model.
    """
    if kind == "top_k" and "released" in name:
        pytest.skip("takes blocks alone")
    monkeypatch.setattr(FirstStep, "check", lambda *_: False)
    model = build_model(small_config().model, blobs.TASK, 1, torch.device("meta"))
    table = settings_of(name, {"kind": kind, "ratio": 4})
    optimizer = build_optimizer(small_config(name, table), model, SoloCollectives(), 40)
    for _ in range(4):  # with a reset, or an exchange, among them
        optimizer.zero_grad()
        for parameter in optimizer.flat.tensors:
            parameter.grad.add_(1.0)  # type: ignore[union-attr]
        optimizer.step()
    assert optimizer.flat.parameters.is_meta and optimizer.num_steps == 4
