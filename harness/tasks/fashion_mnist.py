"""Fashion-MNIST at full size: 60,000 + 10,000 grey images of 28 x 28, ten classes (Xiao et al., arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.spec import TaskSpec
from harness.tasks.errors import DataError
from harness.tasks.task import TensorSamples, cache_folder, subset

MEAN, STANDARD_DEVIATION = 0.2860, 0.3530
"""Of the training set's pixels, scaled to [0, 1]."""

PUBLISHED = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
PACKAGE, PACKAGE_FOLDER = "dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")
"""Debian's and Ubuntu's package of the four files, and where it puts them."""

FILES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""The sha256 of what each file holds once gunzipped: Debian's gzip headers differ from the authors'."""


@dataclass(frozen=True)
class FashionMNIST:
    num_train: int = 60_000
    num_test: int = 10_000
    num_classes: int = 10
    input_shape: tuple[int, ...] = (1, 28, 28)
    survives_fork: bool = True
    trains_on_fewer: bool = True

    def prepare(self, data: Path | None) -> None:
        locate(data)

    def load(self, data: Path | None, spec: TaskSpec, device: torch.device) -> TensorSamples:
        folder = locate(data)
        train = _read(folder, "train", device)
        return subset(train, spec) if spec.held_out else subset(train, spec, _read(folder, "t10k", device))


def _read(folder: Path, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and labels of a split whose files were verified: bytes after headers of 16 and 8 bytes."""
    raw = [_unpacked(folder / f"{split}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")]
    pixels = torch.from_numpy(np.frombuffer(raw[0], np.uint8, offset=16).copy()).to(device).view(-1, 1, 28, 28)
    labels = torch.from_numpy(np.frombuffer(raw[1], np.uint8, offset=8).copy()).to(device, torch.int64)
    return pixels.to(torch.float32).div_(255).sub_(MEAN).div_(STANDARD_DEVIATION), labels


def locate(data: Path | None, files: Mapping[str, str] = FILES, published: str = PUBLISHED) -> Path:
    """A folder that holds the four verified files.

    `data`, where given, is the only place looked at. Otherwise, in this order: the folder of Debian's package, the
    user's cache, and then the authors' server and Debian's package, from which the cache is filled.

    Raises:
        DataError: `data` lacks a file or holds a damaged one; or no place had the files.
    """
    if data is not None:
        layout = data.expanduser() / "FashionMNIST" / "raw"  # torchvision's
        try:
            return verified(layout if layout.is_dir() else data.expanduser(), files)
        except DataError as error:
            raise DataError(f"{error}; put an undamaged copy there, or name another folder with DATA=FOLDER") from None
    cache, tried = cache_folder("fashion-mnist"), []
    for folder in (PACKAGE_FOLDER, cache):
        try:
            return verified(folder, files)
        except DataError as error:
            tried.append(str(error))
    fetchers: dict[str, Callable[[Path], Path]] = {
        published: lambda folder: _fetch_published(folder, files, published),
        f"Debian's package {PACKAGE}": _fetch_package,
    }
    for name, fetch in fetchers.items():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache, ignore_cleanup_errors=True) as temporary:
                print(f"fashion-mnist: fetching from {name} (30 MB)", file=sys.stderr, flush=True)
                folder = verified(fetch(Path(temporary)), files)
                for file in files:  # each by one rename; a set placed in part is no danger, since all are verified
                    os.replace(folder / file, cache / file)
            return cache
        except (DataError, OSError, subprocess.SubprocessError) as error:
            tried.append(f"{name}: {getattr(error, 'stderr', None) or error}".strip())
    raise DataError(
        f"the Fashion-MNIST files are nowhere to be found; tried: {'; '.join(tried)}; install the package {PACKAGE} "
        f"(Debian, Ubuntu), or put {', '.join(files)} in {cache}, or name the folder that holds them with DATA=FOLDER"
    )


def verified(folder: Path, files: Mapping[str, str] = FILES) -> Path:
    """The folder, if it holds every file with the right contents.

    Raises:
        DataError: names the first file that is missing or damaged.
    """
    for name, expected in files.items():
        digest = hashlib.sha256(_unpacked(folder / name)).hexdigest()
        if digest != expected:
            raise DataError(f"{folder / name} is damaged: its contents have sha256 {digest}, expected {expected}")
    return folder


def _unpacked(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or unreadable ({error})") from None


def _fetch_published(folder: Path, files: Mapping[str, str], address: str) -> Path:
    for name in files:
        with urllib.request.urlopen(f"{address}/{name}", timeout=20) as answer, (folder / name).open("wb") as file:
            shutil.copyfileobj(answer, file)
    return folder


def _fetch_package(folder: Path) -> Path:
    """Debian's package, downloaded and unpacked without root; with lists of our own where the machine's do not do."""
    apt = ["apt-get", "-q", "-oAcquire::http::Timeout=20"]
    _run([*apt, "download", PACKAGE], folder, check=False)
    if not list(folder.glob("*.deb")):
        for private in ("lists/partial", "archives/partial"):
            (folder / private).mkdir(parents=True)
        apt += [f"-oDir::State={folder}", f"-oDir::Cache={folder}", "-oDir::State::status=/var/lib/dpkg/status"]
        _run([*apt, "update"], folder, check=False)  # may fail in a hook that needs root and yet renew the lists
        _run([*apt, "download", PACKAGE], folder)
    _run(["dpkg-deb", "-x", *(path.name for path in folder.glob("*.deb")), "root"], folder)
    return folder / "root" / PACKAGE_FOLDER.relative_to("/")


def _run(command: list[str], folder: Path, check: bool = True) -> None:
    env = {**os.environ, "LC_ALL": "C"}
    subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=check)


TASK = FashionMNIST()
