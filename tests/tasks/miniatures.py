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
        found = {}
        for split, count in (("train", self.num_train), ("test", self.num_test)):
            pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
            found[split] = pixels
        return found

    @cached_property
    def labels(self) -> dict[str, npt.NDArray[np.int64]]:
        random = np.random.default_rng(2)
        found = {}
        for split, pixels in self.images.items():
            in_turn = np.arange(len(pixels)) % self.num_classes
            found[split] = random.permutation(in_turn)
        return found

    @cached_property
    def pickled(self) -> dict[str, bytes]:
        """The files of cifar-100-python, as Python 2 wrote them."""
        names = [str(label) for label in range(self.num_classes)]
        meta = {"fine_label_names": names}
        return {
            "train": self._pickled("train"),
            "test": self._pickled("test"),
            "meta": pickle.dumps(meta, protocol=2),
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
        files = self.pickled
        meta = {
            "filename": "meta",
            "key": "fine_label_names",
            "md5": md5(files["meta"]),
        }
        lists = {
            "train_list": [["train", md5(files["train"])]],
            "test_list": [["test", md5(files["test"])]],
            "meta": meta,
            "tgz_md5": md5(self.archive),
        }
        return type("Miniature", (CIFAR100,), lists)

    @property
    def task(self) -> cifar100.CIFAR100:
        return cifar100.CIFAR100(
            self.num_train, self.num_test, self.num_classes, release=self.release
        )


def cifar10_archive(num_train: int, num_test: int) -> dict[str, Bytes]:
    """Arrays of an archive of JPEGs: smooth images, and labels that take turns."""
    arrays: dict[str, Bytes] = {}
    for split, count in (("train", num_train), ("test", num_test)):
        first = 1000 * (split == "test")
        files = [jpeg(photo(first + number, 32, 32)) for number in range(count)]
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_ends"] = np.cumsum([len(file) for file in files])
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8) % 10
    return arrays


CLASSES = ("n01", "n02", "n03")
"""Classes of the miniature ImageNet."""


def photo(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Smooth noise, so that compression and small shifts change little."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return image.filter(ImageFilter.GaussianBlur(3))


def jpeg(image: Image.Image, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    options = {"quality": 92} if kind == "JPEG" else {}
    image.save(file, kind, **options)
    return file.getvalue()


def imagenet_tree(root: Path, num_train: int, num_test: int) -> Path:
    """Every third image of a class is grey, CMYK or a PNG by the name of JPEG; sizes and shapes
    differ."""
    for split, count in (("train", num_train), ("val", num_test)):
        for number in range(count):
            seed = number + 100 * (split == "val")
            width = 24 + 7 * (number % 4)
            height = 22 + 5 * (number % 5)
            image = photo(seed, width, height)
            raw = jpeg(image)
            if number == 2:
                raw = jpeg(image.convert("L"))
            elif number == 11:
                raw = jpeg(image.convert("CMYK"))
            elif number == 20:
                raw = jpeg(image, "PNG")
            name = CLASSES[number % 3]
            file = root / split / name / f"{name}_{number:02}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(raw)
        notes = root / split / CLASSES[0] / "notes.txt"
        notes.write_text("not an image")
    return root


def idx(values: Bytes) -> bytes:
    """An idx file of unsigned bytes."""
    shape = values.shape
    dimensions = len(shape)
    header = struct.pack(f">4B{dimensions}I", 0, 0, 8, dimensions, *shape)
    return header + values.tobytes()


def fashion_mnist_files(folder: Path, num_train: int, num_test: int) -> dict[str, str]:
    """Write the four files, of random images and labels that take turns; what each is known by."""
    random = np.random.default_rng(3)
    arrays = []
    for count in (num_train, num_test):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays.append(images)
        arrays.append(np.arange(count, dtype=np.uint8) % 10)
    contents = {}
    sums = {}
    for name, array in zip(FILES, arrays, strict=True):
        raw = idx(array)
        contents[name] = gzip.compress(raw)
        sums[name] = hashlib.sha256(raw).hexdigest()
    write(folder, contents)
    return sums


def made_up_words(seed: int, count: int) -> list[str]:
    """Different words of three to eight letters."""
    random = np.random.default_rng(seed)
    alphabet = list("abcdefghij")
    words: list[str] = []
    while len(words) < count:
        length = random.integers(3, 9)
        word = "".join(random.choice(alphabet, length))
        if word not in words:
            words.append(word)
    return words


def made_up_entries(num_words: int) -> list[tuple[str, list[str]]]:
    """Words in alphabetical order with phones; every third word has a second pronunciation."""
    entries = []
    for number, word in enumerate(sorted(made_up_words(4, num_words))):
        num_phones = 1 + len(word) % 4
        phones = ["AH0", "B", "EH1", "T"][:num_phones]
        entries.append((word, phones))
        if number % 3 == 0:
            entries.append((word, [*phones, "S"]))
    return entries


def verses(seed: int, count: int) -> list[str]:
    """Sentences of three to six of some words."""
    random = np.random.default_rng(seed)
    words = made_up_words(seed, 60)
    found = []
    for _ in range(count):
        length = random.integers(3, 7)
        sentence = " ".join(random.choice(words, length))
        found.append(sentence.capitalize() + ".")
    return found


def testament(folder: Path, name: str, slots: list[str], per_block: int = 7) -> None:
    """The three files of a SWORD text, in blocks of so many slots."""
    blocks = b""
    places = b""
    packed = b""
    for first in range(0, len(slots), per_block):
        own_slots = slots[first : first + per_block]
        texts = [slot.encode() for slot in own_slots]
        start = 0
        for text in texts:
            block_number = first // per_block
            places += struct.pack("<IIH", block_number, start, len(text))
            start += len(text)
        block = zlib.compress(b"".join(texts))
        blocks += struct.pack("<III", len(packed), len(block), start)
        packed += block
    files = {f"{name}.bzs": blocks, f"{name}.bzv": places, f"{name}.bzz": packed}
    write(folder, files)


def bible(
    share: Path, seed: int, chapters: tuple[int, ...] = (4, 4), per_chapter: int = 5
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
                word = f'<w lemma="strong:H1">{first}</w>'
                note = ""
                if number == 1:
                    note = "<note placement='foot'>of the <i>word</i></note>"
                slots.append(f'<div sID="x"/>¶ {word} {" ".join(rest)}{note} ')
        testament(share / "modules/texts/ztext/engKJV2006eb", testament_name, slots)
        total += len(slots)
    return total


def dictionary(share: Path, seed: int, count: int) -> list[str]:
    """Entries of broken lines as dictd keeps them, between notes on the database; every third has
    two headwords."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def written(number: int) -> str:
        higher, digit = divmod(number, 64)
        return (written(higher) if higher else "") + digits[digit]

    entries = []
    for number, line in enumerate(verses(seed, count)):
        entries.append(f"{line}\n   [{number % 9}] {line.lower()}\n")
    text = b"\n"
    lines = []
    for number, entry in enumerate(["00-database-info\n   Free.\n", *entries]):
        headwords = [entry.split()[0]]
        if number % 3 == 1:
            headwords.append("zz-also")
        place = f"{written(len(text))}\t{written(len(entry))}"
        for word in headwords:
            lines.append(f"{word}\t{place}\n")
        text += entry.encode() + b"\n"
    index = "".join(sorted(lines)).encode()
    files = {"gcide.dict.dz": gzip.compress(text), "gcide.index": index}
    write(share, files)
    return entries
