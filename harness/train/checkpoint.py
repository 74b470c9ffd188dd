"""Checkpoints of a run: two generations until there is a result, the pointer moved last."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cser_bench.algorithms import Collectives, Purpose
from cser_bench.algorithms.core.worker_files import (
    file_of,
    gathered_digests,
    read_file,
    read_manifest,
    write_manifest,
    write_own,
)
from cser_bench.harness.records.atomic import write_text_atomically
from cser_bench.harness.records.store import VERSION

FOLDER = "checkpoint"
"""Name of the folder in a run's."""
GENERATIONS = 2
"""Kept while a run is on; while one more is written they stay, since what is written may never be
whole."""


class CheckpointError(ValueError):
    """A checkpoint that must not be continued from; the message says why."""


def save(
    folder: Path,
    step: int,
    state: dict[str, Any],
    collectives: Collectives,
    attempt: str,
    check_is_newest: Callable[[], None] = lambda: None,
) -> None:
    """Save this rank's `state` (tensors and plain data) at `step`; all ranks must call it together.

    Args:
        attempt: keeps the files of two attempts that write at the same time apart; all ranks must
            give the same.
        check_is_newest: raises where this attempt may not publish what it saved; rank 0 asks.

    Raises OSError: no space, no permission; CheckpointError: rank 0 does not see another rank's
    file, or the folder is a symbolic link. The generations before stay whole.
    """
    _check_is_no_link(folder)
    name = f"step-{step:09d}"
    temporary = folder / f"{name}.{attempt}.tmp"
    # All ranks make it, whichever comes first: none waits for another before it writes.
    temporary.mkdir(parents=True, exist_ok=True)
    digest = write_own(temporary, collectives.rank, state)
    # Also a barrier: rank 0 looks for the files of others only once all are written.
    digests = gathered_digests(digest, collectives)
    if collectives.rank == 0:
        check_is_newest()
        _publish(folder, temporary, name, step, digests)
    # No rank may go on, and perhaps die or save again, before the pointer is moved.
    gathered_digests(digest, collectives)


def _check_is_no_link(folder: Path) -> None:
    """Raise CheckpointError where the folder is a symbolic link.

    Old generations are deleted, and there they would be those of another run.
    """
    if folder.is_symlink():
        raise CheckpointError(
            f"{folder} is a symbolic link, and what it names may belong to another run; remove the "
            "link and call again"
        )


def _publish(
    folder: Path, temporary: Path, name: str, step: int, digests: list[str]
) -> None:
    ranks = range(len(digests))
    missing = [str(rank) for rank in ranks if not file_of(temporary, rank).exists()]
    if missing:
        raise CheckpointError(
            f"the checkpoint of step {step} is not whole: rank 0 sees no file of rank "
            f"{', '.join(missing)} in {temporary}; give --results a folder that all machines see"
        )
    write_manifest(
        temporary, digests, version=VERSION, step=step, world_size=len(digests)
    )
    final = folder / name
    # A rename replaces no folder that has something in it. Stopped in between, the generation
    # before is still whole.
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    # Last: until then `load` begins at the generation before.
    write_text_atomically(folder / "latest", name + "\n")
    # A later generation is a damaged one, or was never pointed to: the run has gone back behind it.
    kept = _published(folder)[:GENERATIONS]
    # Among them is what attempts that ended left half written, whose names go on behind the step.
    for old in folder.glob("step-*"):
        if old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)
    for torn in folder.glob(".latest.*"):
        torn.unlink()


def discard(folder: Path) -> None:
    """Delete all checkpoints of a run that has a result.

    What cannot be deleted stays, since nothing depends on it.
    """
    shutil.rmtree(folder, ignore_errors=True)


def _published(folder: Path) -> list[str]:
    """Return the names of the whole generations, newest first, from the one that the pointer names.

    All of them where there is no pointer.
    """
    # What ends in a digit was renamed, and so is whole. All steps have nine digits, so names sort
    # as numbers.
    names = sorted((path.name for path in folder.glob("step-*[0-9]")), reverse=True)
    try:
        latest = (folder / "latest").read_text().strip()
    except OSError:
        return names
    return [name for name in names if name <= latest] or names


def load(folder: Path, collectives: Collectives) -> tuple[int, dict[str, Any]] | None:
    """Return the step and this rank's state of the newest generation that is whole everywhere.

    None where there is none. That there are some, and none is whole, is printed.

    Raises:
        CheckpointError: it is of another number of workers or another version, or this rank's file
            holds what could run code, or the folder is a symbolic link.
    """
    _check_is_no_link(folder)
    generations = _agreed(_published(folder), collectives)
    for name in generations:
        state = _load_generation(folder / name, collectives)
        # Also of a rank that cannot read its own: all go through the generations together.
        # A sum over ranks of 1 for whole and 0 for damaged: n says that all can go on from it.
        intact = torch.tensor([float(state is not None)], dtype=torch.float64)
        collectives.all_reduce_sum_(intact, Purpose.CONTROL)
        if intact.item() == collectives.world_size and state is not None:
            return int(name.removeprefix("step-")), state
    if generations and collectives.rank == 0:
        print(
            f"no checkpoint in {folder} is whole on every rank: the run begins anew",
            flush=True,
        )
    return None


def _agreed(names: list[str], collectives: Collectives) -> list[str]:
    """Return rank 0's list of generations.

    On a network file system others may see them later.
    """
    # One size on all ranks, as the others do not know yet how many there are.
    steps = torch.full((1, 4), -1, dtype=torch.int64)
    # The generations that are kept, and what a stop before the clearing up may have left beside
    # them.
    for place, name in enumerate(names[:4]):
        steps[0, place] = int(name.removeprefix("step-"))
    collectives.broadcast_(steps, Purpose.CONTROL)
    return [f"step-{step:09d}" for step in steps[0].tolist() if step >= 0]


def of_others(path: Path, num_saved: int, num_workers: int) -> str:
    """Say why a checkpoint of another number of workers, at each end, is not continued from."""
    return (
        f"{path} was written by {num_saved} workers and cannot be continued by {num_workers}: "
        "error, momentum and order belong to a worker; use as many workers, started in the same "
        "way, or delete the folder to start anew"
    )


def _load_generation(path: Path, collectives: Collectives) -> dict[str, Any] | None:
    """Return this rank's state, or None where the generation is damaged."""
    manifest = read_manifest(path)
    if manifest is None:
        return None
    version = manifest.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"{path} is of version {version!r}, this program writes {VERSION}; delete it to start "
            "anew"
        )
    num_saved: int = manifest.get("world_size", 0)
    if num_saved != collectives.world_size:
        raise CheckpointError(of_others(path, num_saved, collectives.world_size))
    digests = manifest["sha256"]
    # A manifest that was written or copied in part.
    if len(digests) != num_saved:
        return None
    rank = collectives.rank
    try:
        # Tensors and plain data alone: a checkpoint from elsewhere must not run code.
        return read_file(path, rank, digests[rank], weights_only=True)
    # torch's own words are several lines, in colours, and advise to trust the file.
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise CheckpointError(
            f"{file_of(path, rank)} holds something else than tensors and plain data, and could "
            f"run code; restore it, or delete {path} to go on from the checkpoint before it"
        ) from None
