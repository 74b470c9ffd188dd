"""The experiments and step times that pages are drawn from, each read when first asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.experiment import PlannedEvidence, Role
from cser_bench.harness.records.shipped import TIMINGS, ships, take
from cser_bench.harness.records.store import read_record
from cser_bench.harness.records.timings import Timing
from cser_bench.report.frame import Frames, evidence_in, read_frames
from cser_bench.report.speed.workload_model import STUDY, SpeedStudy, read_study


@dataclass(frozen=True)
class Collection:
    """Folders of records; of two of one name the first counts."""

    folders: tuple[Path, ...]
    # By folder: also those that turn out to have no finished run are read once.
    _read: dict[Path, Frames] = field(default_factory=dict)

    @cached_property
    def about(self) -> dict[str, PlannedEvidence]:
        """What specs say of the experiments that have an [evidence] table, by name and in order.

        Raises:
            RecordError: a plan is damaged or of another version.
        """
        return evidence_in(self.folders)

    def find(self, name: str) -> Frames | None:
        """Return an experiment; None where it is not there or has no finished run.

        Raises:
            RecordError: a record is damaged or of another version.
        """
        for folder in self.folders:
            if folder.name == name and (folder / "experiment.json").exists():
                frames = self.at(folder)
                # Runs that all diverged have no score.
                if (frames.runs["status"] == "done").any():
                    return frames
        return None

    def at(self, folder: Path) -> Frames:
        """Return the experiment in a folder, which is read once.

        Raises:
            RecordError: as `read_frames`.
        """
        if folder not in self._read:
            self._read[folder] = read_frames(folder)
        return self._read[folder]

    def all_of(self, *roles: Role, network: str) -> list[Frames]:
        """Return the experiments on a network in one of these roles, each once."""
        experiments = []
        for name, about in self.about.items():
            if about.network == network and not {*roles}.isdisjoint(about.roles):
                frames = self.find(name)
                if frames is not None:
                    experiments.append(frames)
        return experiments

    @cached_property
    def speed(self) -> SpeedStudy | None:
        """The study of step times; None where there is none.

        Raises:
            RecordError: a record is damaged.
        """
        for folder in self.folders:
            if folder.name == TIMINGS and (folder / STUDY).exists():
                return read_study(folder)
        return None

    @cached_property
    def scored(self) -> list[Timing]:
        """The sessions that timed exactly the settings that accuracy runs score."""
        paths: list[Path] = []
        for folder in self.folders:
            if folder.name.endswith(TIMINGS):
                paths += sorted(folder.glob("scored-*.json"))
        return [read_record(path, Timing) for path in paths]


def folder_in_results(frames: Frames) -> str:
    """Return where an experiment lies in results/: those that others are compared with lie deeper."""
    folder = frames.folder
    if folder.parent.name == "reference":
        return f"reference/{folder.name}"
    return folder.name


def collection_of(results: Path | None) -> Collection:
    """Return what there is to read.

    Args:
        results: folder of one's own records, which count where all their runs are done; None for what
            ships alone.

    Raises:
        UsageError: there is no such folder. RecordError: a record of one's own is damaged.
    """
    if results is not None and not results.is_dir():
        raise UsageError(
            f"there is no folder {results}; give the folder of results, as --results results"
        )
    own = results
    if own is not None:
        own = own.resolve()
    return Collection(take(own).folders)


def collection_for(pages: Path, results: Path) -> Collection:
    """Return what the pages in a folder are drawn from: what ships alone where the folder ships.

    Args:
        pages: the folder.
        results: folder of one's own records.

    Raises:
        UsageError, RecordError: as `collection_of`.
    """
    if ships(pages):
        return collection_of(None)
    return collection_of(results)
