"""Fashion-MNIST at full size: 60,000 + 10,000 grey images of 28 x 28, ten classes.

Source: Xiao et al., arXiv 1708.07747.
"""

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.task import Inputs, TensorSamples, cache_folder, subset

MEAN = 0.2860
STANDARD_DEVIATION = 0.3530
"""Statistics of the training set's pixels, scaled to [0, 1]."""

PUBLISHED = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
PACKAGE = "dataset-fashion-mnist"
PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Debian's and Ubuntu's package of the four files, and where it puts them."""

FILES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""The sha256 of what each file holds once gunzipped: Debian's gzip headers differ from the
authors'."""


@dataclass(frozen=True)
class FashionMNIST:
    """The images as they are, normalised."""

    num_train: int = 60_000
    num_test: int = 10_000
    num_classes: int = 10
    input_shape: tuple[int, ...] = (1, 28, 28)
    inputs: Inputs = "images"
    metrics: tuple[str, ...] = ()

    def prepare(self, data: Path | None) -> None:
        contents(data)

    def load(
        self, data: Path | None, spec: TaskSpec, device: torch.device
    ) -> TensorSamples:
        train_images, train_labels, test_images, test_labels = contents(data)
        test = (
            None
            if spec.num_validation
            else _normalised(test_images, test_labels, device)
        )
        return subset(_normalised(train_images, train_labels, device), spec, test)


def as_tensors(images: bytes, labels: bytes) -> tuple[Tensor, Tensor]:
    """Take pixels, bytes of shape (n, 1, 28, 28), and labels out of the files' contents."""
    # What the files hold comes after headers of 16 and 8 bytes.
    # Copies, since torch warns about memory that is read-only, as bytes are.
    pixels = torch.from_numpy(np.frombuffer(images, np.uint8, offset=16).copy())
    classes = torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).copy())
    return pixels.view(-1, 1, 28, 28), classes.to(torch.int64)


def _normalised(
    images: bytes, labels: bytes, device: torch.device
) -> tuple[Tensor, Tensor]:
    pixels, classes = as_tensors(images, labels)
    numbers = pixels.to(device).to(torch.float32)
    return numbers.div_(255).sub_(MEAN).div_(STANDARD_DEVIATION), classes.to(device)


def contents(data: Path | None) -> list[bytes]:
    """Read what the four files hold, verified, in the order of `FILES`.

    Args:
        data: where given, the only place looked at. Otherwise these are, in this order: the folder
            of Debian's package, the user's cache, and then the authors' server and Debian's
            package, from which the cache is filled.

    Raises:
        DataError: no place has them whole.
    """
    if data is not None:
        folder = data.expanduser()
        of_torchvision = folder / "FashionMNIST" / "raw"
        if of_torchvision.is_dir():
            folder = of_torchvision
        try:
            return verified(folder)
        except DataError as error:
            raise DataError(
                f"{error}; put an undamaged copy there, or name another folder with DATA=FOLDER"
            ) from None
    cache = cache_folder("fashion-mnist")
    tried = []
    # What lies here comes before what must be fetched, and what is whole is never fetched.
    attempts: list[tuple[str, Path, Callable[[Path], None] | None]] = [
        ("", PACKAGE_FOLDER, None),
        ("", cache, None),
        (f"{PUBLISHED}: ", cache, _fetch_published),
        (f"Debian's package {PACKAGE}: ", cache, _fetch_packaged),
    ]
    for place, folder, fetch in attempts:
        try:
            if fetch is not None:
                print(
                    f"fashion-mnist: fetching from {place}30 MB",
                    file=sys.stderr,
                    flush=True,
                )
                cache.mkdir(parents=True, exist_ok=True)
                # Straight into the cache: what is not whole there is noticed by its digest, and
                # fetched again.
                fetch(cache)
            return verified(folder)
        except (DataError, OSError, subprocess.SubprocessError) as error:
            tried.append(place + str(getattr(error, "stderr", None) or error).strip())
    raise DataError(
        f"the Fashion-MNIST files are nowhere to be found; tried: {'; '.join(tried)}; install the "
        f"package {PACKAGE} (Debian, Ubuntu), or put {', '.join(FILES)} in {cache}, or name the "
        "folder that holds them with DATA=FOLDER"
    )


def verified(folder: Path) -> list[bytes]:
    """Read what the files in the folder hold.

    Raises:
        DataError: for the first that is missing or damaged.
    """
    verified_files = []
    for name, expected in FILES.items():
        try:
            content = gzip.decompress((folder / name).read_bytes())
        except FileNotFoundError:
            raise DataError(f"{folder / name} is missing") from None
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{folder / name} is damaged or unreadable ({error})"
            ) from None
        digest = hashlib.sha256(content).hexdigest()
        if digest != expected:
            raise DataError(
                f"{folder / name} is damaged: its contents have sha256 {digest}, expected "
                f"{expected}"
            )
        verified_files.append(content)
    return verified_files


def _fetch_published(cache: Path) -> None:
    for name in FILES:
        with (
            urllib.request.urlopen(f"{PUBLISHED}/{name}", timeout=20) as answer,
            (cache / name).open("wb") as file,
        ):
            shutil.copyfileobj(answer, file)


def _fetch_packaged(cache: Path) -> None:
    """Download Debian's package and unpack it, without root.

    Lists of packages are fetched too, since a machine may have none.
    """
    with tempfile.TemporaryDirectory() as temporary:

        def run(*command: str, check: bool = True) -> None:
            # What the commands say of a failure goes into our message, which is English.
            env = {**os.environ, "LC_ALL": "C"}
            subprocess.run(
                command,
                cwd=temporary,
                env=env,
                capture_output=True,
                text=True,
                timeout=600,
                check=check,
            )

        folder = Path(temporary)
        for private in ("lists/partial", "archives/partial"):
            (folder / private).mkdir(parents=True)
        apt = [
            "apt-get",
            "-q",
            "-oAcquire::http::Timeout=20",
            f"-oDir::State={folder}",
            f"-oDir::Cache={folder}",
            "-oDir::State::status=/var/lib/dpkg/status",
        ]
        # It may fail in a hook that needs root, and yet renew the lists.
        run(*apt, "update", check=False)
        run(*apt, "download", PACKAGE)
        # Unpacked and not installed, which would need root.
        run("dpkg-deb", "-x", *(path.name for path in folder.glob("*.deb")), "root")
        for name in FILES:
            shutil.copyfile(
                folder / "root" / PACKAGE_FOLDER.relative_to("/") / name, cache / name
            )


TASK = FashionMNIST()
