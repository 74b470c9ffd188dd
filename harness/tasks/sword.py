"""Bibles as the SWORD project keeps them: texts in blocks of zlib, a slot for each verse of a versification.

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

from harness.tasks.errors import DataError

TESTAMENTS = ("ot", "nt")
BLOCK, VERSE = struct.Struct("<III"), struct.Struct("<IIH")


@dataclass(frozen=True)
class Module:
    """A Bible: its name, the Debian package that it is in, and the slots that its versification has."""

    name: str
    package: str
    num_slots: int

    @property
    def folder(self) -> Path:
        """Below a folder `share/sword`."""
        return Path("modules/texts/ztext") / self.name


def read_module(module: Module, share: Path) -> list[str]:
    """The plain text of each slot, in order; of headings it is empty.

    Args:
        share: the folder `sword`, as /usr/share/sword.

    Raises:
        DataError: a file is missing, cut short, damaged, or of another versification.
    """
    slots = [text for testament in TESTAMENTS for text in _testament(share / module.folder, testament, module)]
    if len(slots) != module.num_slots:
        raise DataError(
            f"{share / module.folder} has {len(slots):,} slots where there should be {module.num_slots:,}: another "
            f"versification; install the Debian package {module.package}"
        )
    return slots


def _testament(folder: Path, testament: str, module: Module) -> list[str]:
    blocks_at, verses_at, packed_at = (folder / f"{testament}.{end}" for end in ("bzs", "bzv", "bzz"))
    try:
        blocks, verses, packed = (path.read_bytes() for path in (blocks_at, verses_at, packed_at))
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename} is missing; apt-get install {module.package}, or give as DATA the folder `sword` of one"
        ) from None
    for path, content, record in ((blocks_at, blocks, BLOCK), (verses_at, verses, VERSE)):
        if len(content) % record.size:
            raise DataError(
                f"{path} is cut short: its {len(content)} bytes are no whole records of {record.size}; install "
                f"{module.package} anew"
            )
    unpacked = [
        _unpacked(packed[start : start + length], size, f"{packed_at}, byte {start}", module)
        for start, length, size in BLOCK.iter_unpack(blocks)
    ]
    slots = []
    for slot, (block, start, length) in enumerate(VERSE.iter_unpack(verses)):
        own = unpacked[block][start : start + length] if length and block < len(unpacked) else b""
        if len(own) != length:
            raise DataError(f"{verses_at}: slot {slot} lies outside of its block; install {module.package} anew")
        try:
            slots.append(plain_text(own.decode()))
        except UnicodeDecodeError:
            raise DataError(f"{packed_at}: slot {slot} is no text in UTF-8; install {module.package} anew") from None
    return slots


def _unpacked(packed: bytes, size: int, where: str, module: Module) -> bytes:
    try:
        block = zlib.decompress(packed)
    except zlib.error:
        block = b""
    if len(block) != size:
        raise DataError(f"{where}: the block that begins there is damaged; install {module.package} anew")
    return block


def plain_text(osis: str) -> str:
    """The words of a verse in OSIS: without notes, titles, tags and signs of paragraphs."""
    text = re.sub(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>", " ", osis, flags=re.DOTALL)
    text = re.sub(r"</?(div|l|lb|lg|p|chapter|milestone)\b[^>]*>|¶", " ", text)  # where a line ends, a word does
    return " ".join(re.sub(r"<[^>]*>", "", text).split())
