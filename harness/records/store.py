"""The record store: what a run leaves on disk, read strictly and written atomically.

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from cser_bench.harness.records.atomic import write_text_atomically

VERSION = 1
"""Version of the records format; a folder of another version is refused, never guessed at."""

RUN_FILES = ("run.json", "events.jsonl", "result.json", "failure.json")
"""What is kept of a run, as far as it has them; the other files in its folder matter only while it
is on."""

TRAINING = ("gradient", "error", "model")
"""Purposes of traffic that are a method's cost; evaluation and control are not."""

FailureKind = Literal[
    "oom", "timeout", "preempted", "communication", "node", "data", "disk", "bug"
]
"""`node`: the run's processes, or the machine under them, ended without a word."""


class RecordError(ValueError):
    """A record that cannot be used: the message says which file, what is wrong and what to do."""

    exit_code = 1


class NoRecordsError(RecordError):
    """There are none where the user says that there are some."""

    exit_code = 2


class Record(BaseModel):
    """Strict, frozen border type: an unknown or missing key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=True,
        # The ratio of a row that sends nothing is infinite; by default it would be written as null.
        ser_json_inf_nan="constants",
    )

    def json_fields(self) -> dict[str, Any]:
        """Return what is written of it: fields at their default are left out."""
        return self.model_dump(mode="json", exclude_defaults=True, by_alias=True)


class TrafficEntry(Record):
    """What one worker sent for one purpose over a whole run.

    `gathered_bits` of the bits went by all-gathers, and `neighbour_bits` straight to neighbours.
    """

    bits: int
    collectives: int
    gathered_bits: int = 0
    neighbour_bits: int = 0


class Attempt(Record):
    """One try at a run: who, where, with what code, from which step."""

    attempt: str
    started_at: str
    resumed_from_step: int
    host: str
    command: str
    launch: str
    backend: str
    device: str
    git_commit: str | None
    git_diff_sha256: str | None
    python: str
    packages: dict[str, str]
    cpu: str
    num_cpus: int
    accelerator: str | None = None
    nccl: str | None = None
    memory_format: str | None = None
    """In which order the numbers of images and kernels lay: it decides which ones share a block."""
    slurm: dict[str, str] | None = None


class RunFile(Record):
    """What run.json holds.

    `config` holds the scientific fields alone; `run_id` is their hash.
    """

    version: int
    run_id: str
    experiment: str
    row: str
    seed: int
    config: dict[str, Any]
    attempts: list[Attempt]


def check_accuracy(
    accuracy: float | None, correct: int | None, count: int | None
) -> None:
    """Raise ValueError where test_accuracy is not correct / count.

    The program always writes them alike, so a difference means that the record was edited.
    """
    counted = None
    if correct is not None and count:
        counted = correct / count
    if accuracy != counted:
        raise ValueError(
            f"test_accuracy is {accuracy}, but {correct} of {count} are correct, so the record was "
            "edited"
        )


class Event(Record):
    """One line of events.jsonl: one evaluation of the workers' average.

    `bits_sent` counts one worker's training payload so far, evaluation excluded. `error_norm` is
    the root of the mean over workers of the squared 2-norm of the error, None where the method
    keeps none; `worker_distance` is the same of the difference between a worker's parameters and
    the average.
    """

    step: int
    epoch: float
    learning_rate: float
    train_loss: float
    test_loss: float
    test_correct: int
    test_count: int
    test_accuracy: float
    bits_sent: int
    error_norm: float | None
    worker_distance: float
    wall_seconds: float
    metrics: dict[str, float] | None = None
    """What else a text task's sentences were scored by, as shares, by name."""

    @model_validator(mode="after")
    def _consistent(self) -> Event:
        check_accuracy(self.test_accuracy, self.test_correct, self.test_count)
        return self


class Result(Record):
    """result.json: written last and atomically; being there and valid is what "done" means.

    `status` "diverged" is a result too: the score fields are then None, nothing is filled in.
    """

    version: int
    run_id: str
    attempt: str
    status: Literal["done", "diverged"]
    diverged_at_step: int | None
    num_steps: int
    num_parameters: int
    world_size: int
    train_loss: float | None
    test_loss: float | None
    test_correct: int | None
    test_count: int | None
    test_accuracy: float | None
    traffic: dict[str, TrafficEntry]
    expected_traffic: dict[str, TrafficEntry]
    traffic_reduction: float | None = Field(alias="overall_ratio")
    """How many times less a worker sent in training than without compression; None if nothing."""
    clock_seconds: dict[str, float]
    wall_seconds: float
    parameters_sha256: str
    class_counts: list[list[int]] | None = None
    """Training samples of each class that each worker held, where workers have shards of their
    own."""
    worker_accuracy: list[float] | None = None
    """Accuracy of each worker's own model at the end, by rank, on the same samples as the
    average's."""
    metrics: dict[str, float] | None = None
    """As an event's."""
    translations: list[dict[str, str]] | None = None
    """Some sentences of the evaluated split and what was made of them, in older records."""
    data_name: str | None = None
    """The file that was read in place of the task's official release."""
    data_sha256: str | None = None
    """Digest of that file, or of a text task's data, both splits."""
    vocabulary_sha256: str | None = None
    """Digest of its subwords, in records of translation."""
    signatures: dict[str, str] | None = None
    """sacreBLEU's signature of how each metric was computed, in records of translation."""
    sha256: str | None = None
    """Digest of the other fields, of all events and of run.json, which finds accidents; None in
    older records. See `digest_of`."""

    @model_validator(mode="after")
    def _consistent(self) -> Result:
        check_accuracy(self.test_accuracy, self.test_correct, self.test_count)
        for purpose, entry in self.expected_traffic.items():
            if self.traffic.get(purpose) != entry:
                raise ValueError(
                    f"traffic and expected_traffic differ in {purpose!r}, so the record was edited"
                )
        return self


def digest_of(
    result: Result, events: Iterable[Event], run: RunFile | None = None
) -> str:
    """Return the digest of a result, its own digest left out, of the run's events and of run.json.

    Older records have digests without run.json, which says the row, the config and the commits.
    """
    fields = result.json_fields()
    fields.pop("sha256", None)
    lines = [fields, *(event.json_fields() for event in events)]
    if run is not None:
        lines.append(_run_fields(run, result.attempt))
    # Sorted and by value, so spaces or the order of keys in a file do not count.
    text = "\n".join(json.dumps(line, sort_keys=True) for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def _run_fields(run: RunFile, last_attempt: str) -> dict[str, Any]:
    """Return what run.json holds, without attempts after that which wrote the result.

    A job that Slurm starts anew enters its attempt before it can be sure that there is a result.
    """
    names = [attempt.attempt for attempt in run.attempts]
    fields = run.json_fields()
    if last_attempt in names:
        fields["attempts"] = fields["attempts"][: names.index(last_attempt) + 1]
    return fields


class Failure(Record):
    """failure.json: why the latest attempt ended without a result."""

    version: int
    run_id: str
    attempt: str
    kind: FailureKind
    message: str
    traceback: str
    step: int | None


class Heartbeat(Record):
    """heartbeat.json: replaced atomically while a run is on; `time` is seconds since the epoch."""

    model_config = ConfigDict(extra="ignore")  # older ones said more

    attempt: str
    time: float
    step: int
    num_steps: int
    images_per_second: float
    seconds_left: float | None


@dataclass(frozen=True)
class RunRecord:
    """All that is known of one run; `result` is None where it is not done."""

    folder: Path
    run: RunFile
    events: list[Event]
    result: Result | None
    failure: Failure | None


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> R:
    """Read one JSON record.

    Raises RecordError: it is absent, torn, of another version or of another shape.
    """
    return parse_record(_read_json(path), path, kind)


def read_optional(path: Path, kind: type[R]) -> R | None:
    """Read one JSON record, or return None where there is no file."""
    return read_record(path, kind) if path.exists() else None


def read_if_whole(path: Path, kind: type[R]) -> R | None:
    """Read one JSON record, or return None where the file is absent or damaged.

    The run's next attempt will tell of a damaged one.
    """
    with suppress(RecordError):
        return read_record(path, kind)
    return None


def _read_json(path: Path | str) -> Any:
    """Return the JSON in a file.

    In a file of lines it is that of each line, without a torn last one.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise _missing(path) from None
    if not str(path).endswith(".jsonl"):
        return _parse_json(data, path)
    # Each line ends in a newline, so behind a whole last one comes nothing.
    *lines, last = data.split(b"\n")
    found = [
        _parse_json(line, f"{path}, line {number},")
        for number, line in enumerate(lines, start=1)
    ]
    with suppress(ValueError):  # a line that lacks nothing but its end is whole
        found.append(from_json(last))
    return found


def _parse_json(data: bytes, where: Path | str) -> Any:
    try:
        return from_json(data)
    except ValueError as error:
        raise RecordError(f"{where} is damaged ({error}); {_remedy(where)}") from None


def _remedy(where: Path | str) -> str:
    """Say what to do about a damaged file, or line of a file."""
    # A run with a result is done whether or not the file is there, and one without goes on from a
    # checkpoint behind the evaluations that are lost.
    if "events.jsonl" in str(where):
        return "restore the file, or delete the run's folder and run again"
    return "delete the file and run again"


def _missing(path: Path | str) -> RecordError:
    return RecordError(
        f"{path} is missing: the folder is not a record folder, or it was not written yet"
    )


def parse_record(fields: object, path: Path | str, kind: type[R]) -> R:
    """Return the record in a file's JSON.

    Raises RecordError: it is of another version or of another shape.
    """
    if (
        isinstance(fields, dict)
        # Before the fields are looked at: another version may have others, and would pass for
        # damage.
        and "version" in kind.model_fields
        and fields.get("version") != VERSION
    ):
        raise RecordError(
            f"{path} is of records version {fields.get('version')!r}, this program reads version "
            f"{VERSION}; move the folder away or use the program that wrote it"
        )
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        why = first["msg"].removeprefix("Value error, ")
        # Validators of ours judge a record as a whole, so there is no field to name.
        is_of_whole = first["type"] == "value_error"
        wrong = (
            f"is damaged: {why}"
            if is_of_whole
            else f"has a bad field {where!r} ({why})"
        )
        raise RecordError(f"{path} {wrong}; {_remedy(path)}") from None


def read_events(path: Path) -> list[Event]:
    """Read events.jsonl, sorted by step.

    A resumed run repeats steps, so of several lines for one step the last is kept. A torn last line
    is dropped.
    """
    return _parse_events(_read_json(path), path) if path.exists() else []


def _parse_events(lines: Iterable[object], path: Path | str) -> list[Event]:
    by_step: dict[int, Event] = {}
    for number, line in enumerate(lines, start=1):
        event = parse_record(line, f"{path}, line {number},", Event)
        # The last line of a step counts: a resumed run has repeated it.
        by_step[event.step] = event
    return [by_step[step] for step in sorted(by_step)]


def read_run(folder: Path) -> RunRecord:
    """Read one run's folder.

    Raises RecordError: a record in it is damaged or of another version.
    """
    return parse_run(read_run_files(folder), folder)


def read_run_files(folder: Path) -> dict[str, Any]:
    """Return the JSON of what is kept of the run in this folder.

    It is by the names of the files without their endings.
    """
    files: dict[str, Any] = {}
    for file in RUN_FILES:
        # a Path for each of ten thousand runs' files takes as long as reading them
        path = f"{folder}/{file}"
        if os.path.exists(path):
            files[file.partition(".")[0]] = _read_json(path)
    return files


def parse_run(files: Mapping[str, Any], folder: Path) -> RunRecord:
    """Return the run in the JSON of its files, by their names without endings.

    Raises RecordError: one of them is bad.
    """

    def parsed(kind: type[R], name: str) -> R | None:
        if name not in files:
            return None
        return parse_record(files[name], f"{folder}/{name}.json", kind)

    run = parsed(RunFile, "run")
    result = parsed(Result, "result")
    if run is None:
        raise _missing(folder / "run.json")
    if result is not None and result.run_id != run.run_id:
        raise RecordError(
            f"{folder / 'result.json'} belongs to run {result.run_id}, not {run.run_id}; delete it"
        )
    events = _parse_events(files.get("events", []), f"{folder}/events.jsonl")
    return RunRecord(folder, run, events, result, parsed(Failure, "failure"))


def run_folders(folder: Path) -> Iterator[Path]:
    """Return the folders of an experiment that hold a run, in the order of their names."""
    if not folder.is_dir():
        return
    for name in sorted(os.listdir(folder)):
        # A Path for each of thousands takes as long as looking.
        if not name.startswith(".") and os.path.exists(f"{folder}/{name}/run.json"):
            yield folder / name


def write_record(path: Path, record: Record, durable: bool = True) -> None:
    """Write one JSON record atomically.

    Keys are in the order of their fields, so that git shows small differences.
    """
    write_text_atomically(path, record_text(record.json_fields()), durable)


def record_text(fields: object) -> str:
    # A key on each line: git then shows what changed.
    return json.dumps(fields, indent=1) + "\n"


def event_line(fields: object) -> str:
    return json.dumps(fields) + "\n"
