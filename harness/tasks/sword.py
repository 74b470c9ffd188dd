"""The King James Bible of Debian's package sword-text-kjv, verse by verse.

The package keeps its text as the SWORD project does: in blocks of zlib, a slot for each verse of a
versification.

A testament is three files. `.bzz` holds the blocks; `.bzs` says of each where it is, in twelve
bytes: its start, its length, and its length unpacked; `.bzv` says of each slot, in ten bytes, in
which block its text is, from where, and how long it is. Slots are the testament's headings, then
each book's heading and each chapter's heading and verses.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from cser_bench.harness.tasks import DataError

BLOCK = struct.Struct("<III")
VERSE = struct.Struct("<IIH")
SHARE = Path("/usr/share/sword")
FOLDER = Path("modules/texts/ztext/engKJV2006eb")
PACKAGE = "sword-text-kjv"
NUM_SLOTS = 32_361


class Verse(NamedTuple):
    """A verse's text, and the number of the book that it is in."""

    text: str
    book: int


Chapter = list[Verse]


def chapters_of(slots: list[str]) -> list[Chapter]:
    """Divide verses into chapters.

    A chapter's heading is a slot without text, and a book's is another one before it.
    """
    chapters: list[Chapter] = []
    book = -1
    # As after two headings, so that the first verse begins a book and a chapter.
    num_empty = 2
    for text in slots:
        if not text:
            num_empty += 1
            continue
        if num_empty > 1:
            book += 1
        if num_empty:
            chapters.append([])
        chapters[-1].append(Verse(text, book))
        num_empty = 0
    return chapters


def read_slots(share: Path, num_slots: int) -> list[str]:
    """Read the plain text of each slot, in order; of headings it is empty.

    Args:
        share: the folder `sword`, as /usr/share/sword.

    Raises:
        DataError: missing, damaged, or of another versification.
    """
    folder = share / FOLDER
    slots = [*_testament(folder, "ot"), *_testament(folder, "nt")]
    if len(slots) != num_slots:
        raise DataError(
            f"{folder} has {len(slots):,} slots where there should be {num_slots:,}: another "
            f"versification; install the Debian package {PACKAGE}"
        )
    return slots


def _testament(folder: Path, testament: str) -> list[str]:
    try:
        blocks = (folder / f"{testament}.bzs").read_bytes()
        verses = (folder / f"{testament}.bzv").read_bytes()
        packed = (folder / f"{testament}.bzz").read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename} is missing; apt-get install {PACKAGE}, or give as DATA the folder "
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
            f"{folder}/{testament}.* are damaged: {error}; install {PACKAGE} anew"
        ) from None
    return slots


def plain_text(osis: str) -> str:
    """Take the words of a verse in OSIS: without notes, titles, tags and signs of paragraphs."""
    # Not of a tag that closes itself: it has no end, and all up to the next note's would be lost.
    text = re.sub(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>", " ", osis, flags=re.DOTALL)
    # Where a line ends, a word does.
    text = re.sub(r"</?(div|l|lb|lg|p|chapter|milestone)\b[^>]*>|¶", " ", text)
    return " ".join(re.sub(r"<[^>]*>", "", text).split())
