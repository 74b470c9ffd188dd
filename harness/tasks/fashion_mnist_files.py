"""The four Fashion-MNIST files: found on this machine or fetched, verified, read (no torch here)."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.tasks.errors import DataError
from harness.tasks.fetching import TIMEOUT_SECONDS, fetch, nowhere

PACKAGE = "dataset-fashion-mnist"
"""Debian's and Ubuntu's package of the four files."""

PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where that package puts them."""

MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",)
"""Where the authors publish them."""

APT_TIMEOUT = 600.0
"""Seconds after which a whole apt-get command is given up."""


@dataclass(frozen=True)
class Expected:
    """What one file is known by: the sha256 of what it holds once gunzipped, and the md5 of the authors' own .gz.

    The contents count, not the .gz around them: Debian leaves the name and the time out of the gzip header, so its
    files and those of the original authors differ in their first bytes and agree in all that matters.
    """

    sha256: str
    gz_md5: str


FILES: Mapping[str, Expected] = {
    "train-images-idx3-ubyte.gz": Expected(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"
    ),
    "train-labels-idx1-ubyte.gz": Expected(
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", "25c81989df183df01b3e8a0aad5dffbe"
    ),
    "t10k-images-idx3-ubyte.gz": Expected(
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", "bef4ecab320f06d8554ea6380940ec79"
    ),
    "t10k-labels-idx1-ubyte.gz": Expected(
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", "bb300cfdad3c16e7a12a480ee83cd310"
    ),
}
"""File name -> what it must be."""


def locate(
    data: Path | None,
    cache: Path,
    *,
    files: Mapping[str, Expected] = FILES,
    package_folder: Path = PACKAGE_FOLDER,
    mirrors: Sequence[str] = MIRRORS,
) -> Path:
    """A folder that holds the four verified files.

    `data`, where given, is the only place looked at. Otherwise, in this order: the folder of Debian's package, the
    cache, and then Debian's package and the mirrors, from which the cache is filled.

    Raises:
        DataError: `data` lacks a file or holds a damaged one; or no place had the files.
    """
    if data is not None:
        return _given(data, files)
    tried: list[str] = []
    for folder in (package_folder, cache):
        try:
            verify(folder, files)
            return folder
        except DataError as error:
            tried.append(str(error))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache, ignore_cleanup_errors=True) as temporary:
            if _fill(cache, Path(temporary), files, mirrors, tried):
                return cache
    except OSError as error:
        tried.append(f"cannot write to the cache {cache} ({error})")
    remedy = f"install the package {PACKAGE} (Debian, Ubuntu), or put {', '.join(files)} in {cache}, or name the folder"
    raise nowhere("the Fashion-MNIST files are", tried, f"{remedy} that holds them")


def verify(folder: Path, files: Mapping[str, Expected] = FILES) -> None:
    """Check that `folder` holds every file with the right contents.

    Raises:
        DataError: names the first file that is missing or damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    for name, expected in files.items():
        path = folder / name
        try:
            with gzip.open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise DataError(f"{path} is missing") from None
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is damaged or unreadable ({error})") from None
        if digest != expected.sha256:
            raise DataError(
                f"{path} is damaged (the sha256 of its unpacked contents is {digest}, expected {expected.sha256})"
            )


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read one gzipped idx file of bytes: labels have shape (n,), images (n, rows, columns).

    Raises:
        DataError: absent, not gzip, not idx of unsigned bytes, or longer or shorter than its header says.
    """
    try:
        with gzip.open(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); put an undamaged copy in its place") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= 3:
        raise DataError(
            f"{path} starts with bytes {raw[:4].hex()!r}, which is not an idx file of unsigned bytes in 1 to 3 "
            "dimensions; put an undamaged copy in its place"
        )
    start = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:start]) if len(raw) >= start else None
    if shape is None or len(raw) - start != math.prod(shape):
        raise DataError(
            f"{path} holds {len(raw)} bytes, which does not fit the dimensions {shape} in its header; "
            "put an undamaged copy in its place"
        )
    # Copied because an array over `bytes` is read-only, which torch.from_numpy warns about.
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy()


def _given(data: Path, files: Mapping[str, Expected]) -> Path:
    """The user's own folder, or torchvision's layout in it; never another place, lest a mistake go unseen."""
    data = data.expanduser()
    layout = data / "FashionMNIST" / "raw"
    folder = layout if layout.is_dir() and not any((data / name).exists() for name in files) else data
    try:
        verify(folder, files)
    except DataError as error:
        raise DataError(
            f"the given data folder cannot be used: {error}; put an undamaged {', '.join(files)} there, "
            "or leave DATA empty to have them found or fetched"
        ) from None
    return folder


def _fill(
    cache: Path, temporary: Path, files: Mapping[str, Expected], mirrors: Sequence[str], tried: list[str]
) -> bool:
    """Put the files into the cache, each by one rename; where no source has all of them, add to `tried` why.

    A set placed in part is no danger: every use of the cache verifies all four.
    """
    sources: dict[str, Callable[[], None]] = {
        f"Debian's package {PACKAGE}": partial(_fetch_package, temporary, cache, files),
        **{f"mirror {mirror}": partial(_fetch_mirror, mirror, cache, files) for mirror in mirrors},
    }
    for name, fetch_all in sources.items():
        try:
            fetch_all()
            _say(f"placed in {cache}")
            return True
        except (DataError, OSError, ValueError) as error:
            tried.append(f"{name}: {error}")
    return False


def _fetch_package(temporary: Path, cache: Path, files: Mapping[str, Expected]) -> None:
    """Download Debian's package with apt-get, unpack and verify it, and place its files; none of that needs root.

    Raises:
        DataError: no apt-get here, no package, no network, or files that are not the expected ones.
        OSError: the cache cannot be written.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(f"{tool} is not on this machine")
    _say(f"fetching Debian's package {PACKAGE} (30 MB)")
    _download_package(temporary)
    packages = sorted(temporary.glob("*.deb"))
    if not packages:
        raise DataError("apt-get download left no .deb file")
    failure = _command(["dpkg-deb", "-x", packages[0].name, "root"], temporary)
    if failure is not None:
        raise DataError(failure)
    folder = temporary / "root" / PACKAGE_FOLDER.relative_to("/")
    try:
        verify(folder, files)
    except DataError as error:
        raise DataError(str(error).replace(f"{folder}{os.sep}", "")) from None
    for name in files:
        (folder / name).chmod(0o644)
        os.replace(folder / name, cache / name)


def _fetch_mirror(mirror: str, cache: Path, files: Mapping[str, Expected]) -> None:
    """Place the files of one mirror.

    Raises:
        OSError, ValueError: no answer, or a file that is not the expected one.
    """
    _say(f"fetching from the mirror {mirror} (30 MB)")
    for name, expected in files.items():
        fetch(f"{mirror.rstrip('/')}/{name}", cache / name, expected.gz_md5)


def _download_package(folder: Path) -> None:
    """Download the package into `folder`, with package lists of our own where the machine's do not do.

    Raises:
        DataError: apt-get failed, in its own words.
    """
    options = [f"-oAcquire::http::Timeout={TIMEOUT_SECONDS:.0f}", "-oAcquire::Retries=1"]
    if _command(["apt-get", *options, "download", PACKAGE], folder) is None:
        return
    # The machine's lists are absent or old, and only root may renew them.
    _say("renewing package lists, in a private folder")
    for private in ("state/lists/partial", "cache/archives/partial"):
        (folder / private).mkdir(parents=True)
    options += [
        f"-oDir::State={folder / 'state'}",
        "-oDir::State::status=/var/lib/dpkg/status",
        f"-oDir::Cache={folder / 'cache'}",
    ]
    update = _command(["apt-get", *options, "update"], folder)
    failure = _command(["apt-get", *options, "download", PACKAGE], folder)
    # An update may end in an error (a hook that needs root) and still have renewed the lists: the download decides.
    if failure is not None:
        raise DataError(failure if update is None else f"{failure}; {update}")


def _command(command: Sequence[str], folder: Path) -> str | None:
    """Run a command in `folder`, silently; None on success, else why it failed, in its own last words."""
    name = f"{command[0]} {next(word for word in command[1:] if not word.startswith('-o'))}"
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=APT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{name} failed ({error})"
    if done.returncode == 0:
        return None
    words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return f"{name} failed ({words[-1]})"


def _say(line: str) -> None:
    """One line of progress, on stderr so that stdout stays for results."""
    print(f"fashion-mnist: {line}", file=sys.stderr, flush=True)
