"""Packed records: the finished runs of an experiment in one file, results/<experiment>/runs.jsonl, a JSON line a run.

A run's line has its files as plain JSON: `run`, `events`, `result`, and `failure` where an attempt before failed. It
begins with the sha256 of the rest of the line. The first line is a header, with the experiment's name, the number of
runs and the sha256 of the rest of it and of the runs' digests. So no line can be changed, left out or added unseen.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness.records.experiment import Experiment, read_experiment
from harness.records.run_lock import locked
from harness.records.store import (
    RUN_FILES,
    RecordError,
    Result,
    RunFile,
    RunRecord,
    event_line,
    make_names_durable,
    parse_run,
    read_optional,
    read_run,
    read_run_files,
    record_text,
    run_folders,
    write_text_atomically,
)
from harness.spec import RunConfig, explain, run_id

FORMAT = 2
"""Version of the pack's format; a pack of another is refused, never guessed at."""
NAME = "runs.jsonl"
RESTORE = "restore the file from git or from a copy"
_LINE = re.compile(r'\{"sha256":"(?P<digest>[0-9a-f]{64})",(?P<text>"run_id":"(?P<run>[0-9a-f]{12})",.*)\}')

Files = dict[str, Any]
"""The JSON of a run's files, by their names without endings."""


@dataclass(frozen=True)
class Pack:
    """A pack whose digests and number of runs are right. `lines`: the text of each run's line, in the order of ids."""

    path: Path
    experiment: str
    lines: Mapping[str, str]

    def files(self, run_id: str) -> Files:
        """The files in the line of this run.

        Raises:
            RecordError: the line has files that are none of a run's.
        """
        files: Files = json.loads(self.lines[run_id])
        del files["sha256"], files["run_id"]
        strange = sorted(files.keys() - {Path(name).stem for name in RUN_FILES})
        if strange:
            raise RecordError(f"{self.path}, the line of run {run_id}: no run has files {strange[0]}; {RESTORE}")
        return files

    def record(self, run_id: str) -> RunRecord:
        """A run as the store reads it from a folder.

        Raises:
            RecordError: a file of it is damaged or of another version, or its id is not the hash of its config.
        """
        where = f"{self.path}, the line of run {run_id},"
        record = parse_run(self.files(run_id), self.path.parent / run_id)
        if record.run.run_id != run_id or record.result is None:
            raise RecordError(f"{where} holds run {record.run.run_id}, or no result of it; {RESTORE}")
        _check_id(record.run, where)
        return record


def _check_id(run: RunFile, where: object) -> None:
    """Raises RecordError where the record bears another id than the hash of its scientific fields."""
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
    text = data.decode(errors="replace")
    first, *rest = text.removesuffix("\n").split("\n")
    try:
        header = json.loads(first)
        version = header["format"]
    except (ValueError, LookupError, TypeError):
        raise RecordError(f"{path} is damaged or no pack of runs: its first line is no header; {RESTORE}") from None
    if version != FORMAT:
        raise RecordError(
            f"{path} is a pack of format {version!r}, this program reads format {FORMAT}; "
            "use the program that wrote it to unpack it"
        )
    lines: dict[str, str] = {}
    for number, line in enumerate(rest, start=2):
        found = _LINE.fullmatch(line)
        if not found or found["digest"] != _digest(found["text"]):
            raise RecordError(f"{path}, line {number}, is damaged or was edited: its digest differs; {RESTORE}")
        lines[found["run"]] = line
    experiment = str(header.get("experiment"))
    if len(lines) < len(rest) or first != _header_line(experiment, list(lines.values())) or not text.endswith("\n"):
        raise RecordError(f"{path}, line 1, is damaged, or lines were lost or exchanged: its digest differs; {RESTORE}")
    return Pack(path, experiment, lines)


def render_pack(experiment: str, runs: Mapping[str, Files]) -> str:
    """The pack of these runs by their ids: the same runs give the same bytes."""
    texts = [_inside({"run_id": run, **runs[run]}) for run in sorted(runs)]
    lines = [f'{{"sha256":"{_digest(text)}",{text}}}' for text in texts]
    return "".join(f"{line}\n" for line in [_header_line(experiment, lines), *lines])


def _header_line(experiment: str, lines: list[str]) -> str:
    text = _inside({"format": FORMAT, "experiment": experiment, "runs": len(lines)})
    digests = [line[len('{"sha256":"') :][:64] for line in lines]
    return f'{{"sha256":"{_digest("".join([text, *digests]))}",{text}}}'


def _inside(fields: Files) -> str:
    """An object in JSON without its braces."""
    return json.dumps(fields, separators=(",", ":"))[1:-1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_runs(folder: Path) -> dict[str, RunRecord]:
    """All runs of an experiment's folder, finished or not, packed ones and folders, by id.

    Where both have a run, a folder with a result wins: it is what was written last here, and a pack that it should go
    into is made from it. A folder without one is a try at a run that the pack has done.

    Raises:
        RecordError: the pack or a run cannot be used.
    """
    pack = read_pack(folder)
    found = {run: pack.record(run) for run in pack.lines} if pack else {}
    for path in run_folders(folder):
        if path.name not in found or (path / "result.json").exists():
            found[path.name] = read_run(path)
    return dict(sorted(found.items()))


def read_result(folder: Path) -> Result | None:
    """The result of the run of this folder, in the folder or in the experiment's pack; None if it is not done.

    Raises:
        RecordError: the result is damaged or of another version, or the pack cannot be used.
    """
    # A result whose run.json is gone says of no run that it is done.
    if (folder / "run.json").exists() and (result := read_optional(folder / "result.json", Result)):
        return result
    pack = read_pack(folder.parent)
    return pack.record(folder.name).result if pack is not None and folder.name in pack.lines else None


class Packed(NamedTuple):
    """What packing did: runs in the pack, new or changed ones, folders removed, and folders of runs not done."""

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
    experiment, path = read_experiment(folder), folder / NAME
    with _alone(folder):
        before, finished = _packed_files(folder), _finished_files(folder)
        if not before and not finished:
            raise RecordError(f"{folder} holds no finished run to pack; run the experiment first")
        text = render_pack(experiment.name, {**before, **finished})
        num_runs = len(parse_pack(text.encode(), path).lines)
        if not path.exists() or path.read_bytes() != text.encode():
            write_text_atomically(path, text)
        if remove_folders:
            _remove_packed(folder, list(finished))
    added = sum(run not in before or _inside(before[run]) != _inside(files) for run, files in finished.items())
    left = sum(each.name not in finished for each in run_folders(folder))
    return Packed(num_runs, added, len(finished) if remove_folders else 0, left)


def unpack_runs(folder: Path) -> int:
    """Make folders of the packed runs that have none here, and return how many were made; the pack stays.

    Raises:
        RecordError: there is no pack, or it cannot be used; nothing was written then.
        OSError: no space, no permission; call again when that is mended.
    """
    if not (folder / NAME).exists():
        raise RecordError(f"{folder} holds no {NAME} to unpack; give the folder of an experiment that has one")
    with _alone(folder):
        missing = {
            run: files for run, files in _packed_files(folder).items() if not (folder / run / "run.json").exists()
        }
        for run, files in missing.items():
            _write_files(folder / run, files)
    return len(missing)


def _write_files(folder: Path, files: Files) -> None:
    """Write run.json last, as a folder without one is no run."""
    for path in map(folder.joinpath, reversed(RUN_FILES)):
        if path.stem in files:
            fields = files[path.stem]
            text = "".join(map(event_line, fields)) if path.suffix == ".jsonl" else record_text(fields)
            write_text_atomically(path, text, durable=False)


def _packed_files(folder: Path) -> dict[str, Files]:
    pack = read_pack(folder)
    return {run: pack.files(run) for run in pack.lines if pack.record(run)} if pack else {}


def _finished_files(folder: Path) -> dict[str, Files]:
    """The files of each finished run that is a folder."""
    found = {}
    for path in run_folders(folder):
        files = read_run_files(path)
        record = parse_run(files, path)
        if record.result is not None:
            if record.run.run_id != path.name:
                raise RecordError(f"{path / 'run.json'} belongs to run {record.run.run_id}; move that folder elsewhere")
            _check_id(record.run, path / "run.json")
            found[path.name] = files
    return found


def _remove_packed(folder: Path, run_ids: list[str]) -> None:
    """Take away the folders of these runs, which must still be what the pack on the disk has; and what is left of such.

    run.json goes first: a folder without one is no run, so that half a folder is never read.
    """
    pack = parse_pack((folder / NAME).read_bytes(), folder / NAME)
    for run in run_ids:
        if _inside(pack.files(run)) != _inside(read_run_files(folder / run)):
            raise RecordError(f"{folder / run} was changed while it was packed; pack again")
    make_names_durable(folder)
    for run in run_ids:
        (folder / run / "run.json").unlink()
    for path in map(folder.joinpath, pack.lines):
        if path.is_dir() and not (path / "run.json").exists():
            shutil.rmtree(path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two that pack at once could each leave out what the other took away."""
    with locked(folder / "pack.lock"):
        for torn in folder.glob(f".{NAME}.*"):  # by one that was killed
            torn.unlink()
        yield
