"""Snapshots of the code: what a queued job will run, whatever is edited in the meantime."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import tempfile
from pathlib import Path

PACKAGES = ("algorithms", "harness", "report", "slurm")


def take_snapshot(folder: Path) -> Path:
    """Copy the packages to a folder below `folder` that is named by their contents, unless it is there; return it.

    Raises:
        OSError: no space, no permission.
    """
    files, target = _files(), snapshot_path(folder)
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".snapshot-", dir=folder))
    try:
        for name, path in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
        temporary.chmod(0o755)
        os.rename(temporary, target)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.exists():  # else another submitter was quicker
            raise
    return target


def snapshot_path(folder: Path) -> Path:
    """Where a snapshot of the code as it is now lies, or would."""
    return folder / _digest(_files())


def _files() -> dict[str, Path]:
    """All sources and data files of the packages, by their names in a snapshot."""
    found = {}
    for package in PACKAGES:
        root = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found[str(Path(package) / path.relative_to(root))] = path
    return found


def _digest(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]
