"""The Collaborative International Dictionary of English by symbols: a text that is long enough to
be read once.

It is Webster's of 1913 with WordNet and later additions, and is under the GPL: the text is that of
Debian's package dict-gcide, where it is installed, and no part of it ships with this program. An
entry is a document. Entries are put in an order drawn at random once for all runs, and whole
entries are scored or trained on. What is left is one text, a line an entry, cut into windows that
follow each other, so a contiguous shard has entries of its own. Lines are broken and set in for a
screen, so what stands between two words is made one space: 34.6 million characters are left of 40.0
million. A window's group is always 0.

The package keeps texts as dictd does. `gcide.dict.dz` is the text of all entries one after the
other, by dictzip, which any reader of gzip can read. `gcide.index` has a line a headword: the word,
and in base 64 where its entry begins and how many bytes it has; several words may lead to one
entry.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.kjv_text import Windows
from cser_bench.harness.tasks.pairs import digest, shuffled
from cser_bench.harness.tasks.task import Batch, subset

SHARE, PACKAGE = Path("/usr/share/dictd"), "dict-gcide"
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
"""Of the index's numbers, the largest place first."""
OF_THE_PACKAGE = "00-"
"""How headwords begin that lead to notes on the database."""

RARE = "\ufffd"
"""Stands for what the text has fewer than a hundred times: 254 characters of six kinds, and 3 bytes
that are none."""
SYMBOLS = (
    "\n !\"&'()*+,-./0123456789:;=?ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^`abcdefghijklmnopqrstuvwxyz{|}~"
    + RARE
)


@dataclass(frozen=True)
class Dictionary:
    """A task of windows of `length` symbols.

    Attributes:
        num_test_entries: entries to score, of which the first `num_test` windows are taken.
        sha256: the digest of all entries, those to score first; None where any will do.
    """

    num_train: int
    num_test: int
    length: int = 64
    num_test_entries: int = 570
    sha256: str | None = None
    metrics: tuple[str, ...] = ()
    num_classes: int = len(SYMBOLS)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)

    def prepare(self, data: Path | None) -> None:
        self._splits(data)

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> Windows:
        train, test, sha256 = self._splits(data)
        samples = vars(subset(train, spec, None if spec.held_out else test))
        tensors = {name: tensor.to(device) for name, tensor in samples.items()}
        return Windows(**tensors, num_groups=1, labels_per_sample=self.length, sha256=sha256)

    def _splits(self, data: Path | None) -> tuple[Batch, Batch, str]:
        """Windows and groups to train on, those to score, and the digest. Raises DataError for
        another text."""
        share = data or SHARE
        entries = read_entries(share)
        order = [entries[number] for number in shuffled(len(entries), seed=0)]
        sha256 = digest(order)
        test = self._windows(order[: self.num_test_entries])
        train = self._windows(order[self.num_test_entries :])
        few = len(train) < self.num_train or len(test) < self.num_test
        if few or self.sha256 not in (None, sha256):
            raise DataError(
                f"the dictionary in {share} is another one than it should be ({len(train):,} "
                f"windows to train on and {len(test):,} to score, expected {self.num_train:,} and "
                f"{self.num_test:,}); install the package {PACKAGE} of Debian 13"
            )
        return _grouped(train[: self.num_train]), _grouped(test[: self.num_test]), sha256

    def _windows(self, entries: list[str]) -> Tensor:
        """The entries as one text, a line each, by windows that follow each other.

        uint8 of shape (windows, length + 1). A window's last symbol is the next one's first, so
        that each symbol but the first is predicted once.
        """
        text = numpy.array(["".join(f"{entry}\n" for entry in entries)]).view(numpy.uint32)
        numbers = numpy.full(
            max(int(text.max()), *map(ord, SYMBOLS)) + 1, SYMBOLS.index(RARE), numpy.uint8
        )
        numbers[[ord(symbol) for symbol in SYMBOLS]] = range(len(SYMBOLS))
        return torch.from_numpy(numbers[text]).unfold(0, self.length + 1, self.length).contiguous()


def _grouped(windows: Tensor) -> Batch:
    return windows, torch.zeros(len(windows), dtype=torch.int64)


def read_entries(share: Path) -> list[str]:
    """Each entry of the dictionary once, in its order, without the notes on the database; spaces
    are single ones.

    `share` is the folder that has `gcide.dict.dz` and `gcide.index`. Raises DataError: missing or
    damaged.
    """
    try:
        packed = (share / "gcide.dict.dz").read_bytes()
        index = (share / "gcide.index").read_bytes().decode(errors="replace")
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename} is missing; apt-get install {PACKAGE}, or give as DATA the folder "
            "that has it"
        ) from None
    try:
        text = gzip.decompress(packed)
        places = {
            _place(line)
            for line in index.strip().split("\n")
            if not line.startswith(OF_THE_PACKAGE)
        }
        if any(start + size > len(text) for start, size in places):
            raise ValueError("an entry lies outside of the text")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{share}/gcide.* are damaged: {error}; install {PACKAGE} anew") from None
    entries = (
        text[start : start + size].decode(errors="replace") for start, size in sorted(places)
    )
    return [" ".join(entry.split()) for entry in entries]


def _place(line: str) -> tuple[int, int]:
    """Where a line of the index says that an entry begins, and its bytes."""
    _, start, size = line.split("\t")
    return _number(start), _number(size)


def _number(written: str) -> int:
    number = 0
    for digit in written:
        number = number * len(DIGITS) + DIGITS.index(digit)
    return number


TASK = Dictionary(
    num_train=538_903,
    num_test=2_048,
    sha256="457823952e202ff858fc5ad07892c088b0fc4fff65c6d6cca23e25d56e2e2986",
)
