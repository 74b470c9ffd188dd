"""Where a run's time is booked: on a CPU by its clock, on a GPU by when that comes to the work, and nobody waits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from algorithms import Purpose, SoloCollectives
from algorithms.core.traffic import Mark, mark
from harness.train.clock import Clock

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_clock_on_made_up_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("algorithms.core.traffic.time.perf_counter", lambda: now[0])
    collectives = SoloCollectives()
    collectives.elapsed.add("", 0.0, 50.0)  # before there was a clock
    clock = Clock(collectives, CPU, {"data": 5.0})
    for phase, passed, talked in [
        ("data", 2.0, 0.5),
        ("compute", 1.0, 0.0),
        ("evaluate", 4.0, 3.0),
        ("data", 8.0, 1.0),
    ]:
        now[0] += passed
        collectives.elapsed.add(collectives.account, 0.0, talked)
        clock.switch(phase)  # type: ignore[arg-type]
    # Each switch ends the phase before it: compute, data, compute, evaluate.
    assert clock.seconds == {"data": 6.0, "compute": 2.5, "communicate": 4.5, "evaluate": 7.0, "checkpoint": 0.0}
    assert clock.wall_seconds == 20.0


class Event:
    """A CUDA event of a GPU that comes to it when a test says so."""

    recorded: list[Event]

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self, stream: object) -> None:
        self.recorded.append(self)

    def query(self) -> bool:
        return self.at is not None

    def synchronize(self) -> None:
        assert self.at is not None, "the host waits for the GPU"

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds."""
        assert self.at is not None and end.at is not None
        return 1e3 * (end.at - self.at)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The events in the order in which a made-up GPU was told of them."""
    events: list[Event] = []
    monkeypatch.setattr(Event, "recorded", events, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    return events


class OnGPU(SoloCollectives):
    """Collectives that a GPU does."""

    def _mark(self, tensor: Tensor) -> Mark:
        return mark(GPU)


def test_a_gpus_times_are_its_own_and_nobody_waits_for_them(recorded: list[Event]) -> None:
    collectives = OnGPU()
    clock = Clock(collectives, GPU, {"communicate": 100.0})
    for _ in range(2):  # steps, as the host tells the GPU of them
        clock.switch("data")
        clock.switch("compute")
        collectives.all_reduce_sum_(torch.zeros(1), Purpose.GRADIENT)
    clock.switch("evaluate")  # so far the GPU has come to nothing, and no one has asked it
    assert len(recorded) == 1 + 2 * 4 + 1
    # It starts at 10 s. In the first step it waits 3 s for data, computes for 1 s, and waits 4 s for the others.
    times = [10.0, 10.0, 13.0, 14.0, 18.0]
    # In the second none for data, 2 s, 1 s, and half a second for the rest.
    times += [18.0, 18.0, 20.0, 21.0, 21.5]
    for event, time in zip(recorded, times, strict=True):
        event.at = time
    seconds = clock.seconds
    expected = {"data": 3.0, "compute": 3.5, "communicate": 105.0, "evaluate": 0.0, "checkpoint": 0.0}
    assert seconds == pytest.approx(expected)
    assert clock.wall_seconds == pytest.approx(100.0 + 21.5 - 10.0)
