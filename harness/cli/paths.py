"""What reads a word of the command line as a path: of a folder, or of what must be there already."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def folder(text: str) -> Path:
    """A folder, or one that can be made: there is no file in its way."""
    path = Path(text)
    places = (path, *path.absolute().parents)
    if not text or not _is_so(lambda: next(place for place in places if place.exists()).is_dir()):
        raise argparse.ArgumentTypeError(f"must be a folder, or one that can be made, not {text!r}")
    return path


def known_folder(text: str) -> Path:
    """A folder that is there."""
    if not text or not _is_so(lambda: Path(text).expanduser().is_dir()):
        raise argparse.ArgumentTypeError(f"must be a folder that is there, not {text!r}")
    return Path(text)


def known_file(text: str) -> Path:
    """A file that is there."""
    if not _is_so(Path(text).is_file):
        raise argparse.ArgumentTypeError(f"must be a file that is there, not {text!r}")
    return Path(text)


def _is_so(look: Callable[[], bool]) -> bool:
    """What a look at a path says; no for what can be no path, as it is too long."""
    try:
        return look()
    except (OSError, RuntimeError, ValueError):
        return False
