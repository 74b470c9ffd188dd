"""A benchmark's step takes the path that training takes: the same operations as after a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from algorithms import SoloCollectives, algorithms
from tests.measured import methods

SHAPES = ((64, 32), (48,), (3, 3, 16))


class Operations(TorchDispatchMode):
    """Writes down the name of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], object]) -> list[str]:
    with Operations() as seen:
        work()
    return seen.names


@pytest.mark.parametrize("name", algorithms())
def test_a_benchmarked_step_does_what_a_step_in_training_does(name: str) -> None:
    stepper = methods.own_stepper(name, methods.random_parameters(SHAPES))
    parameters = methods.random_parameters(SHAPES)
    trained = methods.build(name, parameters, SoloCollectives())

    def passes() -> None:
        trained.zero_grad()
        torch.stack([1e-3 * parameter.sum() for parameter in parameters]).sum().backward()  # type: ignore[no-untyped-call]

    for _ in range(3):
        stepper.touch()
        passes()
        benchmarked, in_training = operations(stepper.step), operations(trained.step)
    assert benchmarked == in_training and benchmarked
