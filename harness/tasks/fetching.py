"""Where data lies that nobody named a place for, how a file is fetched there, and what is said where none is found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from harness.tasks.errors import DataError

TIMEOUT_SECONDS = 20.0
"""Without an answer, after which a server is given up."""


def cache_folder(name: str) -> Path:
    """The user's own: $XDG_CACHE_HOME/cser-bench/`name`, or the same in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "cser-bench" / name


def fetch(address: str, path: Path, md5: str) -> None:
    """Place the file of this md5 sum that is at `address`, by one rename; it is tried twice.

    Raises:
        OSError: the server or the network failed, or `path` cannot be written.
        ValueError: not an address, or a file of another sum.
    """
    import pooch  # Takes half a second, and hardly any run fetches.

    # The file as it lies there: some servers call a .gz an encoding, which would be undone on the way.
    hook = {"response": lambda answer, **_: answer.raw.headers.discard("Content-Encoding")}
    as_it_lies = {"headers": {"Accept-Encoding": "identity"}, "hooks": hook}

    def download(address: str, temporary: str, keeper: pooch.Pooch) -> None:
        pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS, **as_it_lies)(address, temporary, keeper)
        os.chmod(temporary, 0o644)  # Temporary files are their owner's alone, and a cache may be shared.

    pooch.get_logger().setLevel("WARNING")
    names = {"registry": {path.name: f"md5:{md5}"}, "urls": {path.name: address}}
    pooch.create(path.parent, base_url="", retry_if_failed=1, **names).fetch(path.name, downloader=download)


def nowhere(what: str, tried: Sequence[str], remedy: str) -> DataError:
    """The error when every place failed, each with its reason."""
    places = "".join(f"\n  - {reason}" for reason in tried)
    return DataError(f"{what} nowhere to be found; tried:{places}\n{remedy} with DATA=FOLDER")
