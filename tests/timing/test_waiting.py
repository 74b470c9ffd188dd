"""Tests of the trainee that waits, on a clock that only its sleeps move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.timing.passes import WaitingTrainee
from harness.timing.workloads import layers_of, layers_of_model
from tests.timing.made_up import LAYERS, workload


class Clock:
    """Time that passes by sleeping, and by what is added to it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def trainee_on(clock: Clock, dilation: float = 10.0) -> WaitingTrainee:
    times = workload(forward_seconds=1.0, backward_seconds=2.0)
    return WaitingTrainee(LAYERS, times, dilation, clock, clock, clock.sleep)


def test_layers_wait_their_shares_forwards_and_backwards() -> None:
    clock = Clock()
    trainee_on(clock).passes()
    # Shares 0.2, 0, 0.8 of 10 s, then 0.8, 0, 0.2 of 20 s; those without arithmetic do not sleep.
    assert clock.slept == pytest.approx([2.0, 8.0, 16.0, 4.0])


def test_in_all_it_waits_what_is_scheduled_whatever_else_takes_time() -> None:
    clock = Clock()
    trainee = trainee_on(clock)

    def hook(_: object) -> None:
        clock.now += 0.5  # as DDP's copies to its buckets do

    for parameter in trainee.module.parameters():
        parameter.register_hook(hook)
    started = clock.now
    trainee.passes()
    assert trainee.scheduled_seconds == 30.0
    # The first layer's gradient comes last, and nothing after it could hide its hook.
    assert clock.now - started == pytest.approx(30.0 + 0.5)


def test_the_pass_is_noted_as_it_goes() -> None:
    clock = Clock()
    trainee, seen = trainee_on(clock), []
    for parameter in trainee.module.parameters():
        parameter.register_hook(lambda _: seen.append(round(trainee.watch.share_done, 6)))
    trainee.passes()
    assert seen == [0.8, 0.8, 0.8, 1.0]
    assert trainee.watch.began == 100.0 and trainee.watch.last_gradient == pytest.approx(130.0)


def test_it_can_pass_without_waiting() -> None:
    clock = Clock()
    trainee = trainee_on(clock)
    trainee.waits = False
    trainee.passes()
    assert clock.slept == []


def test_gradients_are_finite_and_the_same_in_every_step() -> None:
    trainee = trainee_on(Clock())
    parameters = list(trainee.module.parameters())
    assert [tuple(parameter.shape) for parameter in parameters] == list(LAYERS.shapes)
    gradients = []
    for _ in range(2):
        trainee.module.zero_grad()
        trainee.passes()
        gradients.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) and len(gradients[0]) == len(parameters)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients[0])


def test_layers_are_in_the_order_of_their_gradients_with_their_share_of_the_arithmetic() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Linear(4, 2)
            self.early = nn.Linear(6, 4, bias=False)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.late(self.norm(self.early(x)))
            return out

    with torch.device("meta"):
        model = Model()
    layers = layers_of_model(model, (2, 6))
    assert [(layer.name, layer.parameters) for layer in layers.in_order] == [
        ("early", (2,)),
        ("norm", (3, 4)),
        ("late", (1, 0)),  # The bias is only added.
    ]
    # Multiply-adds: 6 x 4 and 4 x 2.
    assert [layer.share for layer in layers.in_order] == pytest.approx([24 / 32, 0.0, 8 / 32])
    assert layers.ready() == pytest.approx([0.25, 0.25, 1.0, 0.25, 0.25])


def test_resnet50_has_all_its_parameters_in_its_layers() -> None:
    layers = layers_of("resnet50_v100")
    assert sorted(number for layer in layers.in_order for number in layer.parameters) == list(range(161))
    assert sum(torch.Size(shape).numel() for shape in layers.shapes) == 25_557_032
    assert sum(layer.share for layer in layers.in_order) == pytest.approx(1.0)
    assert layers.in_order[0].name == "conv1" and layers.in_order[-1].name == "fc"
