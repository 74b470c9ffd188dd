"""The King James Bible (1769, public domain) by symbols.

The text is Debian's package sword-text-kjv. Passages repeat within a book, so
whole chapters are scored or trained on. What is left is one text in its own order, cut into
windows, which are put in an order drawn at random once for all runs: stretches of them are of all
books. A window's group is the book that it begins in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.pairs import digest, shuffled
from cser_bench.harness.tasks.samples import Batch
from cser_bench.harness.tasks.sword import (
    NUM_SLOTS,
    PACKAGE,
    SHARE,
    Chapter,
    chapters_of,
    read_slots,
)
from cser_bench.harness.tasks.task import Inputs
from cser_bench.harness.tasks.windows import Split, TextWindows, numbers_of, windows_of

SYMBOLS = "\n !(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWYZ[]abcdefghijklmnopqrstuvwxyz\u00c6\u00e6\u2014\u2019"


@dataclass(frozen=True)
class BibleText:
    """A task of windows of `length` symbols.

    Attributes:
        num_test_chapters: chapters to score, of which the first `num_test` windows are taken.
        sha256: the digest of all verses, those to score first; None where any will do.
    """

    num_train: int
    num_test: int
    length: int = 64
    num_test_chapters: int = 60
    num_groups: int = 66
    num_slots: int = NUM_SLOTS
    sha256: str | None = (
        "5c4d74145724e851d8576c1f011b88846a5d26ad608a0dcae025bea9dbb53e30"
    )
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
        return self._split(data).samples(spec, device, self.num_groups)

    def _split(self, data: Path | None) -> Split:
        """Read the windows to train on, in an order drawn at random, and those to score.

        Raises:
            DataError: missing, damaged, or another text.
        """
        share = data or SHARE
        chapters = chapters_of(read_slots(share, self.num_slots))
        # Drawn over all books; the chapters of a part stay in order, so that windows run on.
        scored = set(shuffled(len(chapters), seed=0)[: self.num_test_chapters])
        test = [chapter for number, chapter in enumerate(chapters) if number in scored]
        train = [
            chapter for number, chapter in enumerate(chapters) if number not in scored
        ]
        sha256 = digest(verse.text for chapter in (*test, *train) for verse in chapter)
        split = Split(self._windows(train), self._windows(test), sha256)
        problem = f"the Bible in {share} holds another text than it should"
        split.check(self.num_train, self.num_test, self.sha256, problem, PACKAGE)
        split = split.first(self.num_train, self.num_test)
        windows, groups = split.train
        # By no run's seed: shards are the same in every run.
        order = torch.tensor(shuffled(self.num_train, seed=0))
        return replace(split, train=(windows[order], groups[order]))

    def _windows(self, chapters: list[Chapter]) -> Batch:
        """Cut the chapters, as one text with a line for each, into windows with their books."""
        lines = [
            " ".join(verse.text for verse in chapter) + "\n" for chapter in chapters
        ]
        numbers = numbers_of("".join(lines), SYMBOLS, other=SYMBOLS[0])
        windows = windows_of(numbers, self.length)
        books = torch.tensor([chapter[0].book for chapter in chapters])
        book_by_symbol = books.repeat_interleave(
            torch.tensor([len(line) for line in lines])
        )
        # Window k begins at symbol k * length.
        first_symbols = slice(0, len(windows) * self.length, self.length)
        return windows, book_by_symbol[first_symbols]


TASK = BibleText(num_train=61_539, num_test=3_098)
