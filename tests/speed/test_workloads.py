"""Tests of the workloads and of where their times come from."""

from __future__ import annotations

import pytest

from harness.plan.estimate import RESNET50_FORWARD_FLOPS
from harness.spec import SpecError
from harness.speed.workloads import calibrate, workload


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


def test_an_unknown_workload_is_refused_with_those_there_are() -> None:
    with pytest.raises(SpecError, match=r"unknown workload 'resnet'; the workloads are .*resnet50_v100"):
        workload("resnet", "cpu")
