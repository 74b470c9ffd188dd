"""Workloads: where their times come from, and their models' layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.plan.step_time import RESNET50_FORWARD_FLOPS
from harness.spec import SpecError
from harness.timing.trainees import workload
from harness.timing.workloads import gradients_of, gradients_of_model


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
    small = workload("fashion_mnist", "cpu")
    assert small.num_parameters == 25_786 and small.batch_size == 16
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
    assert sum(torch.Size(shape).numel() for shape in gradients.shapes) == 25_557_032
    done = [gradients.done[number] for number in gradients.order]
    assert done == sorted(done) and done[-1] == pytest.approx(1.0)
    assert gradients.order[-1] == 0 and set(gradients.order[:2]) == {159, 160}, "the first convolution, the last layer"
