"""The open track as its files have it: rules, entries, and what re-runs found of these.

tracks/<track>/track.toml has the rules in numbers, rules.md beside it in words. An entry is
tracks/<track>/entries/<name>/: entry.toml, the method's source, its packed runs, and reruns.jsonl
where someone ran it again. Entries of the project itself name records that ship in their place.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.store import Record, RecordError, parse_record
from cser_bench.harness.spec.errors import explain
from cser_bench.harness.spec.run import (
    EvaluationSpec,
    MethodSettings,
    ModelSpec,
    PartitionSpec,
    Precision,
    RestartSpec,
    RunConfig,
    ScheduleSpec,
    TaskSpec,
)
from cser_bench.harness.spec.values import (
    Count,
    LocalStep,
    Name,
    NonNegative,
    Positive,
    Seeds,
    ShareBelowOne,
    Strict,
    Text,
)

RULES = "track.toml"
ENTRY = "entry.toml"
RERUNS = "reruns.jsonl"
SOURCE = "method.py"
"""An entry's copy of the file that its method came in."""

Agreement = Literal["to the bit", "within the tolerance", "contradicted"]


class FixedFields(Strict):
    """What all runs of a track have in common, named as in a run's config.

    All other fields are the entrant's: the method with its settings, and the local step with its.
    """

    task: TaskSpec
    model: ModelSpec
    num_workers: Count
    batch_size: Count
    num_epochs: Count
    num_steps: Count | None = None
    precision: Precision
    label_smoothing: ShareBelowOne = 0.0
    schedule: ScheduleSpec
    evaluation: EvaluationSpec
    partition: PartitionSpec
    repeat: int = 0
    restart: RestartSpec | None = None


class Bound(Strict):
    """A row that entries are compared with; `records` is relative to the folder above the tracks."""

    records: str
    row: Name


class LoadClass(Strict):
    """Entries whose link carries at most so many models in a run, and too many for a smaller class."""

    name: Name
    most_link_models: Positive


class CostLink(Strict):
    """A link that the cost model is asked about; the latency is that of a hop."""

    name: Text
    bits_per_second: Positive
    latency_seconds: NonNegative


class Spread(Strict):
    """The standard deviation of the baseline's loss between seeds, in nats, and of how many."""

    deviation_nats: Positive
    num_seeds: Count


class Verification(Strict):
    """How far two executions of the same run may be apart.

    `loss_nats`: of the loss of a run that is done again on another kind of CPU.
    `share_of_way`: of processes from stacked workers, as a share of the way that the parameters
    went, in 2-norms.
    `most_steps`: that are taken by processes; fewer where everything that a run sends was sent
    before.
    """

    loss_nats: Positive
    share_of_way: Positive
    most_steps: Count


class Track(Strict):
    """The rules in numbers.

    `most_trials`: pairs of settings and learning rate that may be tried for an entry.
    `p_below`: a record falls to an entry that is better with less than this p, by Welch's one-sided
    t test on the seeds.
    `compute_seconds`: both passes of one worker's batch, for the cost model.
    """

    format: Literal[1]
    title: Text
    seeds: Seeds
    most_trials: Count
    p_below: Positive
    compute_seconds: Positive
    spread: Spread
    everything_sent: Bound
    bounds: list[Bound] = Field(default_factory=list)
    classes: list[LoadClass]
    links: list[CostLink]
    verification: Verification
    fixed: FixedFields

    def class_of(self, link_models: float) -> LoadClass | None:
        """Return the smallest class that so many models on a link fit; None where none does."""
        # track.toml may list them in any order.
        for load in sorted(self.classes, key=lambda load: load.most_link_models):
            if link_models <= load.most_link_models:
                return load
        return None

    def complaint(self, config: RunConfig) -> str | None:
        """Say which rule a run breaks; None where it keeps all."""
        # Every fixed field, so a new one is checked without a line here.
        for key in FixedFields.model_fields:
            wanted = getattr(self.fixed, key)
            value = getattr(config, key)
            if value != wanted:
                return f"{key} is {_shown(value)}, where the track has {_shown(wanted)}"
        return None


def _shown(value: object) -> str:
    """Return a field of a config as JSON, which people can compare."""
    if isinstance(value, Strict):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(value)


class EntryFile(Strict):
    """What entry.toml says.

    `records`: a folder of records that ship, from that above the tracks; None where the entry's own
    folder has them. `source`: the method's file, in the entry's folder or likewise above.
    `sha256`: of the entry's own files, by their names.
    """

    format: Literal[1]
    author: Text
    entered: Text
    """The day, as 2026-11-30."""
    description: Text
    row: Name
    records: str | None = None
    source: str
    algorithm: Name
    local_step: LocalStep
    learning_rate: Positive
    settings: MethodSettings = MethodSettings()
    sha256: dict[str, str] = Field(default_factory=dict)


class Rerun(Record):
    """One run of an entry that was done again: its loss as entered and now, in nats."""

    seed: int
    loss_entered: float
    loss: float | None
    agreement: Agreement
    cpu: str
    torch: str
    git_commit: str | None
    done_at: str


@dataclass(frozen=True)
class TrackEntry:
    """An entry of a track, with its files read.

    Attributes:
        root: the folder above the tracks.
    """

    name: str
    folder: Path
    root: Path
    about: EntryFile
    reruns: list[Rerun]

    @property
    def records(self) -> Path:
        """The folder with experiment.json and the runs."""
        if self.about.records is None:
            return self.folder
        return self.root / self.about.records

    @property
    def source(self) -> Path:
        """The file that the method is in."""
        if self.about.records is None:
            return self.folder / self.about.source
        return self.root / self.about.source

    @property
    def is_confirmed(self) -> bool:
        """Whether it was run again, and no re-run gave another result."""
        return bool(self.reruns) and not self.is_contradicted

    @property
    def is_contradicted(self) -> bool:
        """Whether a re-run gave another result."""
        return any(rerun.agreement == "contradicted" for rerun in self.reruns)


def read_track(tracks: Path, name: str) -> Track:
    """Read the rules of a track.

    Raises UsageError: there is no such track; RecordError: its file is damaged.
    """
    path = tracks / name / RULES
    if not path.is_file():
        names = sorted(path.parent.name for path in tracks.glob(f"*/{RULES}"))
        raise UsageError(
            f"{tracks} has no track {name!r}; the tracks are {', '.join(names) or 'none'}"
        )
    return _parsed(path, Track)


def read_entries(tracks: Path, name: str) -> list[TrackEntry]:
    """Read all entries of a track, in the order of their names."""
    paths = sorted((tracks / name / "entries").glob(f"*/{ENTRY}"))
    return [read_entry(path.parent) for path in paths]


def read_entry(folder: Path) -> TrackEntry:
    """Read the files of an entry but for its records.

    Raises UsageError: the folder is none of an entry; RecordError: a file in it is damaged.
    """
    path = folder / ENTRY
    if not path.is_file():
        raise UsageError(
            f"there is no entry {folder}; give the name of one, or its folder"
        )
    reruns = []
    if (folder / RERUNS).exists():
        for line in (folder / RERUNS).read_text().splitlines():
            reruns.append(parse_record(json.loads(line), folder / RERUNS, Rerun))
    # tracks/<track>/entries/<name>
    root = folder.absolute().parents[3]
    return TrackEntry(folder.name, folder, root, _parsed(path, EntryFile), reruns)


S = TypeVar("S", bound=Strict)


def _parsed(path: Path, kind: type[S]) -> S:
    try:
        return kind.model_validate(tomllib.loads(path.read_text()))
    except ValidationError as error:
        raise RecordError(f"{path}: {explain(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise RecordError(f"{path} is no TOML: {error}") from None


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def entry_text(about: EntryFile) -> str:
    """Return entry.toml of what it says."""
    fields = about.model_dump(mode="json", exclude_none=True)
    digests = fields.pop("sha256")
    lines = [f"{key} = {_toml(value)}" for key, value in fields.items()]
    if digests:
        lines += ["", "[sha256]"]
        lines += [
            f"{json.dumps(name)} = {json.dumps(digest)}"
            for name, digest in digests.items()
        ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Return a value in TOML, on one line."""
    if isinstance(value, Mapping):
        # Names of settings need no quotes.
        pairs = [f"{key} = {_toml(inner)}" for key, inner in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # Strings, numbers and booleans are written alike in both.
    return json.dumps(value, ensure_ascii=False)
