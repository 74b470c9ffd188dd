"""Miniature data sets in the real on-disk formats: images, words, Bibles, parallel texts and a
dictionary."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.datasets import CIFAR100

from cser_bench.harness.tasks import cifar100
from cser_bench.harness.tasks.fashion_mnist import FILES

Bytes = npt.NDArray[np.uint8]


def same(
    one: Sequence[tuple[Tensor, Tensor]], other: Sequence[tuple[Tensor, Tensor]]
) -> bool:
    """Whether these batches are equal to the bit."""
    pairs = zip(one, other, strict=True)
    return all(
        torch.equal(*each)
        for left, right in pairs
        for each in zip(left, right, strict=True)
    )


def md5(raw: bytes) -> str:
    return hashlib.md5(raw).hexdigest()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def archive(folder: str, files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return packed.getvalue()


@dataclass(frozen=True)
class MiniatureCIFAR100:
    """A release of random images, equally many of each class, as torchvision reads it."""

    num_train: int
    num_test: int
    num_classes: int

    @cached_property
    def images(self) -> dict[str, Bytes]:
        """By split; shape (n, 3072)."""
        random = np.random.default_rng(1)
        counts = {"train": self.num_train, "test": self.num_test}
        return {
            split: random.integers(0, 256, (count, 3072), dtype=np.uint8)
            for split, count in counts.items()
        }

    @cached_property
    def labels(self) -> dict[str, npt.NDArray[np.int64]]:
        random = np.random.default_rng(2)
        return {
            split: random.permutation(np.arange(len(pixels)) % self.num_classes)
            for split, pixels in self.images.items()
        }

    @cached_property
    def pickled(self) -> dict[str, bytes]:
        """The files of cifar-100-python, as Python 2 wrote them."""
        names = {"fine_label_names": [str(label) for label in range(self.num_classes)]}
        return {split: self._pickled(split) for split in self.images} | {
            "meta": pickle.dumps(names, protocol=2)
        }

    def _pickled(self, split: str) -> bytes:
        labels = self.labels[split].tolist()
        entry = {
            "data": self.images[split],
            "fine_labels": labels,
            "coarse_labels": [label // 5 for label in labels],
        }
        return pickle.dumps(entry, protocol=2)

    @cached_property
    def archive(self) -> bytes:
        return archive("cifar-100-python", self.pickled)

    @cached_property
    def release(self) -> type[CIFAR100]:
        """torchvision's data set, which knows these files by their sums."""
        sums = {name: [[name, md5(self.pickled[name])]] for name in ("train", "test")}
        meta = {
            "filename": "meta",
            "key": "fine_label_names",
            "md5": md5(self.pickled["meta"]),
        }
        lists = {
            "train_list": sums["train"],
            "test_list": sums["test"],
            "meta": meta,
            "tgz_md5": md5(self.archive),
        }
        return type("Miniature", (CIFAR100,), lists)

    @property
    def task(self) -> cifar100.CIFAR100:
        return cifar100.CIFAR100(
            self.num_train, self.num_test, self.num_classes, release=self.release
        )


CLASSES = ("n01", "n02", "n03")
"""Classes of the miniature ImageNet."""


def photo(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Smooth noise, so that compression and small shifts change little."""
    pixels = np.random.default_rng(seed).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3))


def jpeg(image: Image.Image, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return file.getvalue()


def imagenet_tree(root: Path, num_train: int, num_test: int) -> Path:
    """Every third image of a class is grey, CMYK or a PNG by the name of JPEG; sizes and shapes
    differ."""
    for split, count in (("train", num_train), ("val", num_test)):
        for number in range(count):
            image = photo(
                number + 100 * (split == "val"),
                24 + 7 * (number % 4),
                22 + 5 * (number % 5),
            )
            raw = jpeg(image)
            if number % 9 == 2:
                raw = (
                    jpeg(image.convert("L")),
                    jpeg(image.convert("CMYK")),
                    jpeg(image, "PNG"),
                )[number // 9]
            file = (
                root
                / split
                / CLASSES[number % 3]
                / f"{CLASSES[number % 3]}_{number:02}.JPEG"
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(raw)
        (root / split / CLASSES[0] / "notes.txt").write_text("not an image")
    return root


def idx(values: Bytes) -> bytes:
    """An idx file of unsigned bytes."""
    shape = values.shape
    return (
        struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + values.tobytes()
    )


def fashion_mnist_files(folder: Path, num_train: int, num_test: int) -> dict[str, str]:
    """Write the four files, of random images and labels that take turns; what each is known by."""
    random = np.random.default_rng(3)
    arrays = []
    for count in (num_train, num_test):
        arrays.append(random.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        arrays.append(np.arange(count, dtype=np.uint8) % 10)
    contents = dict(zip(FILES, map(idx, arrays), strict=True))
    write(folder, {name: gzip.compress(raw) for name, raw in contents.items()})
    return {name: hashlib.sha256(raw).hexdigest() for name, raw in contents.items()}


def made_up_words(seed: int, count: int) -> list[str]:
    """Different words of three to eight letters."""
    random = np.random.default_rng(seed)
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(random.choice(list("abcdefghij"), random.integers(3, 9)))] = None
    return list(words)


def made_up_entries(num_words: int) -> list[tuple[str, list[str]]]:
    """Words in alphabetical order with phones; every third word has a second pronunciation."""
    entries = []
    for number, word in enumerate(sorted(made_up_words(4, num_words))):
        phones = ["AH0", "B", "EH1", "T"][: 1 + len(word) % 4]
        entries += [(word, phones), (word, [*phones, "S"])][: 1 + (number % 3 == 0)]
    return entries


def verses(seed: int, count: int) -> list[str]:
    """Sentences of three to six of some words."""
    random = np.random.default_rng(seed)
    words = made_up_words(seed, 60)
    return [
        " ".join(random.choice(words, random.integers(3, 7))).capitalize() + "."
        for _ in range(count)
    ]


def testament(folder: Path, name: str, slots: list[str], per_block: int = 7) -> None:
    """The three files of a SWORD text, in blocks of so many slots."""
    blocks = b""
    places = b""
    packed = b""
    for first in range(0, len(slots), per_block):
        texts = [slot.encode() for slot in slots[first : first + per_block]]
        start = 0
        for text in texts:
            places += struct.pack("<IIH", first // per_block, start, len(text))
            start += len(text)
        block = zlib.compress(b"".join(texts))
        blocks += struct.pack("<III", len(packed), len(block), start)
        packed += block
    write(folder, {f"{name}.bzs": blocks, f"{name}.bzv": places, f"{name}.bzz": packed})


def bible(
    share: Path,
    name: str,
    seed: int,
    chapters: tuple[int, ...] = (4, 4),
    per_chapter: int = 5,
) -> int:
    """A Bible of one book per testament, with these many chapters, as SWORD keeps it; its number of
    slots."""
    texts = iter(verses(seed, sum(chapters) * per_chapter))
    total = 0
    for testament_name, count in zip(("ot", "nt"), chapters, strict=True):
        slots = [
            "",
            '<milestone type="x-importer"/>',
            '<div type="book"/><title>The book</title>',
        ]
        for chapter in range(count):
            slots.append(f'<chapter osisID="{chapter}"/>')
            for number in range(per_chapter):
                first, *rest = next(texts).split()
                note = (
                    "<note placement='foot'>of the <i>word</i></note>"
                    if number == 1
                    else ""
                )
                slots.append(
                    f'<div sID="x"/>¶ <w lemma="strong:H1">{first}</w> {" ".join(rest)}{note} '
                )
        testament(share / "modules/texts/ztext" / name, testament_name, slots)
        total += len(slots)
    return total


def dictionary(share: Path, seed: int, count: int) -> list[str]:
    """Entries of broken lines as dictd keeps them, between notes on the database; every third has
    two headwords."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def written(number: int) -> str:
        return (written(number // 64) if number >= 64 else "") + digits[number % 64]

    entries = [
        f"{line}\n   [{number % 9}] {line.lower()}\n"
        for number, line in enumerate(verses(seed, count))
    ]
    text = b"\n"
    lines = []
    for number, entry in enumerate(["00-database-info\n   Free.\n", *entries]):
        words = [entry.split()[0]] + (["zz-also"] if number % 3 == 1 else [])
        lines += [
            f"{word}\t{written(len(text))}\t{written(len(entry))}\n" for word in words
        ]
        text += entry.encode() + b"\n"
    write(
        share,
        {
            "gcide.dict.dz": gzip.compress(text),
            "gcide.index": "".join(sorted(lines)).encode(),
        },
    )
    return entries
