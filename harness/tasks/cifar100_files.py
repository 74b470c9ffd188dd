"""The CIFAR-100 release: found on this machine or fetched, verified, read (Krizhevsky, 2009; the fine labels)."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.tasks.errors import DataError
from harness.tasks.fetching import fetch, nowhere

Bytes = npt.NDArray[np.uint8]

ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
"""Where the release is published."""

PIXELS = 3 * 32 * 32
"""Bytes of an image: red, green and blue planes of 32 rows of 32."""


@dataclass(frozen=True)
class Release:
    """What the official files are known by: md5 sums, as their publisher and torchvision give them.

    The pickled release is the one that is fetched. The binary one, where the user has it, is known by the sum of its
    archive; its extracted files have no published sums and are held to their exact sizes and class counts.
    """

    train_md5: str = "16019d7e3df5f24257cddd939b257f8d"
    test_md5: str = "f0ef6b0ae62326f3e7ffdfab6717acfc"
    archive_md5: str = "eb9058c3a382ffc7106e4002c42a8d85"
    binary_archive_md5: str = "03b5dce01913d631647c71ecec9e9cb8"
    num_train: int = 50_000
    num_test: int = 10_000
    num_classes: int = 100

    def count(self, split: str) -> int:
        return self.num_train if split == "train" else self.num_test


@dataclass(frozen=True)
class ReleaseForm:
    """One of the two official forms: the folder, its archive, and the file of a split."""

    folder: str
    suffix: str

    @property
    def archive(self) -> str:
        return f"{self.folder}.tar.gz"

    def file(self, split: str) -> str:
        return split + self.suffix


PICKLED, BINARY = ReleaseForm("cifar-100-python", ""), ReleaseForm("cifar-100-binary", ".bin")


@dataclass(frozen=True)
class ReleasePath:
    """Where a release lies: an extracted folder, or an archive."""

    path: Path
    layout: ReleaseForm


def locate(data: Path | None, cache: Path, release: Release) -> ReleasePath:
    """A place that holds the release; its contents are verified by `read_split`.

    `data`, where given, is the only place looked at: the extracted folder, the archive, or a folder that holds either.
    Otherwise the cache is taken, and filled by fetching where it has nothing good.

    Raises:
        DataError: `data` holds no release; or the cache does not and fetching failed.
    """
    if data is not None:
        place = _place_in(data.expanduser())
        if place is None:
            raise DataError(
                f"the given data folder {data} holds no CIFAR-100: looked for {_wanted()}; put one of them there, "
                "or leave DATA empty to have it found or fetched"
            )
        return place
    tried: list[str] = []
    place = _place_in(cache)
    if place is None:
        tried.append(f"{cache} holds none of {_wanted()}")
    else:
        try:
            for split in ("train", "test"):
                read_split(place, split, release)
            return place
        except DataError as error:
            tried.append(str(error))
    try:
        return _fetched(cache, release)
    except (OSError, ValueError) as error:
        tried.append(f"{ADDRESS}: {error}")
    remedy = f"put {PICKLED.archive} from {ADDRESS} in {cache}, or name the folder that holds it"
    raise nowhere("CIFAR-100 is", tried, remedy)


def read_split(place: ReleasePath, split: str, release: Release) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """The images of "train" or "test", shape (n, 3, 32, 32), and their fine labels, shape (n,).

    Raises:
        DataError: a file is missing or damaged, or does not hold what the release holds.
    """
    raw = _contents(place, split, release)
    where = f"{place.path} ({place.layout.file(split)})"
    images, labels = (_unpickled if place.layout is PICKLED else _unpacked)(raw, where)
    count = release.count(split)
    if len(images) != count or len(labels) != count:
        raise DataError(
            f"{where} holds {len(images)} images where {count} are expected; put the official release there"
        )
    per_class = np.bincount(labels, minlength=release.num_classes)
    if len(per_class) != release.num_classes or (per_class != count // release.num_classes).any():
        raise DataError(
            f"{where} does not hold {count // release.num_classes} images of each of {release.num_classes} classes; "
            "put the official release there"
        )
    return images, labels


def _place_in(path: Path) -> ReleasePath | None:
    """The release at this path or in this folder; extracted before packed, pickled before binary."""
    for layout in (PICKLED, BINARY):
        for candidate in (path / layout.folder, path, path / layout.archive):
            is_folder = any((candidate / layout.file(split)).is_file() for split in ("train", "test"))
            is_archive = candidate.is_file() and layout.folder in candidate.name
            if is_folder or is_archive:
                return ReleasePath(candidate, layout)
    return None


def _wanted() -> str:
    return ", ".join(name for layout in (PICKLED, BINARY) for name in (f"{layout.folder}/", layout.archive))


def _contents(place: ReleasePath, split: str, release: Release) -> bytes:
    """The bytes of one split's file, verified where a sum is known.

    Raises:
        DataError: missing, unreadable or of another sum.
    """
    name = place.layout.file(split)
    try:
        if place.path.is_dir():
            raw = (place.path / name).read_bytes()
        else:
            if place.layout is BINARY:
                _check_md5(place.path.read_bytes(), release.binary_archive_md5, place.path)
            raw = _packed(place.path, f"{place.layout.folder}/{name}")
    except FileNotFoundError:
        raise DataError(f"{place.path / name} is missing; extract the whole of {place.layout.archive} again") from None
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{place.path} is damaged or cut short ({name}: {error}); put an undamaged copy in its place"
        ) from None
    if place.layout is PICKLED:
        _check_md5(raw, release.train_md5 if split == "train" else release.test_md5, place.path / name)
    return raw


def _packed(archive: Path, member: str) -> bytes:
    with tarfile.open(archive, "r:gz") as tar:
        file = tar.extractfile(member)
        if file is None:
            raise KeyError(f"{member} is no file")
        return file.read()


def _check_md5(raw: bytes, expected: str, path: Path) -> None:
    digest = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if digest != expected:
        raise DataError(
            f"{path} is damaged (its md5 is {digest}, expected {expected}); put an undamaged copy in its place"
        )


def _unpickled(raw: bytes, where: str) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Contents of the pickled form. Only what has the right sum gets here, so unpickling runs nobody else's code."""
    try:
        entry = pickle.loads(raw, encoding="latin1")
        images = np.asarray(entry["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        return images, np.asarray(entry["fine_labels"], dtype=np.int64)
    except Exception as error:
        raise DataError(f"{where} is not a CIFAR-100 pickle ({error}); put the official release there") from None


def _unpacked(raw: bytes, where: str) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Contents of the binary form: coarse label, fine label, pixels, image by image."""
    if len(raw) % (2 + PIXELS):
        raise DataError(
            f"{where} has {len(raw)} bytes, which is no multiple of {2 + PIXELS}; put an undamaged copy in its place"
        )
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 2 + PIXELS)
    return records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1].astype(np.int64)


def _fetched(cache: Path, release: Release) -> ReleasePath:
    """Fetch the archive and extract its two files into the cache, each by one rename.

    Raises:
        OSError, ValueError: no answer, the cache cannot be written, or another sum.
    """
    folder = cache / PICKLED.folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache, ignore_cleanup_errors=True) as temporary:
        archive = Path(temporary) / PICKLED.archive
        print(f"cifar100: fetching {ADDRESS} (161 MiB)", file=sys.stderr, flush=True)
        fetch(ADDRESS, archive, release.archive_md5)
        for split in ("train", "test"):
            raw = _contents(ReleasePath(archive, PICKLED), split, release)
            part = Path(temporary) / split
            part.write_bytes(raw)
            os.replace(part, folder / split)
    return ReleasePath(folder, PICKLED)
