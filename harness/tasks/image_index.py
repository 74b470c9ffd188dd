"""The images of a folder of class folders: names and labels in a fixed order; a scan is kept for the next time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.tasks.errors import DataError

SUFFIXES = (".jpeg", ".jpg")
"""Of image files, in any case; other files are passed over."""

KEEP_FROM = 10_000
"""Images from which on a scan is worth keeping."""


@dataclass(frozen=True)
class ImageIndex:
    """Class folders sorted by name, and in each its images sorted by name; a million names take tens of megabytes."""

    root: Path
    classes: tuple[str, ...]
    names: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, number: int) -> str:
        return f"{self.root}/{self.classes[int(self.labels[number])]}/{os.fsdecode(self.names[number])}"


def image_index(root: Path, cache: Path, keep_from: int = KEEP_FROM) -> ImageIndex:
    """Scan the folder, or take the scan kept in `cache` if no class folder has changed since.

    Raises:
        DataError: no folder, no class folders, or unreadable ones.
    """
    try:
        classes = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))
        changed = np.array([os.stat(root / name).st_mtime_ns for name in classes], dtype=np.int64)
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error.strerror}); {_advice(root)}") from None
    if not classes:
        raise DataError(f"{root} holds no class folders{_loose(root)}; {_advice(root)}")
    kept = cache / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.npz"
    known = _kept(kept, classes, changed)
    if known is None:
        known = _scanned(root, classes)
        if len(known[0]) >= keep_from:
            _keep(kept, classes, changed, *known)
    names, per_class = known
    return ImageIndex(root, classes, names, np.repeat(np.arange(len(classes)), per_class))


Scan = tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int64]]
"""Names of files, and how many of them each class has."""


def _scanned(root: Path, classes: tuple[str, ...]) -> Scan:
    names: list[bytes] = []
    per_class = []
    for name in classes:
        try:
            files = [entry.name for entry in os.scandir(root / name) if entry.name.lower().endswith(SUFFIXES)]
        except OSError as error:
            raise DataError(f"{root / name} cannot be read ({error.strerror}); make it readable") from None
        names += sorted(map(os.fsencode, files))
        per_class.append(len(files))
    return np.array(names, dtype=np.bytes_), np.array(per_class, dtype=np.int64)


def _kept(file: Path, classes: tuple[str, ...], changed: npt.NDArray[np.int64]) -> Scan | None:
    """The kept scan, unless there is none that is whole and of today's folders."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            same = tuple(kept["classes"].tolist()) == classes and np.array_equal(kept["changed"], changed)
            names, per_class = kept["names"], kept["per_class"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (names, per_class) if same and len(names) == per_class.sum() else None


def _keep(
    file: Path,
    classes: tuple[str, ...],
    changed: npt.NDArray[np.int64],
    names: npt.NDArray[np.bytes_],
    per_class: npt.NDArray[np.int64],
) -> None:
    """Write the scan by one rename; where that cannot be, the next run scans again and nothing else is lost."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".scan-", delete=False) as temporary:
            np.savez(temporary, classes=np.array(classes), changed=changed, names=names, per_class=per_class)
        os.replace(temporary.name, file)


def _loose(root: Path) -> str:
    loose = sum(entry.name.lower().endswith(SUFFIXES) for entry in os.scandir(root))
    return f" but {loose:,} images" if loose else ""


def _advice(root: Path) -> str:
    return f"it must hold one folder per class, as in {root.name}/n01440764/NAME.JPEG"
