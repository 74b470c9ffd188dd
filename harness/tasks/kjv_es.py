"""English to Spanish by the verses of the King James Bible (1769) and the Reina-Valera (1909), both public domain.

The texts are Debian's packages sword-text-kjv and sword-text-sparv. Both have the same versification, so verses are
pairs by their place. Pairs of which a side is empty or longer than 25 words are left out, and so are those of which one
side has more than twice the words of the other: in psalms and elsewhere verses can be shifted. Passages repeat within a
book, so whole chapters are scored or trained on. A pair's group is its book. Chapters to train on are in an order drawn
at random once for all runs, so that stretches of them are of all books.

The packages keep texts as the SWORD project does: in blocks of zlib, a slot for each verse of a versification.

A testament is three files. `.bzz` holds the blocks; `.bzs` says of each where it is, in twelve bytes: its start, its
length, and its length unpacked; `.bzv` says of each slot, in ten bytes, in which block its text is, from where, and how
long it is. Slots are the testament's headings, then each book's heading and each chapter's heading and verses.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from harness.tasks import DataError
from harness.tasks.pairs import shuffled
from harness.tasks.parallel import ParallelText, Splits, TextPair

BLOCK, VERSE = struct.Struct("<III"), struct.Struct("<IIH")
SHARE, MODULES = Path("/usr/share/sword"), Path("modules/texts/ztext")
ENGLISH, SPANISH = "engKJV2006eb", "spaRV1909eb"
PACKAGES = {ENGLISH: "sword-text-kjv", SPANISH: "sword-text-sparv"}
"""The Debian package of each text."""
NUM_SLOTS = 32_361
"""A versification's, which both texts have."""
MAX_WORDS, MAX_RATIO = 25, 2.0

Chapter = list[TextPair]


@dataclass(frozen=True)
class Bibles:
    """The chapters of both texts; `num_slots` are those of their versification."""

    num_test_chapters: int = 89
    num_slots: int = NUM_SLOTS
    where: str = "install the packages of Debian 13"

    def read(self, data: Path | None) -> Splits:
        english, spanish = (read_module(name, data or SHARE, self.num_slots) for name in PACKAGES)
        chapters = chapters_of(english, spanish)
        order = shuffled(len(chapters), seed=0)
        parts = order[self.num_test_chapters :], order[: self.num_test_chapters]
        train, test = ([pair for number in part for pair in chapters[number] if fits(pair)] for part in parts)
        return train, test


def fits(pair: TextPair) -> bool:
    """Whether a verse is neither empty, nor long, nor of odd length."""
    shorter, longer = sorted((len(pair.source.split()), len(pair.target.split())))
    return shorter > 0 and longer <= min(MAX_WORDS, MAX_RATIO * shorter)


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


def read_module(name: str, share: Path, num_slots: int) -> list[str]:
    """The plain text of each slot, in order; of headings it is empty.

    Args:
        name: of the text, one of `PACKAGES`.
        share: the folder `sword`, as /usr/share/sword.

    Raises:
        DataError: a file is missing, cut short, damaged, or of another versification.
    """
    folder, package = share / MODULES / name, PACKAGES[name]
    slots = [text for testament in ("ot", "nt") for text in _testament(folder, testament, package)]
    if len(slots) != num_slots:
        raise DataError(
            f"{folder} has {len(slots):,} slots where there should be {num_slots:,}: another versification; install "
            f"the Debian package {package}"
        )
    return slots


def _testament(folder: Path, testament: str, package: str) -> list[str]:
    try:
        blocks, verses, packed = ((folder / f"{testament}.{end}").read_bytes() for end in ("bzs", "bzv", "bzz"))
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename} is missing; apt-get install {package}, or give as DATA the folder `sword` of one"
        ) from None
    try:
        unpacked = [zlib.decompress(packed[start : start + length]) for start, length, _ in BLOCK.iter_unpack(blocks)]
        slots = []
        for slot, (block, start, length) in enumerate(VERSE.iter_unpack(verses)):
            text = unpacked[block][start : start + length] if length and block < len(unpacked) else b""
            if len(text) != length:
                raise ValueError(f"slot {slot} lies outside of its block")
            slots.append(plain_text(text.decode()))
    except (struct.error, zlib.error, ValueError) as error:
        raise DataError(f"{folder}/{testament}.* are damaged: {error}; install {package} anew") from None
    return slots


def plain_text(osis: str) -> str:
    """The words of a verse in OSIS: without notes, titles, tags and signs of paragraphs."""
    text = re.sub(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>", " ", osis, flags=re.DOTALL)
    text = re.sub(r"</?(div|l|lb|lg|p|chapter|milestone)\b[^>]*>|¶", " ", text)  # where a line ends, a word does
    return " ".join(re.sub(r"<[^>]*>", "", text).split())


TASK = ParallelText(
    num_train=15_870,
    num_test=1_203,
    source=Bibles(),
    vocabulary=2_000,
    positions=96,
    sha256="6916bd8abc115215fdd29009a57566b2c97c62e6793fbd839200c006204a65a6",
)
