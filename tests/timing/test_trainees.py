"""Workloads and the models that take their passes: where times come from, layers in order, waits, precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from algorithms.core import traffic
from harness.plan.footprint import RESNET50_FORWARD_FLOPS
from harness.spec import SpecError
from harness.spec_file import find_spec, load_spec
from harness.timing import trainees
from harness.timing.trainees import Trainee, computes_in, real_trainee, waiting_trainee, workload
from harness.timing.workloads import gradients_of, gradients_of_model, problem_of
from tests.timing.conftest import GRADIENTS, WORKLOAD

CPU = torch.device("cpu")


def test_times_are_published_scaled_or_measured_and_say_so() -> None:
    resnet, wide = workload("resnet50_v100", "cpu"), workload("wide_resnet_40_8_v100", "cpu")
    assert resnet.forward_seconds + resnet.backward_seconds == pytest.approx(32 / 1200)
    assert resnet.backward_seconds == pytest.approx(2 * resnet.forward_seconds)
    assert (resnet.num_parameters, resnet.batch_size, wide.num_parameters) == (25_557_032, 32, 35_794_516)
    assert "NVIDIA DeepLearningExamples" in resnet.source and "assumption" in resnet.source
    # 16 images of 32 x 32 at about 5.1 G multiply-adds (each of two operations), in fp32.
    expected = 16 * 2 * 5.1e9 / (RESNET50_FORWARD_FLOPS * 367)
    assert wide.forward_seconds + wide.backward_seconds == pytest.approx(expected, rel=0.05)
    assert "modelled" in wide.source
    small = workload("fashion_mnist", "cpu")
    assert (small.num_parameters, small.batch_size) == (25_786, 16)
    assert min(small.forward_seconds, small.backward_seconds) > 0 and "measured here" in small.source
    assert "on random images, fp32; forward to backward as 1 to 2" in small.source


def test_an_unknown_workload_is_refused_with_those_there_are() -> None:
    with pytest.raises(SpecError, match=r"unknown workload 'resnet'; the workloads are .*resnet50_v100"):
        workload("resnet", "cpu")


def test_gradients_are_in_order_and_modules_have_their_share_of_the_arithmetic() -> None:
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
    gradients = gradients_of_model(model, (2, 6))
    assert gradients.order == (1, 0, 3, 4, 2), "of a linear layer the bias is only added"
    # Multiply-adds: 6 x 4 and 4 x 2.
    assert gradients.done == pytest.approx([0.25, 0.25, 1.0, 0.25, 0.25])


def test_resnet50_has_all_its_parameters_in_the_order_of_their_gradients() -> None:
    gradients = gradients_of("resnet50_v100")
    assert sorted(gradients.order) == list(range(161))
    done = [gradients.done[number] for number in gradients.order]
    assert done == sorted(done) and done[-1] == pytest.approx(1.0)
    assert gradients.order[-1] == 0 and set(gradients.order[:2]) == {159, 160}, "the first convolution, the last layer"


class Clock:
    """Time that passes by sleeping, and by what is added to it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (trainees, traffic):
        monkeypatch.setattr(module, "time", made)
    return made


def waiting(dilation: float = 10.0) -> Trainee:
    trainee = waiting_trainee(GRADIENTS, WORKLOAD.model_copy(update={"forward_seconds": 1.0, "backward_seconds": 2.0}))
    trainee.slow_down(dilation)
    return trainee


def test_gradients_come_as_scheduled_and_the_pass_is_noted_as_it_goes(clock: Clock) -> None:
    trainee, seen = waiting(), list[float]()
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
    trainee, gradients = waiting(0.0), []
    parameters = list(trainee.module.parameters())
    assert [tuple(parameter.shape) for parameter in parameters] == list(GRADIENTS.shapes)
    for _ in range(2):
        trainee.module.zero_grad()
        trainee.passes()
        gradients.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
    assert clock.slept == [] and len(gradients[0]) == len(parameters)
    assert all(torch.equal(a, b) and a.isfinite().all() and a.any() for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("name", "on_gpu"), [("resnet50", "fp16"), ("wide_resnet_40_8", "fp32"), ("cmudict", "fp32")])
def test_passes_are_in_the_experiments_precision_on_gpus_and_in_fp32_on_cpus(name: str, on_gpu: str) -> None:
    assert (computes_in(name, torch.device("cuda", 1)), computes_in(name, CPU)) == (on_gpu, "fp32")
    if name != "cmudict":
        assert load_spec(find_spec(problem_of(name).task)).training.precision == on_gpu


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
        assert not torch.equal(exact, half) and (exact - half).norm() < 0.1 * exact.norm()
