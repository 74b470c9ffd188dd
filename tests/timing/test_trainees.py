"""Trainees: the one that waits, on a clock that only its sleeps move, and the real one's precision."""

from __future__ import annotations

import pytest
import torch

from harness.spec_file import find_spec, load_spec
from harness.timing import trainees
from harness.timing.trainees import Trainee, computes_in, real_trainee, waiting_trainee
from harness.timing.workloads import gradients_of, problem_of
from tests.timing.conftest import GRADIENTS, WORKLOAD

CPU = torch.device("cpu")


class Clock:
    """Time that passes by sleeping, and by what is added to it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(trainees, "time", made)
    return made


def waiting(dilation: float = 10.0) -> Trainee:
    times = WORKLOAD.model_copy(update={"forward_seconds": 1.0, "backward_seconds": 2.0})
    trainee = waiting_trainee(GRADIENTS, times)
    trainee.slow_down(dilation)
    return trainee


def test_layers_wait_their_shares_and_the_pass_is_noted_as_it_goes(clock: Clock) -> None:
    trainee, seen = waiting(), []
    for parameter in trainee.module.parameters():
        parameter.register_hook(lambda _: seen.append(round(trainee.share_done, 6)))
    trainee.passes()
    # The forward pass's 10 s, and shares 0.8, 0, 0.2 of the backward pass's 20; without arithmetic nothing sleeps.
    assert clock.slept == pytest.approx([10.0 + 16.0, 4.0])
    assert seen == [0.8, 0.8, 0.8, 1.0]
    assert trainee.began == 100.0 and trainee.last_gradient == pytest.approx(130.0)


def test_in_all_it_waits_what_is_scheduled_whatever_else_takes_time(clock: Clock) -> None:
    trainee = waiting()

    def hook(_: object) -> None:
        clock.now += 0.5  # as DDP's copies to its buckets do

    for parameter in trainee.module.parameters():
        parameter.register_hook(hook)
    started = clock.now
    trainee.passes()
    assert trainee.scheduled_seconds == 30.0
    # The first layer's gradient comes last, and nothing after it could hide its hook.
    assert clock.now - started == pytest.approx(30.0 + 0.5)


def test_without_a_dilation_it_does_not_wait_and_gradients_are_the_same_in_every_step(clock: Clock) -> None:
    trainee = waiting(0.0)
    parameters = list(trainee.module.parameters())
    assert [tuple(parameter.shape) for parameter in parameters] == list(GRADIENTS.shapes)
    gradients = []
    for _ in range(2):
        trainee.module.zero_grad()
        trainee.passes()
        gradients.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
    assert clock.slept == []
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) and len(gradients[0]) == len(parameters)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients[0])


@pytest.mark.parametrize(("name", "on_gpu"), [("resnet50", "fp16"), ("wide_resnet_40_8", "fp32"), ("cmudict", "fp32")])
def test_passes_are_in_the_experiments_precision_on_gpus_and_in_fp32_on_cpus(name: str, on_gpu: str) -> None:
    assert computes_in(name, torch.device("cuda", 1)) == on_gpu
    assert computes_in(name, CPU) == "fp32"
    task = problem_of(name).task
    if task in ("imagenet", "cifar100"):
        assert load_spec(find_spec(task)).training.precision == on_gpu


def test_passes_in_half_precision_have_gradients_that_nothing_has_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU's autocast, which stands for the GPU's."""
    gradients = []
    for precision in ("fp32", "fp16"):
        monkeypatch.setattr(trainees, "computes_in", lambda name, device, precision=precision: precision)
        made = real_trainee("fashion_mnist", gradients_of("fashion_mnist"), CPU, 0)
        made.passes()
        gradients.append([parameter.grad for parameter in made.module.parameters()])
    for exact, half in zip(*gradients, strict=True):
        assert exact is not None and half is not None and half.dtype == torch.float32
        assert not torch.equal(exact, half)
        assert (exact - half).norm() < 0.1 * exact.norm()
