"""Batches made ready on a stream of their own, on a made-up GPU that writes down what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.tasks.task import Batch
from harness.train.training import Prefetched

GPU = torch.device("cuda", 0)


class Streams:
    """What was told to which stream, in order."""

    def __init__(self) -> None:
        self.current, self.told = "main", list[str]()

    def stream(self, name: str) -> Any:
        streams = self

        class Stream:
            def wait_stream(self, other: Any) -> None:
                streams.told.append(f"{name} waits for {other.name}")

            def wait_event(self, event: str) -> None:
                streams.told.append(f"{name} waits for {event}")

            def record_event(self) -> str:
                return f"what {name} had after {streams.told[-1]}"

        made: Any = Stream()
        made.name = name
        return made


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    made = Streams()
    main, side = made.stream("main"), made.stream("side")

    @contextmanager
    def within(stream: Any) -> Iterator[None]:
        made.current, before = stream.name, made.current
        yield
        made.current = before

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    held = made.told
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: held.append(f"{stream.name} holds {tensor[0]}"))
    return made


def numbered(streams: Streams, count: int) -> Iterator[list[Batch]]:
    for number in range(count):
        streams.told.append(f"{number} made on {streams.current}")
        yield [(torch.tensor([10 * number]), torch.tensor([10 * number + 1]))]


def test_a_batch_is_made_beside_and_taken_when_it_is_ready(streams: Streams) -> None:
    batches = Prefetched(numbered(streams, 3), GPU)
    taken = []
    for batch in batches:
        taken.append(int(batch[0][0]))
        streams.told.append(f"backward of {len(taken) - 1}")
        batches.prepare()
        batches.prepare()  # there is one already
        streams.told.append(f"step of {len(taken) - 1}")
    assert taken == [0, 10, 20]
    assert streams.told == [
        "side waits for main",
        "0 made on side",
        "main waits for what side had after 0 made on side",
        "main holds 0",
        "main holds 1",
        "backward of 0",
        "1 made on side",
        "step of 0",
        "main waits for what side had after 1 made on side",
        "main holds 10",
        "main holds 11",
        "backward of 1",
        "2 made on side",
        "step of 1",
        "main waits for what side had after 2 made on side",
        "main holds 20",
        "main holds 21",
        "backward of 2",
        "step of 2",
    ]


def test_what_goes_wrong_while_a_batch_is_made_is_raised(streams: Streams) -> None:
    def failing() -> Iterator[list[Batch]]:
        yield from numbered(streams, 1)
        raise ValueError("a damaged image")

    batches = Prefetched(failing(), GPU)
    next(batches)
    with pytest.raises(ValueError, match="a damaged image"):
        batches.prepare()
