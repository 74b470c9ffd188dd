"""The lock of a run's folder: one process at a time works at a run, and anybody can see whether one does."""

from __future__ import annotations

import errno
import fcntl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PATIENCE_SECONDS = 5.0
"""How long a run's lock is waited for: the processes of a killed launch take a moment to end."""

NAME = "owner.lock"
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems without locks say (Lustre mounted without `flock` has ENOSYS); see `has_locks`."""


class BusyError(RuntimeError):
    """Another living process is at this run."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the run's lock, which the system takes back from a killed process.

    Raises:
        BusyError: another process holds it, and goes on holding it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NAME, "w") as lock:
        patience_ends = time.monotonic() + PATIENCE_SECONDS
        while not locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if time.monotonic() > patience_ends:
                raise BusyError(f"another process is at run {folder.name}")
            time.sleep(0.1)
        yield


@contextmanager
def owned_by_rank_0(folder: Path, rank: int) -> Iterator[None]:
    """As `owned`, where many processes work at a run together."""
    if rank:
        yield
        return
    with owned(folder):
        yield


def is_owned(folder: Path) -> bool | None:
    """Whether a process holds the run's lock, as far as this machine can see; None where there is no lock to see."""
    try:
        with open(folder / NAME) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def locked(file: IO[str], how: int) -> bool:
    """Whether the file could be locked; always so where the file system has no locks.

    Args:
        how: flock's flags; without `LOCK_NB` it waits.
    """
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of this file, after whoever holds it now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        locked(lock, fcntl.LOCK_EX)
        yield


def has_locks(folder: Path) -> bool:
    """Whether the file system of this folder has locks; where not, only the names of attempts tell who began last.

    A file that says who has a run, as for submitting to a cluster, would be no substitute: a process that is killed
    leaves it behind, and the run could not go on.

    Raises:
        OSError: the folder cannot be written to.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
    return True
