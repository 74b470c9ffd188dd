"""Where data lies that nobody named a place for, and how a file is fetched over the network."""

from __future__ import annotations

import math
import os
import urllib.request
from pathlib import Path

TIMEOUT_SECONDS = 20.0
"""Without an answer, after which a server is given up."""

CHUNK = 1 << 20
"""Bytes read at a time."""


def cache_folder(name: str) -> Path:
    """The user's own: $XDG_CACHE_HOME/cser-bench/`name`, or the same in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "cser-bench" / name


def download(address: str, path: Path, most_bytes: float = math.inf) -> None:
    """Save what is at `address`.

    Raises:
        OSError, http.client.HTTPException: the server or the network failed.
        ValueError: not an address, or longer than `most_bytes`.
    """
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer, path.open("wb") as file:
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            if file.tell() > most_bytes:
                raise ValueError(f"longer than {most_bytes} bytes")
