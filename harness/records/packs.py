"""Packed records: the finished runs of an experiment as one text file, results/<experiment>/runs.jsonl, read strictly.

The first line is a header: format, experiment, number of runs, and what the runs have in common (`pack_lines`). Each
other line is a run. Each line begins with its sha256: the header's is of the rest of the header, a run's is of the
header's and of the rest of its line, so that neither can be changed or exchanged alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.records import pack_lines
from harness.records.experiment import Experiment
from harness.records.identity import check_id
from harness.records.pack_lines import Files
from harness.records.store import (
    RUN_FILES,
    Record,
    RecordError,
    Result,
    RunRecord,
    parse_run,
    read_optional,
    read_run,
    run_folders,
)

FORMAT = 1
"""Version of the pack's format; a pack of another is refused, never guessed at."""
NAME = "runs.jsonl"
RESTORE = "restore the file from git or from a copy"
_LINE = re.compile(r'\{"sha256":"([0-9a-f]{64})",(.*)\}')
_RUN = re.compile(r'"run":"([0-9a-f]{12})","files":')


class Header(Record):
    """The first line, but for its digest. `keys` and `shared` are the tables that the other lines refer to."""

    format: int
    experiment: str
    runs: int
    keys: list[list[str]]
    shared: list[Any]


@dataclass(frozen=True)
class Pack:
    """A pack whose digests and number of runs are right. `lines`: by run, in the order of their ids."""

    path: Path
    header: Header
    lines: Mapping[str, str]

    def files(self, run_id: str, names: Sequence[str] = RUN_FILES) -> Files:
        """The files of a run, to the byte; those of `names` that it has.

        Raises:
            RecordError: the line does not fit the header, or has files that are none of a run's.
        """
        try:
            line = json.loads(self.lines[run_id])["files"]
            strange = line.keys() - set(RUN_FILES)
            if strange:
                raise ValueError(f"no run has files {', '.join(sorted(strange))}")
            kept = [name for name in line if name in names]
            return {name: pack_lines.decode(name, line[name], self.header.keys, self._shared) for name in kept}
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"{self.path} is damaged in the line of run {run_id} ({error!r}); {RESTORE}") from None

    def record(self, run_id: str, with_events: bool = True) -> RunRecord:
        """A run as the store reads it from a folder; its events take the most time.

        Raises:
            RecordError: a file of it is damaged or of another version, or its id is not the hash of its config.
        """
        files = self.files(run_id, RUN_FILES if with_events else [name for name in RUN_FILES if name != "events.jsonl"])
        record = parse_run(files, self.path.parent / run_id)
        where = f"{self.path}, the line of run {run_id},"
        if record.run.run_id != run_id or record.result is None:
            raise RecordError(f"{where} holds run {record.run.run_id}, or no result of it; {RESTORE}")
        check_id(record.run, where)
        return record

    @cached_property
    def _shared(self) -> list[Any]:
        return pack_lines.Tables(self.header.keys, self.header.shared).values()


def read_pack(folder: Path) -> Pack | None:
    """The pack in an experiment's folder; None where there is none.

    Raises:
        RecordError: damaged, edited, torn, of another version or of another experiment.
    """
    pack = _read(folder)
    experiment = None if pack is None else read_optional(folder / "experiment.json", Experiment)
    if pack is not None and experiment is not None and experiment.name != pack.header.experiment:
        raise RecordError(
            f"{pack.path} is a pack of the experiment {pack.header.experiment}, the folder holds {experiment.name}; "
            "move it to the folder where it belongs"
        )
    return pack


def _read(folder: Path) -> Pack | None:
    path = folder / NAME
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _read_once(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=8)
def _read_once(path: Path, stamp: tuple[int, ...]) -> Pack:
    """The pack in a file; states are asked of run by run. A file that was replaced has another `stamp`."""
    return parse(path.read_bytes(), path)


def parse(data: bytes, path: Path) -> Pack:
    """The pack in a file's contents.

    Raises:
        RecordError: damaged, edited, torn or of another version.
    """
    first, *rest = data.decode(errors="replace").split("\n")
    header, digest = _header(first, path)
    if not rest or rest.pop():
        raise RecordError(f"{path} is torn: its last line has no end; {RESTORE}")
    lines: dict[str, str] = {}
    for number, text in enumerate(rest, start=2):
        found = _LINE.fullmatch(text)
        run = found and _RUN.match(found[2])
        if not found or not run or found[1] != _digest(digest, found[2]):
            raise RecordError(f"{path}, line {number}, is damaged or was edited: its digest differs; {RESTORE}")
        lines[run[1]] = text
    if not len(lines) == len(rest) == header.runs:
        raise RecordError(f"{path} holds {len(rest)} runs, its header says {header.runs}; {RESTORE}")
    return Pack(path, header, lines)


def _header(text: str, path: Path) -> tuple[Header, str]:
    """The header and its digest."""
    try:
        fields = json.loads(text)
        version = fields["format"]
    except (ValueError, LookupError, TypeError):
        raise RecordError(f"{path} is damaged or no pack of runs: its first line is no header; {RESTORE}") from None
    if version != FORMAT:
        raise RecordError(
            f"{path} is a pack of format {version!r}, this program reads format {FORMAT}; "
            "use the program that wrote it to unpack it"
        )
    try:
        digest = fields.pop("sha256")
        header = Header.model_validate(fields)
    except (LookupError, ValidationError):
        digest, header = None, None
    found = _LINE.fullmatch(text)
    if header is None or not found or digest != _digest("", found[2]):
        raise RecordError(f"{path}, line 1, is damaged or was edited: its digest differs; {RESTORE}")
    return header, found[1]


def render(experiment: str, runs: Mapping[str, Files]) -> str:
    """The pack of these runs by their ids: the same runs give the same bytes."""
    ids = sorted(runs)
    tables, lines = pack_lines.encode(runs[run_id] for run_id in ids)
    header = Header(format=FORMAT, experiment=experiment, runs=len(ids), keys=tables.keys, shared=tables.shared)
    first, digest = _sealed("", header.model_dump())
    rest = [_sealed(digest, {"run": run_id, "files": line})[0] for run_id, line in zip(ids, lines, strict=True)]
    return "".join(f"{line}\n" for line in [first, *rest])


def _sealed(before: str, content: dict[str, Any]) -> tuple[str, str]:
    """A line that begins with its digest, and the digest."""
    text = json.dumps(content, separators=(",", ":"))[1:-1]
    digest = _digest(before, text)
    return f'{{"sha256":"{digest}",{text}}}', digest


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}{text}".encode()).hexdigest()


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
    pack = _read(folder.parent)
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
