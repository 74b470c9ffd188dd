"""Paths on the command line: those that a user gives, and those that a command shows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from cser_bench.harness.errors import UsageError


def folder(text: str) -> Path:
    """Return the folder that a word of the command line names: it is there or can be made.

    It can be made where no file is in its way.
    """
    path = Path(text)
    places = (path, *path.absolute().parents)
    if not text or not _is_so(
        lambda: next(place for place in places if _stands(place)).is_dir()
    ):
        raise click.BadParameter(
            f"must be a folder, or one that can be made, not {text!r}"
        )
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


def shipped_folder(results: Path, name: str) -> Path | None:
    """Return the folder of an experiment's runs that ship with the project, where there is one."""
    from cser_bench.harness.spec.spec_file import is_file

    folder = results / "reference" / name
    return folder if is_file(folder / "runs.jsonl") else None


def shortest(path: Path) -> str:
    """Return a path as it is, or relative to the current folder where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def report_text(path: Path, has_pictures: bool = True) -> str:
    """Say where a report lies, in all its forms, and on a second line where its pictures lie.

    Args:
        path: of report.md.
    """
    forms = ", ".join(
        shortest(path.with_suffix(suffix)) for suffix in (".md", ".pdf", ".html")
    )
    if not has_pictures:
        return f"  report: {forms}"
    return (
        f"  report: {forms}\n  pictures: {shortest(path.with_name('figures'))}{os.sep}"
    )


def _stands(path: Path) -> bool:
    """Return whether something is at the path.

    Raises OSError: the text is not a valid path; `Path.exists` raises it before Python 3.14 only.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_so(look: Callable[[], bool]) -> bool:
    """Return what `look` returns, and False for text that is not a valid path, such as a long one."""
    try:
        return look()
    except (OSError, RuntimeError, ValueError):
        return False
