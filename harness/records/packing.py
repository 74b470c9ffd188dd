"""Packs an experiment's finished runs into one file and unpacks them; wherever it is stopped, nothing is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.records import packs
from harness.records.experiment import read_experiment
from harness.records.identity import check_id
from harness.records.pack_lines import Files
from harness.records.run_lock import alone
from harness.records.store import (
    RecordError,
    make_names_durable,
    parse_run,
    read_files,
    run_folders,
    write_text_atomically,
)

_REMOVING, _UNPACKING = ".removing", ".unpacking"
"""Endings of hidden folders that are no runs: on their way out, or not whole yet."""


@dataclass(frozen=True)
class Packed:
    """What packing did. `left`: folders of runs that are not done."""

    path: Path
    num_runs: int
    added: int
    removed: int
    left: int


def pack(folder: Path, remove_folders: bool = False) -> Packed:
    """Add the finished runs that are folders to the experiment's pack, and make it where there is none.

    Args:
        folder: of the experiment.
        remove_folders: afterwards take away the folders that the pack, read again from the disk, gives to the byte;
            with them go their logs, checkpoints and locks.

    Raises:
        RecordError: a record, or the pack that is there, cannot be used; nothing was changed then.
        OSError: no space, no permission; the old pack is then untouched.
    """
    experiment = read_experiment(folder)
    with _alone(folder):
        before = _packed_files(folder)
        finished = _finished(folder)
        runs = {**before, **finished}
        if not runs:
            raise RecordError(f"{folder} holds no finished run to pack; run the experiment first")
        path = folder / packs.NAME
        text = packs.render(experiment.name, runs)
        _check_holds(packs.parse(text.encode(), path), runs)
        if not path.exists() or path.read_bytes() != text.encode():
            write_text_atomically(path, text)
        removed = _remove(folder, list(finished)) if remove_folders else 0
    added = sum(before.get(run_id) != files for run_id, files in finished.items())
    left = sum(path.name not in finished for path in run_folders(folder))
    return Packed(path, len(runs), added, removed, left)


def _packed_files(folder: Path) -> dict[str, Files]:
    pack = packs.read_pack(folder)
    return {run_id: pack.files(run_id) for run_id in pack.lines if pack.record(run_id)} if pack else {}


def _finished(folder: Path) -> dict[str, Files]:
    """The files of each finished run that is a folder."""
    found = {}
    for path in run_folders(folder):
        files = read_files(path)
        record = parse_run(files, path)
        if record.result is None:
            continue
        if record.run.run_id != path.name:
            raise RecordError(f"{path / 'run.json'} belongs to run {record.run.run_id}; move that folder elsewhere")
        check_id(record.run, path / "run.json")
        found[path.name] = files
    return found


def _check_holds(pack: packs.Pack, runs: Mapping[str, Files]) -> None:
    """Raises RuntimeError where the pack would not give these files back: a mistake of this program."""
    for run_id, files in runs.items():
        if pack.files(run_id) != files:
            raise RuntimeError(f"{pack.path} would not give run {run_id} back to the byte; nothing was changed")


def _remove(folder: Path, run_ids: list[str]) -> int:
    """Take away the folders of these runs; each must still be what the pack on the disk has."""
    pack = packs.parse((folder / packs.NAME).read_bytes(), folder / packs.NAME)
    for run_id in run_ids:
        if pack.files(run_id) != read_files(folder / run_id):
            raise RecordError(f"{folder / run_id} was changed while it was packed; pack again")
    make_names_durable(folder)
    for run_id in run_ids:
        part = folder / f".{run_id}{_REMOVING}"
        os.replace(folder / run_id, part)  # gone at once: half a folder would be half a run
        shutil.rmtree(part)
    return len(run_ids)


@dataclass(frozen=True)
class Unpacked:
    """What unpacking did. `unfinished`: folders of runs that are not done, which stay as they are though the pack has
    the runs; `other`: folders of finished runs that differ from the pack, which stay too.
    """

    written: int
    same: int
    unfinished: list[Path]
    other: list[Path]


def unpack(folder: Path) -> Unpacked:
    """Make folders of the packed runs; what is there is never written over, and the pack stays.

    Raises:
        RecordError: there is no pack, or it cannot be used; nothing was written then.
        OSError: no space, no permission; call again when that is mended.
    """
    with _alone(folder):
        runs = _packed_files(folder)
        if not runs:
            raise RecordError(
                f"{folder} holds no {packs.NAME} to unpack; give the folder of an experiment that has one"
            )
        there = {run_id: read_files(folder / run_id) for run_id in runs if (folder / run_id).exists()}
        for run_id in runs.keys() - there.keys():
            _write_folder(folder / run_id, runs[run_id])
    differing = sorted(run_id for run_id, files in there.items() if files != runs[run_id])
    return Unpacked(
        written=len(runs) - len(there),
        same=len(there) - len(differing),
        unfinished=[folder / run_id for run_id in differing if "result.json" not in there[run_id]],
        other=[folder / run_id for run_id in differing if "result.json" in there[run_id]],
    )


def _write_folder(folder: Path, files: Files) -> None:
    """All files or no folder."""
    part = folder.with_name(f".{folder.name}{_UNPACKING}")
    part.mkdir()
    for name, data in files.items():
        (part / name).write_bytes(data)
    os.replace(part, folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two that pack at once could each leave out what the other took away."""
    with alone(folder / "pack.lock"):
        for remains in folder.glob(".*"):  # of one that was killed
            if remains.name.endswith((_REMOVING, _UNPACKING)):
                shutil.rmtree(remains)
            elif remains.name.startswith(f".{packs.NAME}."):
                remains.unlink()
        yield
