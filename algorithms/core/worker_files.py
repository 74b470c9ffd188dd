"""The files of a checkpoint, one for each worker, and a manifest of their digests.

Damage is noticed by the digests. Scripts (`core.checkpoints`) and the harness's runs keep in these
files what a worker needs to resume.
"""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cser_bench.algorithms.core.collectives import Collectives
from cser_bench.algorithms.core.traffic import Purpose

MANIFEST = "manifest.json"
NOT_WRITTEN = bytes(32).hex()
"""Stands for the digest of a file that could not be written."""


def file_of(folder: Path, rank: int) -> Path:
    """Return the path of a worker's file."""
    return folder / f"rank-{rank}.pt"


def write_own(folder: Path, rank: int, state: dict[str, Any]) -> str:
    """Write a worker's file durably, and return its SHA-256 in hexadecimal.

    Raises:
        OSError: no space, no permission.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    # A view: a copy would take the memory twice.
    content = buffer.getbuffer()
    write_durably(file_of(folder, rank), content)
    return hashlib.sha256(content).hexdigest()


def gathered_digests(digest: str, collectives: Collectives) -> list[str]:
    """Return the digests of all workers' files, in the order of ranks. All workers must call it."""
    content = bytearray.fromhex(digest)
    # (1, 32): this worker's digest as bytes.
    row = torch.frombuffer(content, dtype=torch.uint8).unsqueeze(0)
    rows = collectives.all_gather(row, Purpose.CONTROL)
    return [bytes(row.tolist()).hex() for row in rows]


def write_manifest(folder: Path, digests: Sequence[str], **fields: int) -> None:
    """Write the manifest, which completes a folder: the digests of its files, and other fields."""
    text = json.dumps({**fields, "sha256": list(digests)}) + "\n"
    write_durably(folder / MANIFEST, text.encode())


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the fields of a manifest; None where there is none, or it is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    is_whole = isinstance(manifest, dict) and isinstance(manifest.get("sha256"), list)
    return manifest if is_whole else None


def read_file(
    folder: Path, rank: int, digest: str, weights_only: bool
) -> dict[str, Any] | None:
    """Return a worker's state, on the CPU; None where the file is missing or not what was written.

    Args:
        weights_only: refuse all that is neither tensor nor plain data, which could run code.
    """
    try:
        content = file_of(folder, rank).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != digest:
        return None
    # To the CPU, since the GPU that it was saved from may be another's now; whoever takes it over
    # copies it to its own.
    state: dict[str, Any] = torch.load(
        io.BytesIO(content), map_location="cpu", weights_only=weights_only
    )
    return state


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it outlives a crash.

    What does not fit is taken away again, since a record of that needs room too.
    """
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # that of a full disk names none
        raise
