"""Files that are replaced as a whole, so that nobody reads a part of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_text_atomically(path: Path, text: str, durable: bool = True) -> None:
    """Replace `path` by `text` so that a reader sees the old file or the new one, never a part.

    Raises OSError: no space, no permission; the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a rename is atomic within one file system alone.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    # Not by tempfile, whose files are the owner's alone: this one is as readable as the umask says.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with errors_naming(path), os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            # Before the rename: else the name could stand over an empty file after a power cut.
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    # After Ctrl-C too, or the torn file would stay until the next attempt at the run.
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        # A file's new name survives the machine's end too, where the file system can.
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Have errors of the system name the file.

    That of a full disk, which comes from a write, names none.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
