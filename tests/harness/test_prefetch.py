"""Batches made ready on a stream of their own, on a made-up GPU that writes down what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.tasks.task import Batch
from harness.train.training import Prefetched

GPU = torch.device("cuda", 0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was told to which stream, in order."""
    told, current = list[str](), ["main"]

    def stream(name: str) -> Any:
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: told.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: told.append(f"{name} waits for {event}"),
            record_event=lambda: f"what {name} had after {told[-1]}",
        )

    @contextmanager
    def within(other: Any) -> Iterator[None]:
        current.append(other.name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream(current[-1]))
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, held_by: told.append(f"{held_by.name} holds {tensor}"))
    return told


def made(told: list[str], count: int) -> Iterator[list[Batch]]:
    for number in range(count):
        told.append(f"{number} made on {torch.cuda.current_stream(GPU).name}")  # type: ignore[attr-defined]
        yield [(torch.tensor(10 * number), torch.tensor(10 * number + 1))]


def test_a_batch_is_made_beside_and_taken_when_it_is_ready(told: list[str]) -> None:
    batches, taken = Prefetched(made(told, 2), GPU), []
    for batch in batches:
        taken.append(int(batch[0][0]))
        told.append(f"backward of {len(taken) - 1}")
        batches.prepare()
        batches.prepare()  # there is one already
    assert taken == [0, 10]
    assert told == [
        "side waits for main",
        "0 made on side",
        "main waits for what side had after 0 made on side",
        "main holds 0",
        "main holds 1",
        "backward of 0",
        "1 made on side",
        "main waits for what side had after 1 made on side",
        "main holds 10",
        "main holds 11",
        "backward of 1",
    ]


def test_what_goes_wrong_while_a_batch_is_made_is_raised(told: list[str]) -> None:
    def failing() -> Iterator[list[Batch]]:
        yield from made(told, 1)
        raise ValueError("a damaged image")

    batches = Prefetched(failing(), GPU)
    next(batches)
    with pytest.raises(ValueError, match="a damaged image"):
        batches.prepare()
