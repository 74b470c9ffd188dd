"""English to Spanish by the verses of the King James Bible (1769) and the Reina-Valera (1909), both public domain.

The texts are Debian's packages sword-text-kjv and sword-text-sparv. Both have the same versification, so verses are
pairs by their place. Pairs of which a side is empty or longer than 25 words are left out, and so are those of which one
side has more than twice the words of the other: in psalms and elsewhere verses can be shifted. Passages repeat within a
book, so whole chapters are scored or trained on. A pair's group is its book. Chapters to train on are in an order drawn
at random once for all runs, so that stretches of them are of all books.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.tasks.errors import DataError
from harness.tasks.pairs import digest, shuffled
from harness.tasks.parallel import ParallelText, Splits, TextPair
from harness.tasks.sword import Module, read_module

SHARE = Path("/usr/share/sword")
NUM_SLOTS = 32_361
ENGLISH = Module("engKJV2006eb", "sword-text-kjv", NUM_SLOTS)
SPANISH = Module("spaRV1909eb", "sword-text-sparv", NUM_SLOTS)

Chapter = list[TextPair]


@dataclass(frozen=True)
class Bibles:
    max_words: int = 25
    max_ratio: float = 2.0
    num_test_chapters: int = 89
    modules: tuple[Module, Module] = (ENGLISH, SPANISH)
    sha256: str | None = "6916bd8abc115215fdd29009a57566b2c97c62e6793fbd839200c006204a65a6"
    """Of all pairs, those to score first."""

    def read(self, data: Path | None, num_train: int, num_test: int) -> Splits:
        share = data or SHARE
        english, spanish = (read_module(module, share) for module in self.modules)
        chapters = [self.kept(chapter) for chapter in chapters_of(english, spanish)]
        order = shuffled(len(chapters), seed=0)
        parts = order[self.num_test_chapters :], order[: self.num_test_chapters]
        train, test = ([pair for number in part for pair in chapters[number]] for part in parts)
        if (len(train), len(test)) != (num_train, num_test):
            raise DataError(
                f"the Bibles in {share} have {len(train):,} pairs to train on and {len(test):,} to score where there "
                f"should be {num_train:,} and {num_test:,}; install the packages of Debian 13"
            )
        if self.sha256 not in (None, digest(f"{pair.source}\t{pair.target}" for pair in (*test, *train))):
            raise DataError(
                f"the Bibles in {share} hold other words than they should; install the packages of Debian 13"
            )
        return train, test

    def kept(self, chapter: Chapter) -> Chapter:
        """Without verses that are empty, long, or of odd length."""
        counted = ((pair, len(pair.source.split()), len(pair.target.split())) for pair in chapter)
        return [
            pair
            for pair, source, target in counted
            if min(source, target) > 0
            and max(source, target) <= min(self.max_words, self.max_ratio * min(source, target))
        ]


def chapters_of(english: list[str], spanish: list[str]) -> list[Chapter]:
    """Verses by chapter: a chapter's heading is a slot without text, and a book's is another one before it."""
    chapters: list[Chapter] = []
    book, empty = -1, 2
    for pair in zip(english, spanish, strict=True):
        if not any(pair):
            empty += 1
            continue
        if empty:
            book += empty > 1
            chapters.append([])
        chapters[-1].append(TextPair(*pair, book))
        empty = 0
    return chapters


TASK = ParallelText(num_train=15_870, num_test=1_203, source=Bibles(), vocabulary=2_000, positions=96)
