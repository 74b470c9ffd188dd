"""Data on each node's own disk: one stream from an archive on the shared one, and no open there for each file."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import TypeGuard

from harness.tasks.errors import DataError
from harness.tasks.task import Check

STAGING_SECONDS = 3600.0
"""How long a worker waits until all nodes have their copy."""

END_BYTES = 1024
"""Zeros at the end of every tar file: one without them was cut off, as by a copy that was not waited for."""


def is_archive(data: Path | None) -> TypeGuard[Path]:
    """Whether the data is a tar file that nodes extract."""
    return data is not None and data.suffix == ".tar"


def staged(archive: Path, scratch: str) -> Path:
    """The archive's contents, in a folder below `scratch` that is this version's; whoever comes first extracts it.

    Args:
        scratch: a folder of this node, in which variables of the environment may stand.

    Raises:
        DataError: the archive cannot be read or extracted, or there is no room.
    """
    try:
        seen = archive.stat()
        folder = Path(os.path.expandvars(scratch)) / f"{archive.stem}-{seen.st_size}-{seen.st_mtime_ns}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / ".whole").exists():
                _extract(archive, folder)
    except OSError as error:
        raise DataError(f"{archive} cannot be put into {scratch}: {error}; make room or give permission") from None
    return folder


def _extract(archive: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    refused = _no_room(archive, folder.parent)
    if refused:
        raise DataError(refused)
    folder.mkdir()
    done = subprocess.run(["tar", "-xf", archive, "-C", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"tar cannot extract {archive} into {folder}: {(done.stderr.splitlines() or ['?'])[-1]}")
    (folder / ".whole").touch()


def _no_room(archive: Path, folder: Path) -> str | None:
    needed, free = archive.stat().st_size, shutil.disk_usage(folder).free
    room = f"{folder} has {free / 1e9:.1f} GB free, {archive} needs {needed / 1e9:.1f}"
    return None if free > needed else f"{room}; make room, or name another scratch in the profile"


def _ends_well(archive: Path) -> bool:
    with open(archive, "rb") as file:
        file.seek(max(0, archive.stat().st_size - END_BYTES))
        return file.read() == bytes(END_BYTES)


def check_archive(archive: Path, scratch: str) -> Check:
    """Whether this node can read the archive to its end, and has room for what is in it, or has it already."""
    try:
        if not _ends_well(archive):
            return Check("archive", False, f"{archive} ends early, as no tar file does; copy or make it again")
        folder = Path(os.path.expandvars(scratch))
        folder.mkdir(parents=True, exist_ok=True)
        copies = folder.glob(f"{archive.stem}-{archive.stat().st_size}-{archive.stat().st_mtime_ns}/.whole")
        refused = None if any(copies) else _no_room(archive, folder)
    except OSError as error:
        refused = f"{error}; give --data an archive that all nodes see, and scratch a folder that they can write to"
    return Check("archive", refused is None, refused or f"{archive} has room in {folder}")
