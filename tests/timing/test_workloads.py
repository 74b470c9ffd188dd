"""Tests of the workloads and of where their times come from."""

from __future__ import annotations

import pytest
import torch

from harness.plan.step_time import RESNET50_FORWARD_FLOPS
from harness.spec import SpecError
from harness.spec_file import find_spec, load_spec
from harness.timing import passes
from harness.timing.passes import calibrate, workload
from harness.timing.workloads import computes_in, layers_of, problem_of

CPU = torch.device("cpu")


def test_resnet50_takes_what_the_source_says() -> None:
    resnet = workload("resnet50_v100", "cpu")
    assert resnet.forward_seconds + resnet.backward_seconds == pytest.approx(32 / 1200)
    assert resnet.backward_seconds == pytest.approx(2 * resnet.forward_seconds)
    assert resnet.num_parameters == 25_557_032 and resnet.batch_size == 32
    assert "NVIDIA DeepLearningExamples" in resnet.source and "assumption" in resnet.source


def test_wide_resnet_is_scaled_by_arithmetic_and_says_so() -> None:
    wide = workload("wide_resnet_40_8_v100", "cpu")
    # 16 images of 32 x 32 at about 5.1 G multiply-adds each (every one two operations), in fp32.
    assert wide.forward_seconds + wide.backward_seconds == pytest.approx(
        16 * 2 * 5.1e9 / (RESNET50_FORWARD_FLOPS * 367), rel=0.05
    )
    assert wide.num_parameters == 35_794_516 and "modelled" in wide.source


def test_others_are_measured_and_say_so() -> None:
    small = calibrate("fashion_mnist", "cpu")
    assert small.num_parameters == 25_786 and small.batch_size == 16
    assert min(small.forward_seconds, small.backward_seconds) > 0 and "measured here" in small.source
    assert "on random images, fp32; forward to backward as 1 to 2" in small.source


@pytest.mark.parametrize(("name", "on_gpu"), [("resnet50", "fp16"), ("wide_resnet_40_8", "fp32"), ("cmudict", "fp32")])
def test_passes_are_in_the_experiments_precision_on_gpus_and_in_fp32_on_cpus(name: str, on_gpu: str) -> None:
    assert computes_in(name, torch.device("cuda", 1)) == on_gpu
    assert computes_in(name, torch.device("cpu")) == "fp32"
    task = problem_of(name).task
    if task in ("imagenet", "cifar100"):
        assert load_spec(find_spec(task)).training.precision == on_gpu


def test_passes_in_half_precision_have_gradients_that_nothing_has_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU's autocast, which stands for the GPU's."""
    gradients = []
    for precision in ("fp32", "fp16"):
        monkeypatch.setattr(passes, "computes_in", lambda name, device, precision=precision: precision)
        made = passes.RealTrainee("fashion_mnist", layers_of("fashion_mnist"), CPU, 0, lambda: 0.0)
        made.passes()
        gradients.append([parameter.grad for parameter in made.module.parameters()])
    for exact, half in zip(*gradients, strict=True):
        assert exact is not None and half is not None and half.dtype == torch.float32
        assert not torch.equal(exact, half)
        assert (exact - half).norm() < 0.1 * exact.norm()


def test_an_unknown_workload_is_refused_with_those_there_are() -> None:
    with pytest.raises(SpecError, match=r"unknown workload 'resnet'; the workloads are .*resnet50_v100"):
        workload("resnet", "cpu")
