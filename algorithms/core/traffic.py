"""The ledger of what one worker sends: payload bits and number of collectives, by purpose."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Purpose(StrEnum):
    """Why something is sent.

    `EVALUATION` (scores of the average) and `CONTROL` (equal initial parameters, agreement on what to do next,
    checkpoints) are no part of an algorithm's cost; how much control there is depends on interruptions.
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

    `gathered_bits`: those of the bits that went by all-gathers, which cost a link more than all-reduces do.
    `neighbour_bits`: those that went straight to neighbours, each of which a link carries once.
    """

    bits: int = 0
    collectives: int = 0
    gathered_bits: int = 0
    neighbour_bits: int = 0


def _empty() -> dict[Purpose, Entry]:
    return {purpose: Entry() for purpose in Purpose}


@dataclass
class Traffic:
    """What one worker has sent so far. Comparable with ==, so a count can be checked against a closed form."""

    entries: dict[Purpose, Entry] = field(default_factory=_empty)

    def add(
        self, purpose: Purpose, bits: int, collectives: int = 1, gathered_bits: int = 0, neighbour_bits: int = 0
    ) -> None:
        self.add_entry(purpose, Entry(bits, collectives, gathered_bits, neighbour_bits))

    def add_entry(self, purpose: Purpose, entry: Entry) -> None:
        total = self.entries[purpose]
        total.bits += entry.bits
        total.collectives += entry.collectives
        total.gathered_bits += entry.gathered_bits
        total.neighbour_bits += entry.neighbour_bits

    def __getitem__(self, purpose: Purpose) -> Entry:
        return self.entries[purpose]

    def __str__(self) -> str:
        """A table for people: what was sent for each purpose, and for training in all."""
        rows = [(purpose.value, self.entries[purpose]) for purpose in Purpose if self.entries[purpose].collectives]
        trained = [self.entries[purpose] for purpose in TRAINING]
        total = Entry(sum(each.bits for each in trained), sum(each.collectives for each in trained))
        lines = [f"{'sent by one worker for':<24}{'collectives':>14}{'payload bits':>20}{'megabytes':>14}"]
        lines += [
            f"{name:<24}{entry.collectives:>14,}{entry.bits:>20,}{entry.bits / 8e6:>14,.3f}"
            for name, entry in [*rows, ("training in all", total)]
        ]
        return "\n".join(lines)

    @property
    def training_bits(self) -> int:
        """Payload bits of the algorithm itself: gradient, error and model."""
        return sum(self.entries[purpose].bits for purpose in TRAINING)

    def training(self) -> dict[str, Entry]:
        """The algorithm's own entries, by the purpose's name."""
        return {purpose.value: self.entries[purpose] for purpose in TRAINING}

    def state_dict(self) -> dict[str, list[int]]:
        return {
            purpose.value: [entry.bits, entry.collectives, entry.gathered_bits, entry.neighbour_bits]
            for purpose, entry in self.entries.items()
        }

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self.entries = {purpose: Entry(*state[purpose.value]) for purpose in Purpose}
