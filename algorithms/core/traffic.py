"""The ledger of what one worker sends, by purpose, and of how long work takes."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import astuple, dataclass, field
from enum import StrEnum

import torch


class Purpose(StrEnum):
    """The purpose of a message.

    `EVALUATION` (scores of the average) and `CONTROL` (equal initial parameters, agreement on what
    to do next, checkpoints) are no part of an algorithm's cost; how much control there is depends
    on interruptions.
    """

    GRADIENT = "gradient"
    ERROR = "error"
    MODEL = "model"
    EVALUATION = "evaluation"
    CONTROL = "control"


TRAINING = (Purpose.GRADIENT, Purpose.ERROR, Purpose.MODEL)


@dataclass
class Entry:
    """Payload bits that one worker contributed, and the number of collectives it took part in.

    `gathered_bits`: those of the bits that went by all-gathers, which cost a link more than
        all-reduces do.
    `neighbour_bits`: those that went straight to neighbours, each of which a link carries once.
    """

    bits: int = 0
    collectives: int = 0
    gathered_bits: int = 0
    neighbour_bits: int = 0

    def link_bits(self, num_workers: int) -> float:
        """Return the bits that one worker's link carries for these, by rings."""
        # `bits` is the total of all three kinds.
        all_reduced = self.bits - self.gathered_bits - self.neighbour_bits
        return carried(
            num_workers, all_reduced, self.gathered_bits, self.neighbour_bits
        )


def carried(
    num_workers: int,
    all_reduced: float,
    gathered: float = 0.0,
    to_neighbours: float = 0.0,
) -> float:
    """Return what one worker's link carries for what the worker contributes, in its unit.

    A ring carries an all-reduce's message 2 (n - 1) / n times, and each worker's message of an
    all-gather n - 1 times. What goes to neighbours is carried once.
    """
    n = num_workers
    # All-reduce: n - 1 shares of 1/n to add up, and n - 1 more to hand the sums round.
    return 2 * (n - 1) / n * all_reduced + (n - 1) * gathered + to_neighbours


@dataclass
class Traffic:
    """The count of what one worker has sent so far; == compares it with a closed form."""

    entries: dict[Purpose, Entry] = field(
        default_factory=lambda: {purpose: Entry() for purpose in Purpose}
    )

    def add(
        self,
        purpose: Purpose,
        bits: int,
        collectives: int = 1,
        gathered_bits: int = 0,
        neighbour_bits: int = 0,
    ) -> None:
        total = self.entries[purpose]
        total.bits += bits
        total.collectives += collectives
        total.gathered_bits += gathered_bits
        total.neighbour_bits += neighbour_bits

    def add_entry(self, purpose: Purpose, entry: Entry) -> None:
        self.add(purpose, *astuple(entry))

    def __add__(self, other: Traffic) -> Traffic:
        total = Traffic()
        for entries in (self.entries, other.entries):
            for purpose, entry in entries.items():
                total.add_entry(purpose, entry)
        return total

    def __getitem__(self, purpose: Purpose) -> Entry:
        return self.entries[purpose]

    def __str__(self) -> str:
        """Return a table for people: what was sent for each purpose, and for training in all."""
        rows = {}
        total = Entry()
        # Purposes without a collective are left out of the table.
        for purpose, entry in self.entries.items():
            if entry.collectives:
                rows[purpose.value] = entry
            if purpose in TRAINING:
                total.bits += entry.bits
                total.collectives += entry.collectives
        rows["training in all"] = total
        heads = f"{'collectives':>14}{'payload bits':>20}{'megabytes':>14}"
        lines = [f"{'sent by one worker for':<24}{heads}"]
        for name, entry in rows.items():
            megabytes = entry.bits / 8e6
            numbers = f"{entry.collectives:>14,}{entry.bits:>20,}{megabytes:>14,.3f}"
            lines.append(f"{name:<24}{numbers}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, int]:
        """Return the counts as plain numbers for loggers, by purpose, and for training in all."""
        entries = {purpose.value: entry for purpose, entry in self.entries.items()}
        entries["training"] = self.training_total()
        numbers = {}
        for name, entry in entries.items():
            numbers[f"{name}_bits"] = entry.bits
            numbers[f"{name}_collectives"] = entry.collectives
        return numbers

    @property
    def training_bits(self) -> int:
        """Payload bits of the algorithm itself: gradient, error and model."""
        return sum(self.entries[purpose].bits for purpose in TRAINING)

    def training_total(self) -> Entry:
        """Return the algorithm's own entries added up."""
        total = [0, 0, 0, 0]  # the fields of `Entry`
        for purpose in TRAINING:
            total = [
                a + b
                for a, b in zip(total, astuple(self.entries[purpose]), strict=True)
            ]
        return Entry(*total)

    def training(self) -> dict[str, Entry]:
        """Return the algorithm's own entries, by the purpose's name."""
        return {purpose.value: self.entries[purpose] for purpose in TRAINING}

    def state_dict(self) -> dict[str, list[int]]:
        return {
            purpose.value: list(astuple(entry))
            for purpose, entry in self.entries.items()
        }

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self.entries = {purpose: Entry(*state[purpose.value]) for purpose in Purpose}


Mark = float | torch.cuda.Event
"""A moment: on the CPU's clock, in seconds, or in the order of a GPU's work."""


def mark(device: torch.device) -> Mark:
    """Return now; on a GPU the moment when all work queued on the current stream will be done."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


class Elapsed:
    """Seconds of pieces of work, added up by name, without waiting for a GPU meanwhile."""

    def __init__(self) -> None:
        self._over: Counter[str] = Counter()
        self._on: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()
        """Pieces that a GPU may not have finished, in the order of their ends."""

    def add(self, name: str, start: Mark, end: Mark) -> None:
        """Count the time between two marks of one device."""
        # Seconds on the CPU's clock.
        if isinstance(start, float) or isinstance(end, float):
            assert isinstance(start, float) and isinstance(end, float)
            self._over[name] += end - start  # type: ignore[assignment]
            return
        self._on.append((name, start, end))
        # Count what the GPU has done by now; `query` does not wait.
        while self._on and self._on[0][2].query():  # type: ignore[no-untyped-call]
            self._count_first()

    def seconds(self) -> dict[str, float]:
        """Return the seconds by name; waits for the last piece of work to end."""
        while self._on:
            # The host waits here, and nowhere else.
            self._on[0][2].synchronize()
            self._count_first()
        return dict(self._over)

    def _count_first(self) -> None:
        name, start, end = self._on.popleft()
        # Events measure milliseconds.
        self._over[name] += start.elapsed_time(end) / 1e3
