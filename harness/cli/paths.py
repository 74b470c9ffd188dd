"""Paths on the command line: of a folder that can be made, or of what must be there already."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from cser_bench.harness.errors import UsageError


def folder(text: str) -> Path:
    """Return the folder that a word of the command line names: it is there or can be made.

    It can be made where no file is in its way.
    """
    path = Path(text)
    places = (path, *path.absolute().parents)
    if not text or not _is_so(lambda: next(place for place in places if place.exists()).is_dir()):
        raise argparse.ArgumentTypeError(f"must be a folder, or one that can be made, not {text!r}")
    return path


def known_folder(path: Path) -> Path:
    """Return a folder that is there.

    Raises UsageError: it is not.
    """
    if not _is_so(path.expanduser().is_dir):
        raise UsageError(f"there is no folder {path}; give one that is there")
    return path


def known_file(path: Path) -> Path:
    """Return a file that is there.

    Raises UsageError: it is not.
    """
    if not _is_so(path.is_file):
        raise UsageError(f"there is no file {path}; give one that is there")
    return path


def _is_so(look: Callable[[], bool]) -> bool:
    """Return what a look at a path says.

    The answer is no for what can be no path, as it is too long.
    """
    try:
        return look()
    except (OSError, RuntimeError, ValueError):
        return False
