"""The King James Bible (1769, public domain) by symbols: windows of its text, of which each next
symbol is predicted.

The text is Debian's package sword-text-kjv, read as in `kjv_es`. Passages repeat within a book, so
whole chapters are scored or trained on. What is left is one text in its own order, cut into
windows, which are put in an order drawn at random once for all runs: stretches of them are of all
books. A window's group is the book that it begins in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.kjv_es import (
    ENGLISH,
    NUM_SLOTS,
    PACKAGES,
    SHARE,
    Chapter,
    chapters_of,
    read_module,
)
from cser_bench.harness.tasks.pairs import digest, shuffled
from cser_bench.harness.tasks.task import Batch, TensorSamples, subset

SYMBOLS = (
    "\n !(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWYZ[]abcdefghijklmnopqrstuvwxyz\u00c6\u00e6\u2014\u2019"
)


@dataclass(frozen=True)
class Windows(TensorSamples):
    """Windows of a text, uint8 of shape (windows, labels_per_sample + 1), labelled by the groups
    that they are of.

    `sha256` is of the text, what is scored first.
    """

    num_groups: int
    labels_per_sample: int
    sha256: str

    def batch(self, inputs: Tensor, labels: Tensor) -> Batch:
        """Inputs and labels, int64 of shape (batch, labels_per_sample) each: a label is the symbol
        that follows."""
        symbols = inputs.long()
        return symbols[:, :-1], symbols[:, 1:]


@dataclass(frozen=True)
class BibleText:
    num_train: int
    num_test: int
    length: int = 64
    num_test_chapters: int = 60
    num_groups: int = 66
    num_slots: int = NUM_SLOTS
    sha256: str | None = "5c4d74145724e851d8576c1f011b88846a5d26ad608a0dcae025bea9dbb53e30"
    metrics: tuple[str, ...] = ()
    num_classes: int = len(SYMBOLS)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)

    def prepare(self, data: Path | None) -> None:
        self._splits(data)

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> Windows:
        train, test, sha256 = self._splits(data)
        own = vars(subset(train, spec, None if spec.held_out else test))
        tensors = {name: each.to(device) for name, each in own.items()}
        return Windows(
            **tensors, num_groups=self.num_groups, labels_per_sample=self.length, sha256=sha256
        )

    def _splits(self, data: Path | None) -> tuple[Batch, Batch, str]:
        """Windows and groups to train on, those to score, and the digest. Raises DataError for
        another text."""
        share = data or SHARE
        slots = read_module(ENGLISH, share, self.num_slots)
        chapters = chapters_of(slots, slots)
        test = set(shuffled(len(chapters), seed=0)[: self.num_test_chapters])
        parts = [
            [chapter for number, chapter in enumerate(chapters) if (number in test) == own]
            for own in (True, False)
        ]
        sha256 = digest(pair.source for part in parts for chapter in part for pair in chapter)
        (test_windows, test_groups), (windows, groups) = (self._windows(part) for part in parts)
        few = len(windows) < self.num_train or len(test_windows) < self.num_test
        if few or self.sha256 not in (None, sha256):
            raise DataError(
                f"the Bible in {share} holds another text than it should ({len(windows):,} windows "
                f"to train on and {len(test_windows):,} to score, expected {self.num_train:,} and "
                f"{self.num_test:,}); install the package {PACKAGES[ENGLISH]} of Debian 13"
            )
        order = torch.tensor(shuffled(self.num_train, seed=0))
        return (
            (windows[order], groups[order]),
            (test_windows[: self.num_test], test_groups[: self.num_test]),
            sha256,
        )

    def _windows(self, chapters: list[Chapter]) -> tuple[Tensor, Tensor]:
        """The chapters as one text, a line each, by windows that follow each other, and the book of
        each window."""
        lines = [" ".join(pair.source for pair in chapter) + "\n" for chapter in chapters]
        text = numpy.array(["".join(lines)]).view(numpy.uint32)
        ids = numpy.zeros(max(map(ord, SYMBOLS)) + 1, numpy.uint8)
        ids[[ord(symbol) for symbol in SYMBOLS]] = range(len(SYMBOLS))
        symbols = torch.from_numpy(ids[text])
        books = torch.tensor([chapter[0].group for chapter in chapters])
        of_symbols = books.repeat_interleave(torch.tensor([len(line) for line in lines]))
        windows = symbols.unfold(0, self.length + 1, self.length)
        return windows.contiguous(), of_symbols[: len(windows) * self.length : self.length]


TASK = BibleText(num_train=61_539, num_test=3_098)
