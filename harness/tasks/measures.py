"""What decoded sentences are scored by, as sums over sentences, so that workers may each score a share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Tokens = Sequence[int]


class Measure(Protocol):
    """Sums that can be added over any sentences, and the metrics that follow from them."""

    num_sums: int

    def sums(self, predicted: Sequence[Tokens], expected: Sequence[Tokens]) -> list[float]:
        """Of these sentences, without BEGIN and END."""

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """By name, as shares (a BLEU of 30 is 0.3)."""

    def signatures(self) -> dict[str, str]:
        """By metric: how it was computed, where that has a standard form."""


class PhoneErrors:
    """Edit distance over the length of the reference, both summed over all words."""

    num_sums = 2

    def sums(self, predicted: Sequence[Tokens], expected: Sequence[Tokens]) -> list[float]:
        errors = sum(edit_distance(*pair) for pair in zip(predicted, expected, strict=True))
        return [float(errors), float(sum(map(len, expected)))]

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        errors, phones = sums
        return {"phone_error_rate": errors / phones}

    def signatures(self) -> dict[str, str]:
        return {}


def edit_distance(first: Tokens, second: Tokens) -> int:
    """Fewest insertions, deletions and substitutions that make one of the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for number, left in enumerate(first, 1):
        diagonal, row[0] = row[0], number
        for place, right in enumerate(second, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (left != right))
    return row[-1]
