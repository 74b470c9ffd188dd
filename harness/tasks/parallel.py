"""Any parallel text as a task, in subwords: two files with a sentence on each line, for each split.

To use one's own, write a module as `wmt_en_de.py` is one. Counts are fields, so that plans need no data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from harness.spec import TaskSpec
from harness.tasks import DataError
from harness.tasks.pairs import NUM_SPECIAL, BleuAndChrf, Encoded, PairSamples, Tokens, chosen_pairs, digest

SPECIAL = ["<pad>", "<begin>", "<end>"]
LEAST = NUM_SPECIAL + 256
"""Any text is made of bytes, so no token is ever unknown."""


class TextPair(NamedTuple):
    """A sentence in both languages, and the group that it belongs to."""

    source: str
    target: str
    group: int = 0


Splits = tuple[list[TextPair], list[TextPair]]
"""Pairs to train on, and pairs to score."""


class Source(Protocol):
    """A place that pairs are read from."""

    @property
    def where(self) -> str:
        """The advice for people who lack them."""

    def read(self, data: Path | None) -> Splits:
        """The pairs, from the folder `data` or from where they are known to lie.

        Raises:
            DataError: they are missing or damaged.
        """


@dataclass(frozen=True)
class TextFiles:
    """Files in the folder that the user names; `train` and `test` are the names of two files each, source first."""

    train: tuple[str, str]
    test: tuple[str, str]
    where: str

    def read(self, data: Path | None) -> Splits:
        if data is None:
            known = " and ".join(self.train)
            raise DataError(f"the folder with {known} is not known; give it as DATA ({self.where})")
        train, test = (read_parallel(data / names[0], data / names[1]) for names in (self.train, self.test))
        return train, test


@dataclass(frozen=True)
class ParallelText:
    """A task of pairs of sentences, in subwords that are learnt from those to train on.

    Attributes:
        vocabulary: subwords of both languages together.
        positions: most subwords of a sentence, END included; longer ones are cut.
        sha256: the digest of all pairs, those to score first; None where any will do.
        max_cut: a larger share of sentences to cut is refused.
    """

    num_train: int
    num_test: int
    source: Source
    vocabulary: int
    positions: int
    sha256: str | None = None
    max_cut: float = 0.01
    metrics: tuple[str, ...] = ("bleu", "chrf")

    @property
    def num_classes(self) -> int:
        return self.vocabulary

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (2, self.positions)

    def prepare(self, data: Path | None) -> None:
        self._read(data)

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> PairSamples:
        """Raises DataError as `prepare`, or where the vocabulary or `positions` do not fit the texts."""
        (train, test), sha256 = self._read(data)
        subwords = Subwords([text for pair in train for text in pair[:2]], self.vocabulary)
        encoded_train, encoded_test = _encoded(train, subwords), _encoded(test, subwords)
        _cut([encoded_train, encoded_test], self.positions - 1, self.max_cut)
        pairs = chosen_pairs(encoded_train, encoded_test, spec, device)
        return PairSamples(*pairs, BleuAndChrf(subwords.decode), self.positions, sha256, subwords.sha256)

    def _read(self, data: Path | None) -> tuple[Splits, str]:
        """The pairs and their digest. Raises DataError where they are missing, damaged or other ones."""
        train, test = self.source.read(data)
        sha256 = digest(f"{pair.source}\t{pair.target}" for pair in (*test, *train))
        if (len(train), len(test)) != (self.num_train, self.num_test) or self.sha256 not in (None, sha256):
            raise DataError(
                f"the texts in {data or 'their own folder'} are other ones than they should be ({len(train):,} pairs "
                f"to train on and {len(test):,} to score, expected {self.num_train:,} and {self.num_test:,}); "
                f"{self.source.where}"
            )
        return (train, test), sha256


def read_parallel(source: Path, target: Path) -> list[TextPair]:
    """The pairs in two files.

    Raises:
        DataError: a file is missing or no text, the two differ in length, or a line has nothing on one side.
    """
    sources, targets = _lines(source), _lines(target)
    if len(sources) != len(targets):
        raise DataError(
            f"{source} has {len(sources):,} lines and {target} {len(targets):,}, so they are not translations line by "
            "line; fetch both anew"
        )
    pairs = [TextPair(left.strip(), right.strip()) for left, right in zip(sources, targets, strict=True)]
    empty = next((number for number, pair in enumerate(pairs, 1) if not pair.source or not pair.target), None)
    if empty is not None:
        raise DataError(f"{source}, line {empty}: one side of the pair is empty; remove the line from both sides")
    return pairs


def _lines(path: Path) -> list[str]:
    try:
        # Other marks than line feeds, as some texts have them, end no line.
        lines = path.read_bytes().decode().split("\n")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; put it there, or give another folder as DATA") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 (byte {error.start}); convert it") from None
    return lines[:-1] if lines[-1] == "" else lines


def _encoded(pairs: Sequence[TextPair], subwords: Subwords) -> Encoded:
    sources, targets, groups = zip(*pairs, strict=True)
    return subwords.encode(sources), subwords.encode(targets), list(groups)


def _cut(encoded: Sequence[Encoded], longest: int, max_cut: float) -> None:
    """Cut sentences to `longest` subwords, in place. Raises DataError where that is more than a share `max_cut`."""
    sides = [side for sources, targets, _ in encoded for side in (sources, targets)]
    total, num_cut = sum(map(len, sides)), sum(len(own) > longest for side in sides for own in side)
    if num_cut > max_cut * total:
        raise DataError(
            f"{num_cut:,} of {total:,} sentences are longer than the {longest} subwords that the model has positions "
            f"for, more than {max_cut:.1%}; give more positions, or leave long sentences out of the files"
        )
    for side in sides:
        side[:] = [own[:longest] for own in side]


class Subwords:
    """One vocabulary for both languages, by byte-pair encoding (Sennrich et al., ACL 2016), as `tokenizers` learns it.

    Args:
        texts: to learn from, of both languages.
        size: of the vocabulary; the first tokens are those of `harness.tasks.pairs`.

    Raises:
        DataError: the texts do not have so many subwords.
    """

    def __init__(self, texts: Sequence[str], size: int) -> None:
        if size < LEAST:
            raise DataError(f"a vocabulary of {size} has no room for the {LEAST} bytes and marks; give a larger one")
        self._tokenizer: Tokenizer = Tokenizer(models.BPE())
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        self._tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
        self._tokenizer.train_from_iterator(texts, trainer)
        found = self._tokenizer.get_vocab_size()
        if found != size:
            raise DataError(
                f"a vocabulary of {size:,} is larger than the training texts allow, which have {found:,} subwords; "
                "lower it"
            )
        self.sha256 = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, int32."""
        return [numpy.array(each.ids, dtype=numpy.int32) for each in self._tokenizer.encode_batch(list(texts))]  # type: ignore[misc]

    def decode(self, tokens: Tokens) -> str:
        """The text; bytes that are none become a question mark in a diamond."""
        return self._tokenizer.decode([int(token) for token in tokens]).strip()
