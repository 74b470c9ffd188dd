"""Settings that the tests of the harness share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from harness.workers import attempt

# One thread per operation keeps every sum in one order, and the workers are threads already.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _models_are_built_one_at_a_time() -> Iterator[None]:
    """Workers that are threads share the generator from which nn.Module draws."""
    turn, build = threading.Lock(), attempt.trainable

    def in_turn(*arguments: Any) -> Any:
        with turn:
            return build(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "trainable", in_turn)
        yield


@pytest.fixture(autouse=True)
def _denormal_numbers() -> Iterator[None]:
    """Commands called in this process let it flush denormal numbers; hypothesis wants to have them."""
    yield
    torch.set_flush_denormal(False)
