"""Packed records: the finished runs of an experiment in one file, results/<experiment>/runs.jsonl, a JSON line a run.

A run's line has its files as plain JSON: `run`, `events`, `result`, and `failure` where an attempt before failed. It
begins with the sha256 of the rest of the line. The first line is a header, with the experiment's name, the number of
runs and the sha256 of the rest of it and of the runs' digests. So no line can be changed, left out or added unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.records.experiment import Experiment, read_experiment
from harness.records.run_lock import alone
from harness.records.store import (
    RUN_FILES,
    RecordError,
    Result,
    RunFile,
    RunRecord,
    make_names_durable,
    parse_run,
    read_optional,
    read_run,
    read_run_files,
    run_folders,
    write_run_files,
    write_text_atomically,
)
from harness.spec import RunConfig, explain, run_id

FORMAT = 2
"""Version of the pack's format; a pack of another is refused, never guessed at."""
NAME = "runs.jsonl"
RESTORE = "restore the file from git or from a copy"
_LINE = re.compile(r'\{"sha256":"([0-9a-f]{64})",(.*)\}')
_RUN = re.compile(r'"run_id":"([0-9a-f]{12})",')
_REMOVING, _UNPACKING = ".removing", ".unpacking"
"""Endings of hidden folders that are no runs: on their way out, or not whole yet."""


@dataclass(frozen=True)
class Pack:
    """A pack whose digests and number of runs are right. `lines`: the text of each run's line, in the order of ids."""

    path: Path
    experiment: str
    lines: Mapping[str, str]

    def files(self, run_id: str) -> dict[str, Any]:
        """The JSON of a run's files, by their names without endings.

        Raises:
            RecordError: the line has files that are none of a run's.
        """
        files: dict[str, Any] = json.loads(self.lines[run_id])
        del files["sha256"], files["run_id"]
        strange = sorted(files.keys() - {Path(name).stem for name in RUN_FILES})
        if strange:
            raise RecordError(f"{self.path}, the line of run {run_id}: no run has files {strange[0]}; {RESTORE}")
        return files

    def record(self, run_id: str, with_events: bool = True) -> RunRecord:
        """A run as the store reads it from a folder; its events take the most time.

        Raises:
            RecordError: a file of it is damaged or of another version, or its id is not the hash of its config.
        """
        files = self.files(run_id)
        return self.run(run_id, files if with_events else files | {"events": []})

    def run(self, run_id: str, files: Mapping[str, Any]) -> RunRecord:
        """The run in files of its line; errors as `record`."""
        record = parse_run(files, self.path.parent / run_id)
        where = f"{self.path}, the line of run {run_id},"
        if record.run.run_id != run_id or record.result is None:
            raise RecordError(f"{where} holds run {record.run.run_id}, or no result of it; {RESTORE}")
        check_id(record.run, where)
        return record


def check_id(run: RunFile, where: object) -> None:
    """Hold a record to its id, which is the hash of its scientific fields.

    Raises:
        RecordError: the record bears another id than its config has.
    """
    try:
        own = run_id(RunConfig.model_validate_json(json.dumps(run.config)))
    except ValidationError as error:
        raise RecordError(f"{where} has a config that this program cannot read ({explain(error)})") from None
    if own != run.run_id:
        raise RecordError(
            f"{where} was edited: it is called {run.run_id}, and its config is that of run {own}; "
            "restore the file from where it came from"
        )


def read_pack(folder: Path) -> Pack | None:
    """The pack in an experiment's folder; None where there is none.

    Raises:
        RecordError: damaged, edited, torn, of another version or of another experiment.
    """
    path = folder / NAME
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _read_once(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=8)
def _read_once(path: Path, stamp: tuple[int, ...]) -> Pack:
    """The pack in a file; states are asked of run by run. A file that was replaced has another `stamp`."""
    pack = parse_pack(path.read_bytes(), path)
    experiment = read_optional(path.parent / "experiment.json", Experiment)
    if experiment is not None and experiment.name != pack.experiment:
        raise RecordError(
            f"{path} is a pack of the experiment {pack.experiment}, the folder holds {experiment.name}; "
            "move it to the folder where it belongs"
        )
    return pack


def parse_pack(data: bytes, path: Path) -> Pack:
    """The pack in a file's contents.

    Raises:
        RecordError: damaged, edited, torn or of another version.
    """
    first, *rest = data.decode(errors="replace").split("\n")
    header = _header(first, path)
    if not rest or rest.pop():
        raise RecordError(f"{path} is torn: its last line has no end; {RESTORE}")
    lines: dict[str, str] = {}
    for number, text in enumerate(rest, start=2):
        found = _LINE.fullmatch(text)
        run = found and _RUN.match(found[2])
        if not found or not run or found[1] != _digest(found[2]):
            raise RecordError(f"{path}, line {number}, is damaged or was edited: its digest differs; {RESTORE}")
        lines[run[1]] = text
    if not len(lines) == len(rest) == header.get("runs"):
        raise RecordError(f"{path} holds {len(rest)} runs, its header says {header.get('runs')}; {RESTORE}")
    if first != _header_line(str(header.get("experiment")), list(lines.values())):
        raise RecordError(f"{path}, line 1, is damaged, or lines were exchanged: its digest differs; {RESTORE}")
    return Pack(path, str(header["experiment"]), lines)


def _header(text: str, path: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(text)
        version = header["format"]
    except (ValueError, LookupError, TypeError):
        raise RecordError(f"{path} is damaged or no pack of runs: its first line is no header; {RESTORE}") from None
    if version != FORMAT:
        raise RecordError(
            f"{path} is a pack of format {version!r}, this program reads format {FORMAT}; "
            "use the program that wrote it to unpack it"
        )
    return header


def render_pack(experiment: str, runs: Mapping[str, dict[str, Any]]) -> str:
    """The pack of these runs' files by their ids: the same runs give the same bytes."""
    lines = []
    for run in sorted(runs):
        text = _inside({"run_id": run, **runs[run]})
        lines.append(f'{{"sha256":"{_digest(text)}",{text}}}')
    return "".join(f"{line}\n" for line in [_header_line(experiment, lines), *lines])


def _header_line(experiment: str, lines: list[str]) -> str:
    text = _inside({"format": FORMAT, "experiment": experiment, "runs": len(lines)})
    digests = [line[len('{"sha256":"') :][:64] for line in lines]
    return f'{{"sha256":"{_digest("".join([text, *digests]))}",{text}}}'


def _inside(fields: dict[str, Any]) -> str:
    """An object in JSON without its braces."""
    return json.dumps(fields, separators=(",", ":"))[1:-1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Runs(Mapping[str, RunRecord]):
    """All runs of an experiment, packed ones and folders, by id; each is read and checked when it is asked for.

    Where both have a run, a folder with a result wins: it is what was written last here, and a pack that it should go
    into is made from it. A folder without one is a try at a run that the pack has done.
    """

    def __init__(self, folder: Path) -> None:
        self._pack = read_pack(folder)
        packed = self._pack.lines if self._pack else {}
        self._folders = {
            path.name: path
            for path in run_folders(folder)
            if path.name not in packed or (path / "result.json").exists()
        }
        self._ids = dict.fromkeys(sorted({*self._folders, *packed}))

    def __getitem__(self, run_id: str) -> RunRecord:
        if run_id in self._folders:
            return read_run(self._folders[run_id])
        if self._pack is None or run_id not in self._pack.lines:
            raise KeyError(run_id)
        return self._pack.record(run_id)

    def with_plain_events(self, run_id: str) -> tuple[RunRecord, list[dict[str, Any]]]:
        """A run without its events, and these as plain data by their steps: quicker for who reads thousands of runs.

        Raises:
            KeyError, RecordError: as asking for the run, but of a pack's events, which its digest covers.
        """
        if run_id in self._folders or self._pack is None or run_id not in self._pack.lines:
            record = self[run_id]
            return record, [vars(event) for event in record.events]
        files = self._pack.files(run_id)
        by_step = {event["step"]: event for event in files.pop("events", [])}
        return self._pack.run(run_id, files), [by_step[step] for step in sorted(by_step)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._ids  # without reading it, as Mapping would


def open_runs(folder: Path) -> Runs:
    """All runs of an experiment's folder, finished or not.

    Raises:
        RecordError: the pack cannot be used. Asking for a run that is damaged raises it too.
    """
    return Runs(folder)


def packed_run(folder: Path, with_events: bool = True) -> RunRecord | None:
    """The run of this folder, as results/<experiment>/<run id>, from the experiment's pack; None if it is not there.

    Raises:
        RecordError: the pack cannot be used, or the run in it.
    """
    pack = read_pack(folder.parent)
    return pack.record(folder.name, with_events) if pack is not None and folder.name in pack.lines else None


def read_result(folder: Path) -> Result | None:
    """The result of the run of this folder, in the folder or in the experiment's pack; None if it is not done.

    Raises:
        RecordError: the result is damaged or of another version, or the pack cannot be used.
    """
    # A result whose run.json is gone says of no run that it is done.
    result = read_optional(folder / "result.json", Result) if (folder / "run.json").exists() else None
    packed = packed_run(folder, with_events=False) if result is None else None
    return result if packed is None else packed.result


@dataclass(frozen=True)
class Packed:
    """What packing did. `left`: folders of runs that are not done."""

    path: Path
    num_runs: int
    added: int
    removed: int
    left: int


def pack_runs(folder: Path, remove_folders: bool = False) -> Packed:
    """Add the finished runs that are folders to the experiment's pack, and make it where there is none.

    Wherever this is stopped, nothing is lost, and the same call goes on.

    Args:
        folder: of the experiment.
        remove_folders: afterwards take away the folders of runs that the pack, read again from the disk, has; with
            them go their logs, checkpoints and locks.

    Raises:
        RecordError: a record, or the pack that is there, cannot be used; nothing was changed then.
        OSError: no space, no permission; the old pack is then untouched.
    """
    experiment = read_experiment(folder)
    path = folder / NAME
    with _alone(folder):
        before = _packed_files(folder)
        finished = _finished_files(folder)
        if not before and not finished:
            raise RecordError(f"{folder} holds no finished run to pack; run the experiment first")
        text = render_pack(experiment.name, {**before, **finished})
        num_runs = len(parse_pack(text.encode(), path).lines)
        if not path.exists() or path.read_bytes() != text.encode():
            write_text_atomically(path, text)
        removed = _remove_packed(folder, list(finished)) if remove_folders else 0
    added = sum(run not in before or _inside(before[run]) != _inside(files) for run, files in finished.items())
    left = sum(each.name not in finished for each in run_folders(folder))
    return Packed(path, num_runs, added, removed, left)


def unpack_runs(folder: Path) -> int:
    """Make folders of the packed runs that have none here, and return how many were made; the pack stays.

    Raises:
        RecordError: there is no pack, or it cannot be used; nothing was written then.
        OSError: no space, no permission; call again when that is mended.
    """
    with _alone(folder):
        missing = {run: files for run, files in _packed_files(folder).items() if not (folder / run).exists()}
        if not (folder / NAME).exists():
            raise RecordError(f"{folder} holds no {NAME} to unpack; give the folder of an experiment that has one")
        for run, files in missing.items():
            part = folder / f".{run}{_UNPACKING}"
            write_run_files(part, files)
            os.replace(part, folder / run)
    return len(missing)


def _packed_files(folder: Path) -> dict[str, dict[str, Any]]:
    pack = read_pack(folder)
    return {run: pack.files(run) for run in pack.lines if pack.record(run)} if pack else {}


def _finished_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of each finished run that is a folder."""
    found = {}
    for path in run_folders(folder):
        files = read_run_files(path)
        record = parse_run(files, path)
        if record.result is None:
            continue
        if record.run.run_id != path.name:
            raise RecordError(f"{path / 'run.json'} belongs to run {record.run.run_id}; move that folder elsewhere")
        check_id(record.run, path / "run.json")
        found[path.name] = files
    return found


def _remove_packed(folder: Path, run_ids: list[str]) -> int:
    """Take away the folders of these runs; each must still be what the pack on the disk has."""
    pack = parse_pack((folder / NAME).read_bytes(), folder / NAME)
    for run in run_ids:
        if _inside(pack.files(run)) != _inside(read_run_files(folder / run)):
            raise RecordError(f"{folder / run} was changed while it was packed; pack again")
    make_names_durable(folder)
    for run in run_ids:
        part = folder / f".{run}{_REMOVING}"
        os.replace(folder / run, part)  # gone at once: half a folder would be half a run
        shutil.rmtree(part)
    return len(run_ids)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two that pack at once could each leave out what the other took away."""
    with alone(folder / "pack.lock"):
        for remains in folder.glob(".*"):  # of one that was killed
            if remains.name.endswith((_REMOVING, _UNPACKING)):
                shutil.rmtree(remains)
            elif remains.name.startswith(f".{NAME}."):
                remains.unlink()
        yield
