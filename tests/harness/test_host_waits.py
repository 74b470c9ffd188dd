"""How often the host waits for a GPU in a step: never without loss scaling, once with it. The GPU is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import SoloCollectives
from algorithms.registry import algorithms
from harness.models import small_cnn, wide_resnet
from harness.seeds import generator
from harness.spec import TaskSpec
from harness.tasks import augment
from harness.tasks.blobs import TASK
from harness.tasks.cifar100 import CIFAR100Samples, padded
from harness.tasks.imagenet import ImageNetSamples
from harness.tasks.task import TensorSamples
from harness.train import checkpoint, train
from harness.train.build import build_optimizer, num_steps_of
from harness.train.evaluate import _batch_norm_layers, _recalibrate
from harness.train.monitor import Monitor
from harness.train.precision import MixedPrecision
from harness.train.training import Training
from harness.train.work import Checkpoints, Work
from tests.harness.fake_gpu import host_waits, missing, on_gpu
from tests.harness.support import BLOCK, settings_of, small_config

GPU = torch.device("cuda")
WHY_NOT = missing()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture
def waits() -> Iterator[list[str]]:
    """The host's waits so far; constants of the GPU are this test's own."""
    constants = augment._grey, augment._scale_and_shift
    for each in constants:
        each.cache_clear()
    with host_waits() as found:
        yield found
    for each in constants:
        each.cache_clear()


def scaler_of(precision: MixedPrecision, monkeypatch: pytest.MonkeyPatch) -> MixedPrecision:
    """With loss scaling, which torch switches off where it sees no GPU."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        precision.scaler = torch.amp.GradScaler("cuda")
    return precision


# Batches


def test_images_of_memory_are_augmented_without_a_wait(waits: list[str]) -> None:
    images, labels = torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64).to("cuda")
    samples = CIFAR100Samples(padded(images).to("cuda"), labels, images.to("cuda"), labels)
    batches = samples.training_batches(iter([torch.arange(4), torch.arange(4, 8)]), 1, 0, 0)
    next(batches)  # makes the constants
    waits.clear()
    inputs, chosen = next(batches)
    assert inputs.device.type == chosen.device.type == "cuda" and inputs.shape == (4, 3, 32, 32)
    assert waits == []


def test_images_of_files_are_augmented_without_a_wait(waits: list[str]) -> None:
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    draws = augment.draw(generator("tests"), 4, 0.4, 0.1)
    for _ in range(2):
        waits.clear()
        where: Any = SimpleNamespace(device=GPU)
        inputs, _ = ImageNetSamples._batch(where, images, torch.arange(4), draws)
    assert inputs.device.type == "cuda" and inputs.shape == (4, 3, 16, 16)
    assert waits == []


def on_device(samples: TensorSamples) -> TensorSamples:
    tensors = samples.train_inputs, samples.train_labels, samples.evaluation_inputs, samples.evaluation_labels
    return TensorSamples(*(tensor.to("cuda") for tensor in tensors))


# Steps


@pytest.mark.parametrize("name", algorithms())
def test_a_step_waits_only_to_hear_of_an_overflow(name: str, waits: list[str]) -> None:
    model = on_gpu(small_cnn.build(TASK.input_shape, 10, widths=[4, 8]))
    optimizer = build_optimizer(small_config(name, settings_of(name, BLOCK)), model, SoloCollectives(), 40)
    for scaled in (False, True):
        waits.clear()
        for _ in range(4):  # with a reset, or an exchange, among them
            optimizer.zero_grad()
            for parameter in optimizer.flat.tensors:
                parameter.grad.add_(1.0)  # type: ignore[union-attr]
            if scaled:
                optimizer.found_inf = torch.zeros(1, device=GPU)
            optimizer.step()
        assert waits == ["aten._local_scalar_dense.default"] * 4 * scaled


@pytest.mark.parametrize("kind", [
    {"kind": "random_k", "ratio": 4}, {"kind": "top_k", "ratio": 4}, {"kind": "sign"}, {"kind": "identity"},
    {"kind": "block", "ratio": 4, "num_blocks": 8}, {"kind": "per_tensor_block", "row_ratio": 2},
], ids=lambda table: table["kind"])  # fmt: skip
def test_no_compressor_waits(kind: dict[str, Any], waits: list[str]) -> None:
    model = on_gpu(small_cnn.build(TASK.input_shape, 10, widths=[4, 8]))
    optimizer = build_optimizer(small_config("ef_sgd", {"compressor": kind}), model, SoloCollectives(), 40)
    waits.clear()
    for _ in range(2):
        optimizer.zero_grad()
        for parameter in optimizer.flat.tensors:
            parameter.grad.add_(1.0)  # type: ignore[union-attr]
        optimizer.step()
    assert waits == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_training_waits_at_no_step_but_those_that_look(
    precision: str, waits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop itself, but for what torch's fake GPU cannot do: gradients are made up."""
    monkeypatch.setattr(checkpoint, "load", lambda folder, collectives: None)
    for name in ("record_score", "record_result"):  # none of them at every step
        monkeypatch.setattr(train, name, lambda training: None)
    monkeypatch.setattr(Monitor, "_look", lambda monitor: None)
    took, watched = Training.take_step, Monitor.after_step

    def take_step(training: Training, *arguments: Any) -> None:
        waits.append(f"step {training.step}")
        if precision == "fp16" and not training.precision.scaler.is_enabled():
            scaler_of(training.precision, monkeypatch)
        took(training, *arguments)

    def after_step(monitor: Monitor, scored: bool) -> None:
        monitor._ask_every = 3
        watched(monitor, scored)

    def backward(training: Training, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
        with torch.no_grad():
            loss = training.precision.loss(training.models[0], *batches[0])
        training.precision.scaler.scale(loss)
        for parameter in training.optimizer.flat.tensors:
            parameter.grad.add_(1.0)  # type: ignore[union-attr]
        return loss

    monkeypatch.setattr(Training, "take_step", take_step)
    monkeypatch.setattr(Training, "_backward", backward)
    monkeypatch.setattr(Monitor, "after_step", after_step)
    config = small_config("mcser", settings_of("mcser", BLOCK), num_workers=1, precision=precision)
    samples = on_device(TASK.load(None, TaskSpec(name="blobs"), torch.device("cpu")))
    model = on_gpu(small_cnn.build(TASK.input_shape, 10, widths=[4, 8]))
    checkpoints = Checkpoints(tmp_path, 60.0, "attempt")
    train.train(Work(config, model, samples, SoloCollectives(), None, checkpoints, lambda: False))
    steps = [line.strip().split("\n") for line in "\n".join(waits).split("step ")[1:]]
    assert len(steps) == num_steps_of(config)[1]
    overflow = ["aten._local_scalar_dense.default"]
    # The first step makes the scale.
    assert all(rest == (overflow if precision == "fp16" else []) for _, *rest in steps[1:]), steps


def test_recalibration_waits_for_no_layer(waits: list[str]) -> None:
    config = small_config()
    model = on_gpu(wide_resnet.build((3, 32, 32), 10, depth=10, width=1))
    inputs = torch.zeros(4, 3, 32, 32, device=GPU)
    samples: Any = SimpleNamespace(training_batches=lambda *arguments: [(inputs, None)] * 3)
    layers, precision = _batch_norm_layers(model), MixedPrecision("fp32", GPU)
    momenta = [layer.momentum for layer in layers]
    waits.clear()
    with torch.no_grad():
        _recalibrate(config, model, layers, precision, samples, 0, 1, 1600)
    assert waits == [] and [layer.momentum for layer in layers] == momenta
