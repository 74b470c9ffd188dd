"""Half precision, stacked workers, memory formats: what a run of these does, and resumes, to the
bit."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cser_bench.algorithms import DistributedOptimizer, SoloCollectives
from cser_bench.algorithms.core.first_step import FirstStep
from cser_bench.algorithms.registry import algorithms
from cser_bench.harness.records.store import Failure, RunRecord, read_record, read_run
from cser_bench.harness.tasks import blobs
from cser_bench.harness.train import build, training
from cser_bench.harness.train.build import build_model, build_optimizer
from cser_bench.harness.train.passes import MixedPrecision, batched_backward
from cser_bench.harness.workers.attempt import attempt_stacked
from tests.harness.support import (
    BLOCK,
    CSER,
    DoctoredBlobs,
    comparable,
    done,
    job_for,
    kept_checkpoints,
    settings_of,
    small_config,
    stop_before,
)

INFINITY = float("inf")
# Worker 1 alone before the first of several resets; worker 0 alone after it; both.
FORCED = {(1, 5), (0, 21), (0, 30), (1, 30)}


class Overflows:
    """Makes gradients, or the loss itself, infinite at these places, each a worker and a step
    counted from 0.

    Attributes:
        changed: what each step of the two stacked workers changed of the optimiser's state.
        losses: of both workers, step by step.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        forced: set[tuple[int, int]],
        of_loss: bool = False,
        first: int = 0,
    ) -> None:
        self.changed: list[set[str]] = []
        self.losses: list[float] = []
        loss = MixedPrecision.loss
        step = MixedPrecision.step

        def watched_loss(
            precision: MixedPrecision, model: nn.Module, inputs: Tensor, labels: Tensor
        ) -> Tensor:
            value = loss(precision, model, inputs, labels)
            place = divmod(len(self.losses), 2)
            at = (place[1], first + place[0])
            if at in forced:
                if of_loss:
                    value = value * INFINITY
                else:
                    value.register_hook(lambda gradient: gradient * INFINITY)
            self.losses.append(value.item())
            return value

        def watched_step(
            precision: MixedPrecision, optimizer: DistributedOptimizer
        ) -> None:
            before = state_of(optimizer)
            step(precision, optimizer)
            after = state_of(optimizer)
            self.changed.append(
                {key for key in before if not torch.equal(before[key], after[key])}
            )

        patch.setattr(MixedPrecision, "loss", watched_loss)
        patch.setattr(MixedPrecision, "step", watched_step)

    def skipped(self) -> set[int]:
        """Steps that changed nothing."""
        return {step for step, changed in enumerate(self.changed) if not changed}


def state_of(optimizer: DistributedOptimizer) -> dict[str, Tensor]:
    """Copies of all that a skipped step must leave as it is; "error" and "anchor" where the method
    has them."""
    copies = {
        key: value.clone() for key, value in optimizer.replicas[0].buffers.items()
    }
    steps = torch.tensor(optimizer.num_steps)
    return copies | {
        "parameters": optimizer.flat.parameters.detach().clone(),
        "steps": steps,
    }


def trained(folder: Path, algorithm: str = "cser", **changes: Any) -> RunRecord:
    return done(
        small_config(algorithm, settings_of(algorithm, BLOCK), **changes), folder
    )


@pytest.mark.parametrize("name", algorithms())
def test_all_workers_skip_a_step_that_overflowed_on_one_and_nothing_of_it_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflows = Overflows(monkeypatch, FORCED)
    result = trained(tmp_path, name, precision="fp16").result
    skipped = overflows.skipped()
    assert {5, 21, 30} <= skipped
    assert len(skipped) < 10
    # The parameters of some methods stand still until workers talk; the count of steps and some
    # state do not.
    assert all(
        "steps" in changed and len(changed) > 1
        for changed in overflows.changed
        if changed
    )
    assert result.status == "done"
    assert result.num_steps == 40
    if name == "sgd":
        assert result.traffic["gradient"].collectives == 40 - len(skipped)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("cser", "fp16"),
        ("qsparse_local_sgd", "fp16"),
        ("powersgd", "fp16"),
        ("mcser", "bf16"),
    ],
)
def test_interrupted_equals_uninterrupted_in_half_precision(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(name, BLOCK)
    config = small_config(name, settings, precision=precision)
    states = []
    for place, attempts in (
        ("whole", {None: 0}),
        ("broken", {12: 0, 22: 0, 30: 20, None: 25}),
    ):
        for stop, first in attempts.items():
            with monkeypatch.context() as patch, kept_checkpoints():
                forced = FORCED if precision == "fp16" else set()
                Overflows(patch, forced, first=first)
                patch.setattr(
                    blobs, "TASK", DoctoredBlobs(hook=partial(stop_before, stop))
                )
                job = job_for(config, tmp_path / place)
                assert attempt_stacked(job) == (stop is None)
        saved = job.folder / "checkpoint" / "step-000000025" / "rank-0.pt"
        checkpoint = torch.load(saved, weights_only=True)
        states.append(checkpoint["precision"])
    assert [
        attempt.resumed_from_step for attempt in read_run(job.folder).run.attempts
    ] == [0, 0, 20, 25]
    whole = tmp_path / "whole" / job.folder.name
    assert comparable(job.folder) == comparable(whole)
    assert states[0] == states[1]
    assert precision != "fp16" or (
        states[0]["scale"] < 2.0**16 and states[0]["_growth_tracker"] > 0
    )


def test_an_infinite_loss_is_skipped_and_no_part_of_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflows = Overflows(monkeypatch, {(1, 5)}, of_loss=True)
    record = trained(tmp_path, precision="fp16")
    assert 5 in overflows.skipped()
    assert overflows.losses[11] == INFINITY
    first = [loss for loss in overflows.losses[:40] if math.isfinite(loss)]
    assert len(first) == 39
    assert record.result.status == "done"
    mean = math.fsum(first) / 39
    assert record.events[0].train_loss == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_loss_scaling_an_infinite_gradient_is_divergence(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflows = Overflows(monkeypatch, {(1, 5)})
    result = trained(tmp_path, precision=precision).result
    assert overflows.skipped() == set()
    assert result.status == "diverged"
    assert result.diverged_at_step == 20


# Workers in one process


def test_batched_passes_are_those_of_one_after_the_other_up_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"num_workers": 4, "batch_size": 10, "partition": {"kind": "contiguous"}}
    config = small_config(
        "mcser",
        settings_of("mcser", BLOCK),
        **own,
        model={"name": "mlp", "options": {"hidden": 9}},
    )
    at_once = done(config, tmp_path / "at once")
    (events, result) = comparable(at_once.folder)
    found: list[object] = []
    monkeypatch.setattr(
        training,
        "batched_backward",
        lambda *arguments: found.append(batched_backward(*arguments)),
    )
    one_by_one = done(config, tmp_path / "one by one")
    (others, other) = comparable(one_by_one.folder)
    assert [event["test_loss"] for event in events] == pytest.approx(
        [each["test_loss"] for each in others], rel=1e-4
    )
    assert result["traffic"] == other["traffic"]
    assert all(found)


# Memory


def test_a_run_says_its_format_and_goes_on_in_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_on_a_gpu(model: nn.Module, keep_contiguous: bool) -> None:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    job = job_for(small_config("cser", CSER), tmp_path)
    with monkeypatch.context() as here:
        here.setattr(build, "lay_out", as_on_a_gpu)
        stopping = DoctoredBlobs(hook=partial(stop_before, 30))
        here.setattr(blobs, "TASK", stopping)
        assert not attempt_stacked(job)
    assert not attempt_stacked(job_for(job.run.config, tmp_path))
    failure = read_record(job.folder / "failure.json", Failure)
    assert failure.kind == "data"
    assert "in the memory format channels_last, and here" in failure.message
    monkeypatch.setattr(build, "lay_out", as_on_a_gpu)
    assert attempt_stacked(job_for(job.run.config, tmp_path))
    found = [
        (each.memory_format, each.resumed_from_step)
        for each in read_run(job.folder).run.attempts
    ]
    assert found == [("channels_last", 0), ("channels_last", 25)]


@pytest.mark.parametrize("kind", ["block", "top_k"])
@pytest.mark.parametrize("name", algorithms())
def test_a_step_reads_no_number_of_a_tensor_and_mixes_no_devices(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For which a host would wait, or a GPU refuse; on the device meta, where there are no numbers,
    it is an error.

    The first step's checks do read: they are left out, and would refuse such a model.
    """
    if kind == "top_k" and "released" in name:
        pytest.skip("takes blocks alone")
    monkeypatch.setattr(FirstStep, "check", lambda *_: False)
    spec = small_config().model
    model = build_model(spec, blobs.TASK, 1, torch.device("meta"))
    table = settings_of(name, {"kind": kind, "ratio": 4})
    config = small_config(name, table)
    optimizer = build_optimizer(config, model, SoloCollectives(), 40)
    for _ in range(4):  # with a reset, or an exchange, among them
        optimizer.zero_grad()
        for parameter in optimizer.flat.tensors:
            parameter.grad.add_(1.0)  # type: ignore[union-attr]
        optimizer.step()
    assert optimizer.flat.parameters.is_meta
    assert optimizer.num_steps == 4
