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


@pytest.mark.filterwarnings("error:no parameter has a gradient")
@pytest.mark.parametrize("name", algorithms())
def test_benchmarked_steps_do_what_steps_in_training_do(name: str) -> None:
    stepper, benchmarked = subjects.own_stepper(name, subjects.random_parameters(subjects.SMALL_SHAPES)), []
    watched = stepper._replace(step=lambda: benchmarked.append(operations(stepper.step)))
    subjects.interval_seconds({name: watched}, 1, torch.device("cpu"))
    parameters, in_training = subjects.random_parameters(subjects.SMALL_SHAPES), []
    trained = subjects.build(name, parameters, SoloCollectives())
    for _ in benchmarked:
        trained.zero_grad()
        torch.stack([1e-3 * parameter.sum() for parameter in parameters]).sum().backward()  # type: ignore[no-untyped-call]
        in_training.append(operations(trained.step))
    assert benchmarked == in_training and all(benchmarked)
