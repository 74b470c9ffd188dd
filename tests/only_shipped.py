"""Holds tests to what ships in results/: whatever else lies there is the user's own, and no test or
generator may depend on it."""

from __future__ import annotations

import os
import sys
from functools import cache

from cser_bench.harness.records.shipped import SHIPPED

PLACES = (str(SHIPPED), str(SHIPPED / "reference"))
"""Folders that the user's own records may lie in."""


class ReadsOwnResultsError(AssertionError):
    """A test, or what it calls, lists results/ or reads what does not ship."""


@cache
def _shipped() -> tuple[str, ...]:
    names = (SHIPPED / "shipped.txt").read_text().splitlines()
    return tuple(str(SHIPPED / name) for name in names if not name.startswith("#"))


def _is_own(path: str) -> bool:
    """Tell whether a path lies in results/ and under nothing that ships."""
    if not path.startswith(f"{SHIPPED}{os.sep}"):
        return False
    return not any(
        path == each or path.startswith(f"{each}{os.sep}") for each in _shipped()
    )


def _refuse(event: str, facts: tuple[object, ...]) -> None:
    """Raise where a folder that user's own records may lie in is listed, or such a record read."""
    # A file may be named by its number, which says nothing.
    if event not in ("open", "os.listdir", "os.scandir"):
        return
    if not isinstance(facts[0], str | os.PathLike):
        return
    path_given = os.fspath(facts[0])
    path = os.path.abspath(path_given)
    if event != "open":
        if os.path.realpath(path) in PLACES:
            raise ReadsOwnResultsError(
                f"{path} was listed; ask harness.records.shipped instead"
            )
        return
    flags = facts[2]
    is_read = isinstance(flags, int) and flags & os.O_ACCMODE != os.O_WRONLY
    if is_read and _is_own(path):
        raise ReadsOwnResultsError(f"{path} was read, which does not ship")


def hold() -> None:
    """Refuse from now on, in this process."""
    _shipped()
    sys.addaudithook(_refuse)
