"""Locks of files: one process at a time works at a run, packs runs or notes a failure.

Anybody can see whether a run's lock is held. The package filelock has no lock to look with, shared or
without making the file, and only some of the errors below mean to it that there are no locks.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PATIENCE_SECONDS = 5.0
"""How long a run's lock is waited for: the processes of a killed launch take a moment to end."""

NAME = "owner.lock"
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems without locks say (Lustre mounted without `flock` has ENOSYS)."""


class BusyError(RuntimeError):
    """Another living process holds the lock."""

    exit_code = 1


class LinkError(RuntimeError):
    """The lock's file is a symbolic link."""

    exit_code = 1


@contextmanager
def locked(
    path: Path, patience_seconds: float = math.inf, busy: str = ""
) -> Iterator[None]:
    """Hold the lock of this file, which the system takes back from a killed process.

    Where the file system has no locks everything goes on; only the names of attempts then tell who
    began last. A file that says who has a run would be no substitute: a process that is killed
    leaves it behind. Raises BusyError: another process holds it for longer than that; `busy` is the
    message. Raises LinkError: the file is a symbolic link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file stays when the lock is given back. Were it removed, one process could lock the
    # removed file while another locks a new one of that name.
    # The lock is the open file's: it ends with the `with`, or with the process.
    with _opened(path) as file:
        patience_ends = time.monotonic() + patience_seconds
        while _try_lock(file) is False:
            if time.monotonic() >= patience_ends:
                raise BusyError(busy)
            # `flock` itself can wait, but for no limited time.
            time.sleep(0.05)
        yield


def _opened(path: Path) -> IO[Any]:
    """Open the file, made where there is none, and leave what is in it."""
    try:
        # A link could name any file, which would then be locked, or made, in place of this one.
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise LinkError(
            f"{path} is a symbolic link, which no lock may be; remove it and call again"
        ) from None
    return os.fdopen(number, "r+")


@contextmanager
def owned(folder: Path, rank: int = 0) -> Iterator[None]:
    """Hold the run's lock; rank 0 holds it for all its workers.

    Raises BusyError: another process is at this run.
    """
    # Other ranks would compete with rank 0 for a lock that is one process's.
    if rank:
        yield
        return
    with locked(
        folder / NAME, PATIENCE_SECONDS, f"another process is at run {folder.name}"
    ):
        yield


def is_owned(folder: Path) -> bool | None:
    """Say whether a process holds the run's lock, as far as this machine can see.

    None where there is no lock to see.
    """
    try:
        with open(folder / NAME) as file:
            # Shared, so that two who look at once do not take each other for the owner.
            could_lock = _try_lock(file, fcntl.LOCK_SH)
    except OSError:
        return None
    return None if could_lock is None else not could_lock


def _try_lock(file: IO[Any], how: int = fcntl.LOCK_EX) -> bool | None:
    """Try to lock the file, and say whether it could be locked.

    None where its file system has no locks.
    """
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return True
