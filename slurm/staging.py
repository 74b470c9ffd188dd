"""Copies that jobs work from: the code as it was submitted, and an archive's data on each node's own disk."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TypeGuard

from harness.tasks.errors import DataError
from harness.tasks.task import Check

PACKAGES = ("algorithms", "harness", "report", "slurm")

STAGING_SECONDS = 3600.0
"""How long a worker waits until all nodes have their copy of the data."""

END_BYTES = 1024
"""Zeros at the end of every tar file: one without them was cut off, as by a copy that was not waited for."""


def snapshot_path(folder: Path) -> Path:
    """Where a snapshot of the code as it is now lies, or would: below `folder`, by a digest of what is in it."""
    digest = hashlib.sha256()
    for package, root in _packages().items():
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{package / path.relative_to(root)}\0{content}\n".encode())
    return folder / digest.hexdigest()[:12]


def take_snapshot(folder: Path) -> Path:
    """Copy the packages to `snapshot_path`, unless they are there, and return it: what a queued job will run.

    Raises:
        OSError: no space, no permission.
    """
    target, unfinished = snapshot_path(folder), folder / ".unfinished"
    if not target.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        for package, root in _packages().items():
            # harness/shipped is a link to the results, which jobs do not need.
            shutil.copytree(root, unfinished / package, ignore=shutil.ignore_patterns("__pycache__", "shipped"))
        unfinished.rename(target)
    return target


def _packages() -> dict[Path, Path]:
    return {Path(name): Path(str(importlib.import_module(name).__file__)).parent for name in PACKAGES}


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
        folder = _folder_of(archive, scratch)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / ".whole").exists():
                _extract(archive, folder)
    except OSError as error:
        raise DataError(f"{archive} cannot be put into {scratch}: {error}; make room or give permission") from None
    return folder


def check_archive(archive: Path, scratch: str) -> Check:
    """Whether this node can read the archive to its end, and has room for what is in it, or has it already."""
    try:
        with open(archive, "rb") as file:
            file.seek(max(0, archive.stat().st_size - END_BYTES))
            if file.read() != bytes(END_BYTES):
                return Check("archive", False, f"{archive} ends early, as no tar file does; copy or make it again")
        folder = _folder_of(archive, scratch)
        folder.parent.mkdir(parents=True, exist_ok=True)
        refused = None if (folder / ".whole").exists() else _no_room(archive, folder.parent)
    except OSError as error:
        refused = f"{error}; give --data an archive that all nodes see, and scratch a folder that they can write to"
    return Check("archive", refused is None, refused or f"{archive} has room in {scratch}")


def _folder_of(archive: Path, scratch: str) -> Path:
    seen = archive.stat()
    return Path(os.path.expandvars(scratch)) / f"{archive.stem}-{seen.st_size}-{seen.st_mtime_ns}"


def _extract(archive: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if refused := _no_room(archive, folder.parent):
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
