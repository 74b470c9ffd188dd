"""English to Spanish by the verses of the King James Bible and the Reina-Valera.

They are of 1769 and 1909, both in the public domain. The texts are Debian's packages sword-text-kjv
and sword-text-sparv. Both have the same versification, so verses are pairs by their place. Pairs of
which a side is empty or longer than 25 words are left out, and so are those of which one side has
more than twice the words of the other: in psalms and elsewhere verses can be shifted. Passages
repeat within a book, so whole chapters are scored or trained on. A pair's group is its book.
Chapters to train on are in an order drawn at random once for all runs, so that stretches of them
are of all books.

The packages keep texts as the SWORD project does: in blocks of zlib, a slot for each verse of a
versification.

A testament is three files. `.bzz` holds the blocks; `.bzs` says of each where it is, in twelve
bytes: its start, its length, and its length unpacked; `.bzv` says of each slot, in ten bytes, in
which block its text is, from where, and how long it is. Slots are the testament's headings, then
each book's heading and each chapter's heading and verses.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.pairs import (
    NUM_SPECIAL,
    BleuAndChrf,
    Encoded,
    PairSamples,
    Tokens,
    chosen_pairs,
    digest,
    shuffled,
)
from cser_bench.harness.tasks.task import Inputs

SPECIAL = ["<pad>", "<begin>", "<end>"]
LEAST = NUM_SPECIAL + 256
"""Any text is made of bytes, so no token is ever unknown."""

BLOCK = struct.Struct("<III")
VERSE = struct.Struct("<IIH")
SHARE = Path("/usr/share/sword")
MODULES = Path("modules/texts/ztext")
ENGLISH = "engKJV2006eb"
SPANISH = "spaRV1909eb"
PACKAGES = {ENGLISH: "sword-text-kjv", SPANISH: "sword-text-sparv"}
"""The Debian package of each text."""
NUM_SLOTS = 32_361
"""A versification's, which both texts have."""
MAX_WORDS = 25
MAX_RATIO = 2.0
"""Limits of a pair: words of its longer side, and the ratio of its longer to its shorter side."""


class TextPair(NamedTuple):
    """A verse in both languages, and the book that it is in."""

    source: str
    target: str
    group: int = 0


Chapter = list[TextPair]


@dataclass(frozen=True)
class BibleVerses:
    """A task of pairs of verses, in subwords that are learnt from those to train on.

    Attributes:
        num_slots: of the versification that both texts have.
        vocabulary: subwords of both languages together.
        positions: most subwords of a verse, END included; longer ones are refused.
        sha256: the digest of all pairs, those to score first; None where any will do.
    """

    num_train: int
    num_test: int
    num_test_chapters: int = 89
    num_slots: int = NUM_SLOTS
    vocabulary: int = 2_000
    positions: int = 96
    sha256: str | None = None
    inputs: Inputs = "pairs"
    metrics: tuple[str, ...] = ("bleu", "chrf")

    @property
    def num_classes(self) -> int:
        return self.vocabulary

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (2, self.positions)

    def prepare(self, data: Path | None) -> None:
        self._read(data)

    def load(
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> PairSamples:
        """Read and encode the texts.

        Raises:
            DataError: as `prepare`, or where the vocabulary or `positions` do not fit the texts.
        """
        train, test, sha256 = self._read(data)
        texts = []
        for pair in train:
            # The training split alone: what is scored must teach no subword.
            texts += [pair.source, pair.target]
        subwords = Subwords(texts, self.vocabulary)
        encoded_train = _encoded(train, subwords)
        encoded_test = _encoded(test, subwords)
        longest = max(_longest(encoded_train), _longest(encoded_test))
        if longest >= self.positions:
            raise DataError(
                f"a sentence has {longest} subwords, but with its end the model has positions for "
                f"only {self.positions - 1}; give more positions"
            )
        pairs = chosen_pairs(encoded_train, encoded_test, spec, device)
        measure = BleuAndChrf(subwords.decode)
        return PairSamples(*pairs, measure, self.positions, sha256, subwords.sha256)

    def _read(self, data: Path | None) -> tuple[Chapter, Chapter, str]:
        """Read pairs to train on, pairs to score, and their digest.

        Raises:
            DataError: they are other ones.
        """
        share = data or SHARE
        english = read_module(ENGLISH, share, self.num_slots)
        spanish = read_module(SPANISH, share, self.num_slots)
        chapters = chapters_of(english, spanish)
        # Whole chapters, as verses repeat each other within one.
        order = [chapters[number] for number in shuffled(len(chapters), seed=0)]
        train = _fitting(order[self.num_test_chapters :])
        test = _fitting(order[: self.num_test_chapters])
        # Over both splits in their order, so another split is noticed as well as another text.
        sha256 = digest(f"{pair.source}\t{pair.target}" for pair in (*test, *train))
        are_as_many = (len(train), len(test)) == (self.num_train, self.num_test)
        if not are_as_many or self.sha256 not in (None, sha256):
            raise DataError(
                f"the texts in {share} are other ones than they should be ({len(train):,} pairs to "
                f"train on and {len(test):,} to score, expected {self.num_train:,} and "
                f"{self.num_test:,}); install the packages of Debian 13"
            )
        return train, test, sha256


def _fitting(chapters: list[Chapter]) -> Chapter:
    """Put the chapters' pairs one after the other, but those that do not fit."""
    return [pair for chapter in chapters for pair in chapter if fits(pair)]


def fits(pair: TextPair) -> bool:
    """Say whether a verse is neither empty, nor long, nor of odd length."""
    shorter, longer = sorted((len(pair.source.split()), len(pair.target.split())))
    return shorter > 0 and longer <= min(MAX_WORDS, MAX_RATIO * shorter)


def chapters_of(english: list[str], spanish: list[str]) -> list[Chapter]:
    """Divide verses into chapters.

    A chapter's heading is a slot without text, and a book's is another one before it.
    """
    chapters: list[Chapter] = []
    book = -1
    # As after two headings, so that the first verse begins a book and a chapter.
    num_empty = 2
    for pair in zip(english, spanish, strict=True):
        if not any(pair):
            num_empty += 1
            continue
        if num_empty > 1:
            book += 1
        if num_empty:
            chapters.append([])
        chapters[-1].append(TextPair(*pair, book))
        num_empty = 0
    return chapters


def read_module(name: str, share: Path, num_slots: int) -> list[str]:
    """Read the plain text of each slot of one of `PACKAGES`, in order; of headings it is empty.

    Args:
        share: the folder `sword`, as /usr/share/sword.

    Raises:
        DataError: missing, damaged, or of another versification.
    """
    folder = share / MODULES / name
    package = PACKAGES[name]
    # Verses are paired by their place, so a slot more or less would shift all that follow.
    slots = [*_testament(folder, "ot", package), *_testament(folder, "nt", package)]
    if len(slots) != num_slots:
        raise DataError(
            f"{folder} has {len(slots):,} slots where there should be {num_slots:,}: another "
            f"versification; install the Debian package {package}"
        )
    return slots


def _testament(folder: Path, testament: str, package: str) -> list[str]:
    try:
        blocks = (folder / f"{testament}.bzs").read_bytes()
        verses = (folder / f"{testament}.bzv").read_bytes()
        packed = (folder / f"{testament}.bzz").read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename} is missing; apt-get install {package}, or give as DATA the folder "
            "`sword` of one"
        ) from None
    try:
        # All blocks once: verses of a block follow each other, and each would unpack it anew.
        unpacked = [
            zlib.decompress(packed[start : start + length])
            for start, length, _ in BLOCK.iter_unpack(blocks)
        ]
        slots = []
        for slot, (block, start, length) in enumerate(VERSE.iter_unpack(verses)):
            text = b""
            if length and block < len(unpacked):
                text = unpacked[block][start : start + length]
            # A slice beyond the end is shorter, and raises nothing.
            if len(text) != length:
                raise ValueError(f"slot {slot} lies outside of its block")
            slots.append(plain_text(text.decode()))
    except (struct.error, zlib.error, ValueError) as error:
        raise DataError(
            f"{folder}/{testament}.* are damaged: {error}; install {package} anew"
        ) from None
    return slots


def plain_text(osis: str) -> str:
    """Take the words of a verse in OSIS: without notes, titles, tags and signs of paragraphs."""
    # Not of a tag that closes itself: it has no end, and all up to the next note's would be lost.
    text = re.sub(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>", " ", osis, flags=re.DOTALL)
    # Where a line ends, a word does.
    text = re.sub(r"</?(div|l|lb|lg|p|chapter|milestone)\b[^>]*>|¶", " ", text)
    return " ".join(re.sub(r"<[^>]*>", "", text).split())


def _encoded(pairs: Chapter, subwords: Subwords) -> Encoded:
    sources, targets, groups = zip(*pairs, strict=True)
    return subwords.encode(sources), subwords.encode(targets), list(groups)


def _longest(encoded: Encoded) -> int:
    """Give the length of the longest side of a pair."""
    sources, targets, _ = encoded
    return max(len(tokens) for tokens in (*sources, *targets))


class Subwords:
    """One vocabulary for both languages, by byte-pair encoding, as `tokenizers` learns it.

    The method is that of Sennrich et al. (ACL 2016). The first tokens are those of
    `harness.tasks.pairs`; they count in `size`.

    Raises:
        DataError: the texts have too few subwords.
    """

    def __init__(self, texts: Sequence[str], size: int) -> None:
        if size < LEAST:
            raise DataError(
                f"a vocabulary of {size} has no room for the {LEAST} bytes and marks; give a "
                "larger one"
            )
        self._tokenizer: Tokenizer = Tokenizer(models.BPE())
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        self._tokenizer.decoder = decoders.ByteLevel()
        # Sorted, since the library's order varies, and numbers of tokens with it.
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        self._tokenizer.train_from_iterator(texts, trainer)
        largest = self._tokenizer.get_vocab_size()
        if largest != size:
            raise DataError(
                f"a vocabulary of {size:,} is larger than the training texts allow, which have "
                f"{largest:,} subwords; lower it"
            )
        self.sha256 = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Encode each text as int32."""
        return [
            numpy.array(encoding.ids, dtype=numpy.int32)  # type: ignore[misc]
            for encoding in self._tokenizer.encode_batch(list(texts))
        ]

    def decode(self, tokens: Tokens) -> str:
        """Give the text; bytes that are none become a question mark in a diamond."""
        return self._tokenizer.decode([int(token) for token in tokens]).strip()


TASK = BibleVerses(
    num_train=15_870,
    num_test=1_203,
    sha256="6916bd8abc115215fdd29009a57566b2c97c62e6793fbd839200c006204a65a6",
)
