"""A benchmark's step takes the path that training takes: the same operations as after a backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.profiler import profile

from algorithms import SoloCollectives, algorithms
from tests.measured import subjects


def operations(work: Callable[[], object]) -> list[str]:
    with profile() as seen:
        work()
    return [event.name for event in seen.events() if event.name.startswith("aten::")]


@pytest.mark.parametrize("name", algorithms())
def test_a_benchmarked_step_does_what_a_step_in_training_does(name: str) -> None:
    stepper = subjects.own_stepper(name, subjects.random_parameters(subjects.SMALL_SHAPES))
    parameters = subjects.random_parameters(subjects.SMALL_SHAPES)
    trained = subjects.build(name, parameters, SoloCollectives())
    for _ in range(3):
        subjects.touch_gradients(stepper.parameters)
        trained.zero_grad()
        torch.stack([1e-3 * parameter.sum() for parameter in parameters]).sum().backward()  # type: ignore[no-untyped-call]
        benchmarked, in_training = operations(stepper.step), operations(trained.step)
    assert benchmarked == in_training and benchmarked
