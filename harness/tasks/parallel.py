"""Any parallel text as a task, in subwords: two files with a sentence on each line, or one with tabs, for each split.

To use one's own, write a module as `wmt_en_de.py` is one. Counts are fields, so that plans need no data.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy
import torch

from harness.spec import TaskSpec
from harness.tasks.errors import DataError
from harness.tasks.measures import BleuAndChrf
from harness.tasks.pairs import Encoded, PairSamples, chosen_pairs, digest, random_pairs
from harness.tasks.task import Batch, Check
from harness.tokens import NUM_SPECIAL

if TYPE_CHECKING:
    from tokenizers import Tokenizer


SPECIAL = ["<pad>", "<begin>", "<end>"]
LEAST = NUM_SPECIAL + 256
"""Any text is made of bytes, so no token is ever unknown."""


class TextPair(NamedTuple):
    """A sentence in both languages, and the group that it belongs to."""

    source: str
    target: str
    group: int = 0


Splits = tuple[list[TextPair], list[TextPair]]
"""To train on, and to score."""


class Source(Protocol):
    """Where pairs are read from."""

    def read(self, data: Path | None, num_train: int, num_test: int) -> Splits:
        """So many pairs, from the folder `data` or from where they are known to lie.

        Raises:
            DataError: they are missing or damaged, or there are more or fewer.
        """


@dataclass(frozen=True)
class TextFiles:
    """Files in the folder that the user names.

    Attributes:
        train, test: names of two files with as many lines, or of one whose lines are source, tab, target.
        where: where the files are from, for people who lack them.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    where: str

    def read(self, data: Path | None, num_train: int, num_test: int) -> Splits:
        return self._pairs(data, self.train, num_train), self._pairs(data, self.test, num_test)

    def _pairs(self, data: Path | None, names: Sequence[str], count: int) -> list[TextPair]:
        if data is None:
            raise DataError(f"the folder with {' and '.join(names)} is not known; give it as DATA ({self.where})")
        pairs = read_parallel([data / name for name in names])
        if len(pairs) != count:
            raise DataError(f"{data / names[0]} has {len(pairs):,} lines where there should be {count:,}; {self.where}")
        return pairs


@dataclass(frozen=True)
class ParallelText:
    """A task of pairs of sentences, in subwords that are learnt from those to train on.

    Attributes:
        vocabulary: subwords of both languages together.
        positions: most subwords of a sentence, END included; longer ones are cut.
        max_cut: a larger share of sentences to cut is refused.
    """

    num_train: int
    num_test: int
    source: Source
    vocabulary: int
    positions: int
    max_cut: float = 0.01
    trains_on_fewer: bool = True
    metrics: tuple[str, ...] = ("bleu", "chrf")

    @property
    def num_classes(self) -> int:
        return self.vocabulary

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (2, self.positions)

    def prepare(self, data: Path | None) -> None:
        check_packages()
        self.source.read(data, self.num_train, self.num_test)

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> PairSamples:
        """Raises DataError as `prepare`, or where the vocabulary or `positions` do not fit the texts."""
        train, test = self.source.read(data, self.num_train, self.num_test)
        check_packages()
        subwords = Subwords([text for pair in train for text in pair[:2]], self.vocabulary)
        encoded_train, encoded_test = _encoded(train, subwords), _encoded(test, subwords)
        _cut([encoded_train, encoded_test], self.positions - 1, self.max_cut)
        pairs = chosen_pairs(encoded_train, encoded_test, spec, device)
        sha256 = digest(f"{pair.source}\t{pair.target}" for pair in (*test, *train))
        texts = (subwords.decode, subwords.decode)
        return PairSamples(*pairs, BleuAndChrf(subwords.decode), texts, self.positions, sha256, subwords.sha256)

    def check(self, data: Path | None) -> list[Check]:
        try:
            self.prepare(data)
        except DataError as error:
            return [Check("parallel text", False, str(error))]
        return [Check("parallel text", True, f"{self.num_train:,} pairs to train on, {self.num_test:,} to score")]

    def random_batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        return random_pairs(self.input_shape, self.num_classes, batch_size, generator)


def check_packages() -> None:
    """Raises DataError where a library is missing that text is made into tokens or scored with."""
    for name in ("tokenizers", "sacrebleu"):
        if importlib.util.find_spec(name) is None:
            raise DataError(f"the package {name}, which translation needs, is missing; pip install {name}")


def read_parallel(paths: Sequence[Path]) -> list[TextPair]:
    """The pairs in two files, or in one with tabs.

    Raises:
        DataError: a file is missing or no text, the two differ in length, or a line has nothing on one side.
    """
    lines = [_lines(path) for path in paths]
    if len(paths) == 1:
        columns = [line.split("\t") for line in lines[0]]
        wrong = next((number for number, own in enumerate(columns, 1) if len(own) != 2), None)
        if wrong is not None:
            raise DataError(f"{paths[0]}, line {wrong}: not a source, a tab and a target; correct or remove the line")
        pairs = [TextPair(source.strip(), target.strip()) for source, target in columns]
    else:
        if len(lines[0]) != len(lines[1]):
            raise DataError(
                f"{paths[0]} has {len(lines[0]):,} lines and {paths[1]} {len(lines[1]):,}, so they are not "
                "translations line by line; fetch both anew"
            )
        pairs = [TextPair(source.strip(), target.strip()) for source, target in zip(*lines, strict=True)]
    empty = next((number for number, pair in enumerate(pairs, 1) if not pair.source or not pair.target), None)
    if empty is not None:
        raise DataError(f"{paths[0]}, line {empty}: one side of the pair is empty; remove the line from both sides")
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
    sources, targets = (
        subwords.encode([pair.source for pair in pairs]),
        subwords.encode([pair.target for pair in pairs]),
    )
    return sources, targets, [pair.group for pair in pairs]


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
        size: of the vocabulary; the first tokens are those of `harness.tokens`.

    Raises:
        DataError: the texts do not have so many subwords.
    """

    def __init__(self, texts: Sequence[str], size: int) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if size < LEAST:
            raise DataError(f"a vocabulary of {size} has no room for the {LEAST} bytes and marks; give a larger one")
        self._tokenizer: Tokenizer = Tokenizer(models.BPE())
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        self._tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=SPECIAL,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        self._tokenizer.train_from_iterator(texts, trainer)
        found = self._tokenizer.get_vocab_size()
        if found != size:
            raise DataError(
                f"a vocabulary of {size:,} is larger than the training texts allow, which have {found:,} subwords; "
                "lower it"
            )
        self.sha256 = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Tokens of each text, int32."""
        return [numpy.array(each.ids, dtype=numpy.int32) for each in self._tokenizer.encode_batch(list(texts))]  # type: ignore[misc]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text; bytes that are none become a question mark in a diamond."""
        return self._tokenizer.decode([int(token) for token in tokens]).strip()
