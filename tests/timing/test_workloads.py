"""Workloads: where their times come from, and their models' layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.plan.step_time import RESNET50_FORWARD_FLOPS
from harness.spec import SpecError
from harness.timing.trainees import workload
from harness.timing.workloads import layers_of, layers_of_model


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
