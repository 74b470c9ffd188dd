"""Settings that the tests of the harness share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# One thread per operation keeps every sum in one order, and the workers are threads already.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _denormal_numbers() -> Iterator[None]:
    """Commands called in this process let it flush denormal numbers; hypothesis wants to have
    them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are looked for are not folded."""
    monkeypatch.setenv("COLUMNS", "1000")
