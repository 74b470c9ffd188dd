"""The Collaborative International Dictionary of English by symbols, long enough to be read once.

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

import torch

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.pairs import digest, shuffled
from cser_bench.harness.tasks.samples import Batch
from cser_bench.harness.tasks.task import Inputs
from cser_bench.harness.tasks.windows import Split, TextWindows, numbers_of, windows_of

SHARE = Path("/usr/share/dictd")
PACKAGE = "dict-gcide"
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
"""Digits of the index's numbers, which have the largest place first."""
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
    inputs: Inputs = "symbols"
    metrics: tuple[str, ...] = ()
    num_classes: int = len(SYMBOLS)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)

    def prepare(self, data: Path | None) -> None:
        self._split(data)

    def load(
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> TextWindows:
        return self._split(data).samples(spec, device, num_groups=1)

    def _split(self, data: Path | None) -> Split:
        """Read the windows to train on and those to score.

        Raises:
            DataError: missing, damaged, or another text.
        """
        share = data or SHARE
        entries = read_entries(share)
        # By no run's seed: the split is the same in every run.
        order = [entries[number] for number in shuffled(len(entries), seed=0)]
        train = self._windows(order[self.num_test_entries :])
        test = self._windows(order[: self.num_test_entries])
        split = Split(train, test, digest(order))
        problem = f"the dictionary in {share} is another one than it should be"
        split.check(self.num_train, self.num_test, self.sha256, problem, PACKAGE)
        return split.first(self.num_train, self.num_test)

    def _windows(self, entries: list[str]) -> Batch:
        """Cut the entries, as one text with a line for each, into windows; all are of one group."""
        text = "".join(f"{entry}\n" for entry in entries)
        windows = windows_of(numbers_of(text, SYMBOLS, other=RARE), self.length)
        return windows, torch.zeros(len(windows), dtype=torch.int64)


def read_entries(share: Path) -> list[str]:
    """Read each entry of the dictionary once, in its order, without the notes on the database.

    What stands between two words is made one space.

    Args:
        share: the folder that has `gcide.dict.dz` and `gcide.index`.

    Raises:
        DataError: missing or damaged.
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
        # A set, since several words may lead to one entry.
        places = set()
        for line in index.strip().split("\n"):
            if not line.startswith(OF_THE_PACKAGE):
                places.add(_place(line))
        # A slice beyond the end would silently be shorter.
        if any(start + size > len(text) for start, size in places):
            raise ValueError("an entry lies outside of the text")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"{share}/gcide.* are damaged: {error}; install {PACKAGE} anew"
        ) from None
    entries = []
    # In the order of the text: the index is sorted by headword, in which sort depends on its maker.
    for start, size in sorted(places):
        entry = text[start : start + size].decode(errors="replace")
        entries.append(" ".join(entry.split()))
    return entries


def _place(line: str) -> tuple[int, int]:
    """Read from a line of the index where an entry begins, and its bytes."""
    _, start, size = line.split("\t")
    return _number(start), _number(size)


def _number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * len(DIGITS) + DIGITS.index(digit)
    return number


TASK = Dictionary(
    num_train=538_903,
    num_test=2_048,
    sha256="457823952e202ff858fc5ad07892c088b0fc4fff65c6d6cca23e25d56e2e2986",
)
