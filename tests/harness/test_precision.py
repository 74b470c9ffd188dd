"""Runs in half precision on the CPU: forced overflows, decided upon together, and resumed from, to the bit."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import DistributedOptimizer
from algorithms.registry import algorithms
from harness.records.store import RunRecord, read_run
from harness.tasks import blobs
from harness.train.local_workers import MixedPrecision
from tests.harness.support import (
    BLOCK,
    DoctoredBlobs,
    attempt_in_threads,
    comparable,
    job_for,
    kept_checkpoints,
    settings_of,
    small_config,
)

Place = tuple[int, int]
"""A worker and one of its steps, counted from 0."""
INFINITY = float("inf")


class Stopped(Exception):
    """Stands for whatever ends a process between two steps."""


def state_of(optimizer: DistributedOptimizer) -> dict[str, Tensor]:
    """Copies of all that a skipped step must leave as it is; "error" and "anchor" where the method has them."""
    copies = {key: value.clone() for key, value in optimizer._buffers.items()}
    steps = torch.tensor(optimizer.num_steps)
    return copies | {"parameters": optimizer.flat.parameters.detach().clone(), "steps": steps}


@dataclass
class Overflows:
    """Makes losses or gradients infinite at these places, and writes down what each step changed.

    Attributes:
        forced: where.
        of_loss: the loss itself, not its gradient alone.
        stop_before: a step that no worker begins.
    """

    forced: set[Place] = field(default_factory=set)
    of_loss: bool = False
    stop_before: int | None = None
    changed: dict[Place, set[str]] = field(default_factory=dict)
    losses: dict[Place, float] = field(default_factory=dict)
    scales: dict[Place, float] = field(default_factory=dict)
    _here: Any = field(default_factory=threading.local)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loss, step = MixedPrecision.loss, MixedPrecision.step

        def watched_loss(precision: MixedPrecision, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
            value = loss(precision, model, inputs, labels)
            if self._here.place in self.forced:
                if self.of_loss:
                    value = value * INFINITY
                else:
                    value.register_hook(lambda gradient: gradient * INFINITY)
            self.losses[self._here.place] = value.item()
            return value

        def watched_step(precision: MixedPrecision, optimizer: DistributedOptimizer) -> None:
            before = state_of(optimizer)
            step(precision, optimizer)
            after = state_of(optimizer)
            self.changed[self._here.place] = {key for key in before if not torch.equal(before[key], after[key])}
            self.scales[self._here.place] = precision.scaler.get_scale()

        monkeypatch.setattr(MixedPrecision, "loss", watched_loss)
        monkeypatch.setattr(MixedPrecision, "step", watched_step)
        monkeypatch.setattr(blobs, "TASK", DoctoredBlobs(hook=self._arrive))

    def _arrive(self, rank: int, step: int) -> None:
        self._here.place = rank, step
        if step == self.stop_before:
            raise Stopped(f"stopped before step {step}")

    def skipped(self) -> set[int]:
        """Steps that changed nothing; each worker must say the same of each step."""
        by_step: dict[int, set[bool]] = {}
        for (_, step), changed in self.changed.items():
            by_step.setdefault(step, set()).add(not changed)
        assert all(len(words) == 1 for words in by_step.values())
        return {step for step, words in by_step.items() if words == {True}}


def precision_states(folder: Path, generation: str) -> list[dict[str, Any]]:
    """What the ranks' checkpoints say of loss scaling."""
    files = sorted((folder / "checkpoint" / generation).glob("rank-*.pt"))
    return [torch.load(file, weights_only=True)["precision"] for file in files]


def trained(folder: Path, algorithm: str = "cser", **changes: Any) -> RunRecord:
    """What a run of two threads leaves."""
    job = job_for(small_config(algorithm, settings_of(algorithm, BLOCK), **changes), folder)
    assert attempt_in_threads(job)
    return read_run(job.folder)


# Worker 1 alone before the first of several resets; worker 0 alone after it; both.
FORCED: set[Place] = {(1, 5), (0, 21), (0, 30), (1, 30)}


@pytest.mark.parametrize("name", algorithms())
def test_all_workers_skip_a_step_that_overflowed_on_one_and_nothing_of_it_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflows = Overflows(FORCED)
    overflows.install(monkeypatch)
    record = trained(tmp_path, name, precision="fp16")
    skipped = overflows.skipped()
    assert {5, 21, 30} <= skipped and len(skipped) < 10
    for (_, step), changed in overflows.changed.items():
        # The parameters of some methods stand still until workers talk; the count of steps and some state do not.
        assert "steps" in changed and len(changed) > 1 if step not in skipped else changed == set()
    result = record.result
    assert result is not None and (result.status, result.num_steps) == ("done", 40)
    calls = {key: entry.collectives for key, entry in result.traffic.items() if key in result.expected_traffic}
    assert calls == {key: entry.collectives for key, entry in result.expected_traffic.items()}
    if name == "sgd":
        assert calls["gradient"] == 40 - len(skipped)
        assert {event.worker_distance for event in record.events} == {0.0}


@pytest.mark.parametrize("name", ["cser", "qsparse_local_sgd"])
def test_each_worker_lowers_its_own_scale_and_the_checkpoint_has_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflows = Overflows(FORCED)
    overflows.install(monkeypatch)
    with kept_checkpoints():
        record = trained(tmp_path, name, precision="fp16")
    scales = overflows.scales
    for rank, step in FORCED:
        assert scales[rank, step] == scales[rank, step - 1] / 2
    assert (scales[0, 5], scales[1, 21]) == (scales[0, 4], scales[1, 20])
    for generation in (20, 25):
        states = precision_states(record.folder, f"step-{generation:09d}")
        assert [state["scale"] for state in states] == [scales[rank, generation - 1] for rank in range(2)]


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
                Overflows(forced, stop_before=stop).install(patch)
                job = job_for(config, tmp_path / place)
                assert attempt_in_threads(job) == (stop is None)
        folders.append(job.folder)
    whole, broken = folders
    assert [attempt.resumed_from_step for attempt in read_run(broken).run.attempts] == [0, 0, 20, 25]
    assert comparable(broken) == comparable(whole)
    states = precision_states(broken, "step-000000025")
    assert states == precision_states(whole, "step-000000025")
    if precision == "fp16":
        assert all(state["scale"] < 2.0**16 and state["_growth_tracker"] > 0 for state in states)


def test_an_infinite_loss_is_skipped_and_no_part_of_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflows = Overflows({(1, 5)}, of_loss=True)
    overflows.install(monkeypatch)
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
    overflows = Overflows({(1, 5)})
    overflows.install(monkeypatch)
    result = trained(tmp_path, precision=precision).result
    assert overflows.skipped() == set()
    assert result is not None and (result.status, result.diverged_at_step) == ("diverged", 20)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_learns_as_well(precision: str, tmp_path: Path) -> None:
    half, full = (trained(tmp_path, precision=each, num_epochs=3).result for each in (precision, "fp32"))
    assert half is not None and full is not None
    assert half.parameters_sha256 != full.parameters_sha256
    assert half.test_accuracy is not None and full.test_accuracy is not None
    assert full.test_accuracy > 0.5 and abs(half.test_accuracy - full.test_accuracy) < 0.05
