"""Packed records: the finished runs of an experiment in one file.

The file is results/<experiment>/runs.jsonl, with a JSON line for each run. In an installation it is
compressed, as runs.jsonl.gz.

A run's line has its files as plain JSON: `run`, `events`, `result`, and `failure` where an attempt
before failed. It begins with the sha256 of the rest of the line. The first line is a header, with
the experiment's name, the number of runs and the sha256 of the rest of it and of the runs' digests.
So no line can be changed, left out or added unseen.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from cser_bench.harness.records import store
from cser_bench.harness.records.atomic import write_text_atomically
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.finished import check_run, finished_run
from cser_bench.harness.records.run_lock import locked
from cser_bench.harness.records.store import (
    NoRecordsError,
    RecordError,
    Result,
    RunRecord,
)
from cser_bench.harness.spec.run import is_run_id

FORMAT = 2
"""Version of the pack's format; a pack of another is refused, never guessed at."""
NAME = "runs.jsonl"
COMPRESSED = f"{NAME}.gz"

# A line begins with {"sha256":" of 11 characters, and a digest has 64; behind it come two signs
# more, and at the end stand a brace and the line's end.
DIGEST = slice(11, 75)
"""Where a line has its digest."""

TEXT = slice(77, -2)
"""Where a line has the rest of its object."""

Files = dict[str, Any]
"""The JSON of a run's files, by their names without endings."""

Version = tuple[Path, tuple[int, ...]]
"""A pack's file, and a stamp that is another one when the file was replaced."""


def read_pack(folder: Path) -> Mapping[str, Files]:
    """Return the files of each run in the folder's pack, by id; nothing where there is none.

    Raises RecordError: the pack is bad.
    """
    version = _version(folder)
    return {} if version is None else _read_once(*version)


def _version(folder: Path) -> Version | None:
    """Return the folder's pack; None where there is none."""
    for path in (folder / NAME, folder / COMPRESSED):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        # A pack is replaced by a rename, so its time or its inode is another.
        return path, (status.st_mtime_ns, status.st_size, status.st_ino)
    return None


@lru_cache(maxsize=8)
def _read_once(path: Path, stamp: tuple[int, ...]) -> Mapping[str, Files]:
    """Return the pack in a file, which is read once, as states are asked of run by run."""
    content = path.read_bytes()
    if path.name == COMPRESSED:
        content = _decompressed(content, path)
    # Bytes that are no UTF-8 are damage as any other: the digest tells of it, by the line's number.
    text = content.decode(errors="replace")
    # JSON is written in ASCII, so no text in a run has any other sign that this splits at.
    first, *lines = text.splitlines(keepends=True) or [""]
    runs: dict[str, Files] = {}
    digests = ""
    # Lines are counted as editors do, and the first is the header.
    for number, line in enumerate(lines, start=2):
        if line != _line(line[TEXT]):
            raise _damaged(path, number)
        files = from_json(line)
        digests += files.pop("sha256")
        run = files.pop("run_id", None)
        if not is_run_id(run):  # it names the folder that the run is unpacked to
            raise RecordError(
                f"{path}, line {number}, names the run {run!r}, which is no run's id; do not use "
                "the file, and get it from who made it"
            )
        runs[run] = files
    # The header's digest is of all lines' digests, so a line that was lost or moved is noticed.
    if first != _line(first[TEXT], digests):
        raise _damaged(path, 1)
    # After the digest: a header that was edited is damage, whatever format it names.
    version = from_json(first).get("format")
    if version != FORMAT:
        raise RecordError(
            f"{path} is a pack of format {version!r}, this program reads {FORMAT}; unpack it with "
            "its own"
        )
    return runs


def _decompressed(content: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RecordError(
            f"{path} is damaged ({error}); install the project again"
        ) from None


def _damaged(path: Path, number: int) -> RecordError:
    return RecordError(
        f"{path}, line {number}, is damaged or was edited, or lines were lost: its digest differs; "
        "restore the file from git or from a copy"
    )


def render_pack(experiment: str, runs: Mapping[str, Files]) -> str:
    """Return the pack of these runs by their ids: the same runs give the same bytes."""
    # Sorted, so that git shows the runs that came, and no others.
    lines = [_line(_inside({"run_id": run, **runs[run]})) for run in sorted(runs)]
    # The header's digest is of all others', so that no line can be lost unseen.
    digests = "".join(line[DIGEST] for line in lines)
    header = _inside({"format": FORMAT, "experiment": experiment, "runs": len(lines)})
    return "".join([_line(header, digests), *lines])


def _line(text: str, more: str = "") -> str:
    """Return the object whose inside is `text`, after the digest of it and of `more`."""
    digest = hashlib.sha256((text + more).encode()).hexdigest()
    return f'{{"sha256":"{digest}",{text}}}\n'


def _inside(fields: Files) -> str:
    """Return an object in JSON without its braces."""
    return json.dumps(fields, separators=(",", ":"))[1:-1]


def _packed_run(folder: Path, files: Files) -> RunRecord:
    """Return the run of this folder in the experiment's pack.

    The pack has these files of it.
    """
    return finished_run(
        files, folder, f"{folder.parent / NAME}, the line of run {folder.name},"
    )


# Most of the time of a report is spent here, and pages read an experiment for several of their parts.
@lru_cache(maxsize=32)
def _checked_once(path: Path, stamp: tuple[int, ...]) -> Mapping[str, RunRecord]:
    """Return all runs of the pack in a file, by id."""
    return {
        run: _packed_run(path.parent / run, files)
        for run, files in _read_once(path, stamp).items()
    }


def read_runs(folder: Path) -> dict[str, RunRecord]:
    """Return all runs of an experiment's folder, finished or not, packed or folders, by id.

    Where both have a run, a folder with a result wins: it is what was written last here, and a pack
    that it should go into is made from it. A folder without one is a try at a run that the pack has
    done.
    """
    version = _version(folder)
    runs = {} if version is None else dict(_checked_once(*version))
    for path in store.run_folders(folder):
        if path.name in runs and not (path / "result.json").exists():
            continue
        record = store.read_run(path)
        if record.result is not None:
            check_run(record, path / "run.json")
        runs[path.name] = record
    return dict(sorted(runs.items()))


def read_result(folder: Path) -> Result | None:
    """Return the result of the run of this folder, in it or packed; None if it is not done.

    Raises RecordError: the result or the pack is bad.
    """
    # A result whose run.json is gone says of no run that it is done.
    if (folder / "run.json").exists():
        result = store.read_optional(folder / "result.json", Result)
        if result is not None:
            return result
    files = read_pack(folder.parent).get(folder.name)
    if not files:
        return None
    return _packed_run(folder, files).result


def read_checked_result(folder: Path) -> Result | None:
    """Return what `read_result` does, where the run's other records are whole and fit it.

    Raises RecordError: one of them is bad; the message says what to do.
    """
    result = read_result(folder)
    # A run that is packed was read as a whole.
    if result is None or not (folder / "result.json").exists():
        return result
    check_run(store.read_run(folder), folder / "run.json")
    return result


def pack_runs(folder: Path, remove_folders: bool = False) -> tuple[int, int]:
    """Add the finished runs that are folders to the experiment's pack.

    The pack is made where there is none. Wherever this is stopped, nothing is lost, and the same
    call goes on.

    Args:
        remove_folders: afterwards take away the folders of runs that the pack, read again from the
            disk, has; with them go their logs, checkpoints and locks.

    Returns how many runs the pack has, and how many of them are folders.

    Raises RecordError: a record or the pack is bad; nothing was changed then.
    """
    experiment = read_experiment(folder)
    with _alone(folder):
        runs = _checked_pack(folder)
        finished: dict[str, Files] = {}
        for path in store.run_folders(folder):
            files = store.read_run_files(path)
            if "result" in files:
                finished[path.name] = files
        for run, files in finished.items():
            # Before anything is written: one bad run leaves pack and folders as they were.
            finished_run(files, folder / run, folder / run / "run.json")
        runs |= finished
        if not runs:
            raise NoRecordsError(
                f"{folder} holds no finished run to pack; run the experiment first"
            )
        write_text_atomically(folder / NAME, render_pack(experiment.name, runs))
        if remove_folders:
            _remove_packed(folder, list(finished))
    return len(runs), len(finished)


def _checked_pack(folder: Path) -> dict[str, Files]:
    """Return the pack, whose every run can be read."""
    return {
        run: files
        for run, files in read_pack(folder).items()
        if _packed_run(folder / run, files)
    }


def _remove_packed(folder: Path, finished: list[str]) -> None:
    """Take away the folders of these runs that the pack on the disk has as they are.

    What is left of such folders goes too.
    """
    # Read again from the disk: a folder goes only where its run has arrived there.
    packed = read_pack(folder)
    for run in finished:
        # As text, in which nan is nan.
        if _inside(packed[run]) == _inside(store.read_run_files(folder / run)):
            # First: a folder without one is no run, so half a one is never read.
            (folder / run / "run.json").unlink()
    # Also what an earlier call was stopped at, between the two removals.
    for path in map(folder.joinpath, packed):
        if path.is_dir() and not (path / "run.json").exists():
            shutil.rmtree(path)


def unpack_runs(folder: Path) -> int:
    """Make folders of the packed runs that have none here, and return how many; the pack stays.

    Raises RecordError: there is no pack, or it cannot be used; nothing was written then.
    """
    if not (folder / NAME).exists():
        raise NoRecordsError(
            f"{folder} holds no {NAME} to unpack; give the folder of an experiment that has one"
        )
    with _alone(folder):
        packed = _checked_pack(folder)
        # A folder that is there may be newer than the pack.
        missing = [run for run in packed if not (folder / run / "run.json").exists()]
        for run in missing:
            _write_files(folder / run, packed[run])
    return len(missing)


def _write_files(folder: Path, files: Files) -> None:
    """Write a run's files into its folder.

    run.json comes last, since a folder without one is no run.
    """
    for name in reversed(store.RUN_FILES):
        stem, _, ending = name.partition(".")
        if stem not in files:
            continue
        if ending == "jsonl":
            text = "".join(store.event_line(event) for event in files[stem])
        else:
            text = store.record_text(files[stem])
        # Not durable: the pack stays, and has all of it.
        write_text_atomically(folder / name, text, durable=False)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder's pack.

    Two that pack at once could each leave out what the other took away.
    """
    with locked(folder / "pack.lock"):
        for torn in folder.glob(f".{NAME}.*"):  # by one that was killed
            torn.unlink()
        yield
