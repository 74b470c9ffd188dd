"""The temporary folder of a program that starts workers, and what killed programs left of theirs."""

from __future__ import annotations

import atexit
import multiprocessing
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from cser_bench.harness.records.run_lock import is_owned, owned

PREFIX = "cser-workers-"
YOUNG_SECONDS = 60.0
"""A folder younger than this may be one whose program has not locked it yet."""

_making = threading.Lock()
_held = ExitStack()
_own: list[Path] = []


def own_folder() -> Path:
    """Return this program's folder for what its workers meet by, made at the first call.

    It goes when the program ends. One that was killed leaves its folder, and the lock in it free:
    the next program takes such folders away.
    """
    with _making:
        if not _own:
            _sweep(Path(tempfile.gettempdir()))
            folder = Path(
                _held.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX))
            )
            _held.enter_context(owned(folder))
            # Where the fork server listens; by default it makes a folder that a kill leaves too.
            process = multiprocessing.current_process()
            process._config.setdefault("tempdir", str(folder))  # type: ignore[attr-defined]
            atexit.register(_held.close)
            _own.append(folder)
        return _own[0]


def _sweep(place: Path) -> None:
    """Take away the folders whose programs have ended without doing so."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another program sweeps too
            is_young = time.time() - folder.stat().st_mtime < YOUNG_SECONDS
            # A folder of another user, or without a lock, says of nobody that he has ended.
            if not is_young and is_owned(folder) is False:
                shutil.rmtree(folder)
